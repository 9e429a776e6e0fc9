"""Where things lie, and how to write a file so that it is either wholly there or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from vaegap.lab.errors import StorageError

__all__ = [
    "data_root",
    "find_results",
    "find_root",
    "scratch_folder",
    "storage_errors",
    "work_folder",
    "write_atomic",
    "write_together",
]

_MARKS = ("workflow/grid.yaml", "notebooks")  # what a checkout of this project has, beside its pyproject.toml


def data_root() -> Path:
    """The folder of the data sets: `$VAEGAP_DATA`, or `~/.cache/vaegap`."""
    named = os.environ.get("VAEGAP_DATA")
    return Path(named).expanduser() if named else Path("~/.cache/vaegap").expanduser()


def find_root(start: str | os.PathLike[str] | None = None) -> Path:
    """The project's root folder, from anywhere.

    Looks upwards from `start` (the working folder where it is not given), then beside the installed package (an
    editable install lies in its checkout); where neither is a checkout, the working folder itself is the root.

    Args:
        start: where to begin looking.

    Returns:
        An absolute path.
    """
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if _is_checkout(folder):
            return folder
    return here


def _is_checkout(folder: Path) -> bool:
    """Whether this project lies here, and not another one that has notebooks too."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    ours = re.search(r'^name\s*=\s*"vaegap"', text, re.MULTILINE) or (folder / "vaegap" / "__init__.py").is_file()
    return bool(ours) and any((folder / mark).exists() for mark in _MARKS)


def find_results(results: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the records: `results`, else `$VAEGAP_RESULTS`, else `results/` in the project's root."""
    named = results or os.environ.get("VAEGAP_RESULTS")
    return Path(named).expanduser().resolve() if named else find_root() / "results"


def work_folder(results: Path, run_id: str) -> Path:
    """The scratch folder of a run (lock, checkpoints), on the same disk as its record."""
    return results / "_work" / run_id


def scratch_folder(results: Path, name: str = "_work") -> Path:
    """A folder inside the results that git leaves alone; made where it is missing."""
    folder = results / name
    if not (folder / ".gitignore").is_file():
        write_atomic(folder / ".gitignore", b"*\n", "the scratch folder's .gitignore")
    return folder


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str], what: str = "the file") -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear message.

    Args:
        path: what is being written; the message names it.
        what: what it is, in words.

    Raises:
        StorageError: for a full disk, a used-up quota, a read-only or forbidden folder.
    """
    try:
        yield
    except OSError as error:
        cause = {
            errno.ENOSPC: "the disk is full; free some space and run it again",
            errno.EDQUOT: "your disk quota is used up; free some space and run it again",
            errno.EROFS: "the folder is read-only; set VAEGAP_RESULTS to a folder that you can write to",
            errno.EACCES: "you may not write there; set VAEGAP_RESULTS to a folder that you can write to",
            errno.EPERM: "you may not write there; set VAEGAP_RESULTS to a folder that you can write to",
        }.get(error.errno or 0)
        if cause is None and isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError):
            cause = "its folder cannot be made there; set VAEGAP_RESULTS to a folder that you can write to"
        if cause is None:
            cause = f"{error.strerror or error}"
        raise StorageError(f"{path}: cannot write {what}: {cause}. Nothing was left half-written.") from None


def write_atomic(path: str | os.PathLike[str], data: bytes, what: str = "the file") -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it into place.

    A crash at any moment leaves either the old file or the new one, never a mixture; a failed write leaves the old
    one and no temporary file.

    Args:
        path: the file; its folder is created where it is missing.
        data: all of its bytes.
        what: what it is, for the message.

    Raises:
        StorageError: the disk is full or the folder cannot be written to.
    """
    write_together({Path(path): data}, what)


def write_together(files: Mapping[Path, bytes], what: str = "the files") -> None:
    """Write several files as `write_atomic` does one; none is put into place before all are on the disk.

    Args:
        files: what each one holds, in the order in which they are put into place.
        what: what they are, for the message.

    Raises:
        StorageError: the disk is full or a folder cannot be written to; that leaves all files as they were.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            with storage_errors(path, what):
                path.parent.mkdir(parents=True, exist_ok=True)
                staged[path] = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
                with open(staged[path], "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
        for path, temporary in staged.items():
            with storage_errors(path, what):
                os.replace(temporary, path)
    except BaseException:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system lets us."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
