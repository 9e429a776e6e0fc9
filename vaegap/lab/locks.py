"""One process a run: a lock file that survives kill -9, reboots and shared folders.

The lock is a file that names its holder: host, process, when that process started, and a random token. It is written
aside and linked into place, so that it is there whole or not at all, and for one process only (with O_EXCL where a disk
knows no links). Why a file and not fcntl: on the shared folders of clusters fcntl locks are often local to a node or
switched off, and say nothing about who holds them; links work there, and `vaegap status` can show the holder. What a
file costs is that nobody removes it for a killed process. So the holder touches it every few seconds. A lock is void

- at once, if its process is gone (same host), or another process has its number by now;
- after ten minutes without a touch, if it was made on another host; a touch more than that in the future was made by a
  clock that has been set back since.

A process that was only suspended for so long finds out, before it writes a record, that its token is no longer there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vaegap.lab.errors import LockError
from vaegap.lab.files import storage_errors

__all__ = ["Holder", "Lock", "holder"]

BEAT = 10.0  # seconds between touches
SILENT = 600.0  # seconds without a touch after which a holder on another host counts as gone
_WRITING = 10.0  # seconds that a holder may take to write its name into a new lock


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    started: str  # the process's own start, so that a recycled number is noticed
    since: float  # seconds of the epoch
    token: str


def holder(path: Path) -> Holder | None:
    """The live holder of a lock, or None where there is no lock or its holder is gone."""
    found = _read(path)
    return None if found is None or _gone(path, found) else found


class Lock:
    """The right to compute one run, held while in the `with` block.

    Args:
        path: the lock file; its folder is created.
        on_beat: called every few seconds while the lock is held.
        what: what cannot be written where the lock cannot, for the message.
    """

    def __init__(
        self, path: Path, on_beat: Callable[[], None] | None = None, what: str = "the lock of this run"
    ) -> None:
        self.path, self.token, self.what = path, uuid.uuid4().hex, what
        self._on_beat, self._stop = on_beat, threading.Event()
        self._thread: threading.Thread | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free or its holder is gone; False if somebody has it.

        Raises:
            StorageError: the lock's folder cannot be written to.
        """
        if self._create():
            self._thread = threading.Thread(target=self._beat, name="vaegap-lock", daemon=True)
            self._thread.start()
            return True
        found = _read(self.path)
        if found is not None and _gone(self.path, found):
            _remove(self.path, found)
            return self.try_acquire()
        return False

    def acquire(self, timeout: float | None = None, on_wait: Callable[[Holder], None] | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: seconds; for ever where it is not given.
            on_wait: called once, with the holder, if there is any waiting to do.

        Raises:
            LockError: it was not free in that time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while not self.try_acquire():
            other = holder(self.path)
            if other is not None and on_wait is not None:
                on_wait(other)
                on_wait = None
            if deadline is not None and time.monotonic() >= deadline:
                who = f"process {other.pid} on {other.host}" if other else "another process"
                raise LockError(f"{self.path.parent.name}: {who} is computing this run; wait for it, or end it")
            time.sleep(pause)
            pause = min(2.0, pause * 1.5)

    def check(self) -> None:
        """Make sure that we still hold the lock.

        Raises:
            LockError: somebody took it over while this process was suspended.
        """
        found = _read(self.path)
        if found is None or found.token != self.token:
            raise LockError(
                f"{self.path.parent.name}: another process took this run over while this one was suspended; "
                "its result will be there, this one leaves"
            )

    def release(self) -> None:
        """Give the lock back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        found = _read(self.path)
        if found is not None and found.token == self.token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _create(self) -> bool:
        name = json.dumps(asdict(Holder(_host(), os.getpid(), _start_of(os.getpid()), time.time(), self.token)))
        with storage_errors(self.path, self.what):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return not self.path.exists() and _write_new(self.path, name)
            except FileNotFoundError:  # the former holder is just tidying the folder away
                return False

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):
                found = _read(self.path)
                if found is not None and found.token == self.token:
                    os.utime(self.path)
            if self._on_beat is not None:
                with contextlib.suppress(Exception):  # a full disk must not end the heartbeat
                    self._on_beat()


def _write_new(path: Path, text: str) -> bool:
    """Write a file that is not there yet; False if another process was faster."""
    aside = path.with_name(f".new.{uuid.uuid4().hex}")
    try:
        aside.write_text(text)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError:  # no links on this disk: a process killed in the next two lines leaves an empty lock
            return _write_exclusively(path, text)
        return True
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _write_exclusively(path: Path, text: str) -> bool:
    try:
        with open(path, "x") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _host() -> str:
    """Where a process number means something: the host, and the container if we are in one."""
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = "4026531836"
    return socket.gethostname() + ("" if space == "4026531836" else f"#{space}")  # the number of the outermost one


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError):
        return Holder("", 0, "", 0.0, "")  # being written, or its writer was killed in between


def _gone(path: Path, found: Holder) -> bool:
    if found.host == _host():
        return _start_of(found.pid) != found.started
    return abs(_age(path)) > (SILENT if found.token else _WRITING)


def _age(path: Path) -> float:
    """Seconds since the lock was touched, by the clock of the disk it lies on (hosts' clocks differ)."""
    probe = path.with_name(f".clock.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _start_of(pid: int) -> str:
    """When a process started, as the system counts it (with the boot, which the count begins at); "" if it is gone."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "running"  # no /proc here: the number has to do
    return "" if state in "ZX" else f"{boot}-{rest[18]}"


def _remove(path: Path, found: Holder) -> None:
    """Remove a void lock, and only that one: of several processes that try, one succeeds."""
    aside = path.with_name(f".void.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except OSError:
        return
    moved = _read(aside)
    if moved is not None and moved.token != found.token:  # somebody was faster, and this is already the new lock
        with contextlib.suppress(OSError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
