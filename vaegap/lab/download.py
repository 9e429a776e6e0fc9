"""Downloading the raw files through torchvision, into a scratch folder first: nothing is left half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vaegap.lab.errors import DataError
from vaegap.lab.sources import AMAT_URL, RawFile, Source, as_published, digest_of

__all__ = ["DownloadError", "fetch"]

_TIMEOUT = 20  # seconds without an answer after which a network counts as absent


class DownloadError(DataError):
    """The reason, in a few words, why a data set could not be downloaded."""


def fetch(source: Source, root: Path) -> None:
    """Download all files of a data set into `root`, which is made where it does not exist.

    Files that are there already stay untouched.

    Raises:
        DownloadError: no network, a wrong digest, no room, or a folder that cannot be written to.
    """
    made = _missing_folders(root)
    complete = False
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch, _impatient():
            _download(source, Path(scratch))
            for raw in {as_published(part) for parts in source.splits.values() for part in parts}:
                _move_in(Path(scratch), root, raw)
        complete = True
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"downloading failed: {error.strerror or error}") from None
    finally:
        if not complete:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _missing_folders(root: Path) -> list[Path]:
    return [folder for folder in (root, *root.parents) if not folder.exists()]


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """A firewall that swallows packets must not hang us for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(source: Source, scratch: Path) -> None:
    try:
        import torchvision.datasets
        from torchvision.datasets.utils import download_url
    except ImportError:
        raise DownloadError("downloading needs torchvision: pip install torchvision") from None
    try:
        if source.torchvision:
            getattr(torchvision.datasets, source.torchvision)(str(scratch), download=True)
        else:
            for split in ("train", "valid", "test"):
                name = f"binarized_mnist_{split}.amat"
                download_url(AMAT_URL + name, str(scratch / "BinarizedMNIST"), name)
    except Exception as error:  # whatever torchvision and the network throw; the last of its lines tells what
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DownloadError(f"downloading failed: {lines[-1] if lines else type(error).__name__}") from None


def _move_in(scratch: Path, root: Path, raw: RawFile) -> None:
    new, target = scratch / raw.path, root / raw.path
    if target.is_file():
        return
    if not new.is_file() or digest_of(new.read_bytes(), raw.digest) != raw.digest:
        raise DownloadError(f"the downloaded {new.name} does not have the digest {raw.digest}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(os.fspath(new), os.fspath(target))
