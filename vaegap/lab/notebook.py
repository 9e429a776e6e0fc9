"""Run one notebook with papermill, in this process.

`python -m vaegap.lab.notebook NOTEBOOK OUTPUT JSON` is what a grid starts for each of its jobs. Papermill's own status
lies after a killed kernel, so an output notebook gets its name only after a clean end; until then it is
`*.partial.ipynb`, which is also what a failure leaves to look at.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from vaegap.lab import locks, parameters
from vaegap.lab.errors import GridError, LabError, StorageError
from vaegap.lab.files import storage_errors

__all__ = ["ENDINGS", "NOT_WRITTEN", "execute", "partial_of", "stopped_by_signals", "traceback_of"]

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
NOT_WRITTEN = 3  # exit code of a job whose notebook could not be written, nor, on a full disk, any message


def partial_of(output: Path) -> Path:
    """The name of an output notebook while it is being made."""
    return output.with_name(f"{output.stem}.partial.ipynb")


def execute(
    notebook: str | os.PathLike[str],
    output: str | os.PathLike[str],
    values: Mapping[str, Any],
    cwd: str | os.PathLike[str] | None = None,
) -> None:
    """Check the parameters, run the notebook, and put the copy with its outputs in place.

    Of two processes that make the same copy, one waits for the other.

    Args:
        notebook: the source; it stays as it is.
        output: the copy with outputs.
        values: parameters, by name.
        cwd: the working folder of its code, by default this process's own.

    Raises:
        ParameterError: the notebook does not have such a parameter, or it is of another type.
        GridError: a cell failed, or its kernel died; the message holds the traceback, `partial_of(output)` the rest.
        StorageError: the copy cannot be written.
        KeyboardInterrupt: somebody stopped it.
    """
    parameters.check_values(parameters.read_notebook(notebook), values, f"notebook {Path(notebook).name}")
    output = Path(output)
    what = "the executed notebook (of a single one, -o FILE names another place)"
    lock = locks.Lock(output.with_name(f".{output.stem}.lock"), what=what)
    with storage_errors(output, what):
        lock.acquire(on_wait=lambda who: _say(f"waiting for process {who.pid} on {who.host}, which writes {output}"))
        try:
            _execute(notebook, output, values, cwd)
        finally:
            lock.release()


def _execute(
    notebook: str | os.PathLike[str], output: Path, values: Mapping[str, Any], cwd: str | os.PathLike[str] | None
) -> None:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException

    partial = partial_of(output)
    try:
        papermill.execute_notebook(
            os.fspath(notebook),
            os.fspath(partial),
            dict(values),
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=None if cwd is None else os.fspath(cwd),
            extra_arguments=["--IPKernelApp.log_level=50"],  # what fails in a cell is told; its own end is not news
        )
    except (PapermillException, CellTimeoutError, DeadKernelError) as error:
        reason = traceback_of(partial) or f"{type(error).__name__}: {error}"
        if reason.splitlines()[-1].startswith("KeyboardInterrupt"):  # a Ctrl-C reached the kernel before us
            raise KeyboardInterrupt from None
        raise GridError(f"{Path(notebook).name} failed; what it did is in {partial}\n{reason}") from None
    os.replace(partial, output)


def traceback_of(notebook: Path) -> str:
    """The traceback in an executed notebook, without colours; "" if no cell failed."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    for cell in cells:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"]))
    return ""


def _die_with_parent() -> None:
    """Linux: end when the runner that started us is killed, so that nothing computes on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # lets papermill shut its kernel down


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """What ends a process (kill, a job's end on a cluster, a closed terminal) is taken as Ctrl-C is."""
    before = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup: the terminal may be closed
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the notebook of a job; the exit code tells whether it ended well."""
    _die_with_parent()
    notebook, output, values = arguments
    try:
        with stopped_by_signals():
            execute(notebook, output, json.loads(values))
    except LabError as error:
        with contextlib.suppress(OSError):  # the log lies on the disk that is full
            print(error, file=sys.stderr)
        return NOT_WRITTEN if isinstance(error, StorageError) else 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def digest(notebook: Path) -> str:
    """A digest of a notebook's source."""
    return hashlib.sha256(notebook.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
