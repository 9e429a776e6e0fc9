"""No file runs code when it is opened."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from somebody import SIX, fc

from vaegap import InputError
from vaegap.lab.weights import read_images, read_program, read_weights


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def test_weights_from_both_kinds_of_file(tmp_path: Path) -> None:
    state = fc(SIX)
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found, config = read_weights(tmp_path / name)
        assert config == {}
        assert all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize("reader", [read_weights, read_images, read_program], ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["torch", "torch-old", "pickle"])
def test_a_pickle_that_would_run_code_stays_shut(reader, how: str, tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "bad.pt"
    state = {"fc1.weight": torch.zeros(2, 2), "trap": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"safetensors|state_dict"):
        reader(path)
    assert not sprung.exists()


def test_an_array_of_objects_stays_shut(tmp_path: Path, sprung: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"numpy\.save"):
        read_images(tmp_path / "bad.npy")
    assert not sprung.exists()


def rewritten(path: Path, change) -> Path:
    """A copy of a zip file whose members went through change(name, bytes)."""
    target = path.with_name("bad.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item.filename)))
    return target


def test_an_exported_program_with_pickles_stays_shut(exported: tuple[Path, Path], sprung: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": Trap(sprung)}, buffer)
    swapped = rewritten(exported[0], lambda name, data: buffer.getvalue() if name.endswith("model.pt") else data)
    with pytest.raises(InputError, match="stays shut"):
        read_program(swapped)

    def pickled(name: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    with pytest.raises(InputError, match="pickled values"):
        read_program(rewritten(exported[0], pickled))

    def evil(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        return json.dumps(json.loads(data) | {"extra": {"expr_str": f"open('{sprung}', 'w')"}}).encode()

    with pytest.raises(InputError, match="no plain expression"):
        read_program(rewritten(exported[0], evil))
    assert not sprung.exists()


def test_images_from_files(tmp_path: Path) -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", images=x.numpy())
    torch.save(x, tmp_path / "x.pt")
    save_file({"x": x}, tmp_path / "x.safetensors")
    for suffix in ("npy", "npz", "pt", "safetensors"):
        assert torch.equal(read_images(tmp_path / f"x.{suffix}").long(), x)
    with pytest.raises(InputError, match="there is no file"):
        read_images(tmp_path / "none.npy")
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match="cannot be read"):
        read_images(tmp_path / "broken.npy")


@pytest.mark.parametrize("reader", [read_weights, read_images], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kept", [0, 7, 40, -1], ids=["empty", "7 bytes", "half a header", "one byte short"])
def test_a_damaged_safetensors_file_is_called_so(tmp_path: Path, reader: Callable[[Path], object], kept: int) -> None:
    save_file({"x": torch.zeros(3, 4)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:kept])
    with pytest.raises(InputError, match="no safetensors file, or damaged") as caught:
        reader(tmp_path / "x.safetensors")
    assert "pickle" not in str(caught.value)
