"""What a run's scratch folder remembers over all attempts at it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from vaegap.lab import provenance
from vaegap.lab.files import scratch_folder, write_atomic

__all__ = ["Session", "empty"]


class Session:
    """What a run's scratch folder remembers over all attempts: time spent, and the code that the first one ran."""

    def __init__(self, work: Path) -> None:
        self._path, self._failed = work / "session.json", work / "failed.json"
        self._before, self._since = 0.0, time.monotonic()
        self.attempts, self.science, self.start = 1, dict[str, str](), ""
        self._begun = False

    def begin(self, keep: bool) -> bool:
        """Take up what an earlier attempt left, unless it ran other code and is cheap; True if there is anything."""
        self.science = provenance.science_modules()
        self.start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        scratch_folder(self._path.parents[2])
        self._failed.unlink(missing_ok=True)
        earlier = self._earlier()
        if earlier is not None and not keep and earlier["science"] != self.science:
            empty(self._path.parent)
            earlier = None
        if earlier is not None:  # the record then says that it is of the older code, and so stale
            self.science, self.start = earlier["science"], earlier["start"]
            self._before, self.attempts = earlier["seconds"], earlier["attempts"] + 1
        self._since, self._begun = time.monotonic(), True
        self.beat()
        return earlier is not None

    def _earlier(self) -> dict[str, Any] | None:
        """What the last attempt wrote; None where there was none. Damaged, its code counts as another one's."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = {}
        if not isinstance(found, dict):
            found = {}
        fresh: dict[str, Any] = {"seconds": 0.0, "attempts": 1, "start": self.start}
        fresh["science"] = dict.fromkeys(self.science, "unknown")
        return {name: found[name] if isinstance(found.get(name), type(v)) else v for name, v in fresh.items()}

    def seconds(self) -> float:
        """Wall time of all attempts; of a killed one up to its last sign of life."""
        return self._before + time.monotonic() - self._since

    def beat(self) -> None:
        """Write the time down."""
        if self._begun:
            state = {"seconds": self.seconds(), "attempts": self.attempts, "start": self.start, "science": self.science}
            write_atomic(self._path, json.dumps(state).encode(), "the run's state")

    def fail(self, error: Exception) -> None:
        """Leave a note for `vaegap status`."""
        note = {"error": f"{type(error).__name__}: {error}", "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with contextlib.suppress(Exception):
            write_atomic(self._failed, json.dumps(note).encode(), "a note on the failure")


def empty(work: Path) -> None:
    """Remove everything from a run's scratch folder but its lock, which goes last, with its holder."""
    for path in work.glob("*"):
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
