"""Runs: what a computation is called, whether it is done, and where its record is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaegap.lab import locks
from vaegap.lab.errors import RecordError
from vaegap.lab.files import find_results, find_root, work_folder
from vaegap.lab.records import COLUMNS, SCHEMA_VERSION, Record, canonical, read, write

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Record",
    "find",
    "list_folders",
    "list_records",
    "read",
    "run_id",
    "state",
    "write",
]


def run_id(experiment: str, params: Mapping[str, Any], profile: str, data: str = "", version: int = 1) -> str:
    """The name of a run, from what it computes. Source code is not part of it: a typo fix must not lose a day's work.

    Args:
        experiment: its name.
        params: all parameters that the numbers depend on.
        profile: "quick", "laptop" or "paper".
        data: a digest of its data.
        version: the experiment's protocol version, raised when it computes something else.

    Returns:
        "<experiment>-<profile>-<12 hexadecimal digits>", fit for a folder's name.

    Example:
        >>> run_id("gaps", {"seed": 0}, "quick") == run_id("gaps", {"seed": 1}, "quick")
        False
    """
    identity = [experiment, canonical(params), profile, data, version]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{experiment}-{profile}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def find(run_id: str, results: str | os.PathLike[str] | None = None) -> Record | None:
    """The record of a run, or None where it is not done.

    Args:
        run_id: its name.
        results: the folder to look in; by default `$VAEGAP_RESULTS`, then the published records.

    Raises:
        RecordError: there is one, but it is damaged or of a newer version.
    """
    for folder in _searched(results):
        if (folder / run_id / "record.parquet").is_file():
            return read(folder / run_id)
    return None


def list_records(results: str | os.PathLike[str] | None = None) -> list[Record]:
    """All valid records, own ones before published ones, each run once.

    Raises:
        RecordError: one of them is damaged or of a newer version.
    """
    return [read(folder) for folder in list_folders(results)]


def list_folders(results: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders of all records, own ones before published ones, each run once. They may be damaged."""
    found: dict[str, Path] = {}
    for folder in _searched(results):
        for path in sorted(folder.glob("[!_.]*/record.parquet")):
            found.setdefault(path.parent.name, path.parent)
    return list(found.values())


def state(run_id: str, results: str | os.PathLike[str] | None = None) -> str:
    """How a run stands: "done", "stale", "invalid", "running", "failed" or "missing"."""
    work = work_folder(find_results(results), run_id)
    try:
        record = find(run_id, results)
    except RecordError:
        return "invalid"
    if record is not None and not record.stale:
        return "done"  # also where somebody holds the lock: of a fresh record nobody computes anything, but only reads
    if locks.holder(work / "lock") is not None:
        return "running"
    if record is not None:
        return "stale"
    return "failed" if (work / "failed.json").is_file() else "missing"


def _searched(results: str | os.PathLike[str] | None) -> list[Path]:
    """Where to look for records: in the folder that was named, else in one's own and then in the published one."""
    if results is not None:
        return [find_results(results)]
    return list(dict.fromkeys([find_results(), find_root() / "results"]))
