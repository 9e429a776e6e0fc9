"""The jobs of a grid file (`gridfile` tells how it is written), and how far each of them is."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaegap.errors import InputError
from vaegap.lab import experiments, gridfile, notebook, parameters, records, runs
from vaegap.lab.errors import GridError, RecordError
from vaegap.lab.files import find_results, scratch_folder, write_atomic
from vaegap.lab.records import canonical

__all__ = ["Job", "load", "open_jobs", "output_of", "seconds_left", "stamp", "state", "to_do"]


@dataclass(frozen=True)
class Job:
    """One notebook with one set of parameters.

    Attributes:
        id: entry, profile and a digest of the rest.
        entry: its entry in the grid file.
        profile: "quick", "laptop" or "paper".
        notebook: the source.
        parameters: what papermill is given, the profile included.
        run_ids: the runs whose records show that it is done; empty for a page that only draws.
        depends: ids of the jobs before it.
        minutes: the grid file's guess at its duration.
    """

    id: str
    entry: str
    profile: str
    notebook: Path
    parameters: dict[str, Any]
    run_ids: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    minutes: float | None = None

    @property
    def label(self) -> str:
        """The entry and its parameters, to be read."""
        values = " ".join(f"{name}={value}" for name, value in self.parameters.items() if name != "profile")
        return f"{self.entry} {values}".strip()


def load(path: str | os.PathLike[str], profile: str) -> list[Job]:
    """All jobs of a grid file under a profile, each after those it depends on.

    Raises:
        GridError: the file is wrong; the message names the entry and what is expected.
    """
    path = Path(path)
    if profile not in experiments.PROFILES:
        raise GridError(f"profile must be one of {', '.join(experiments.PROFILES)}, not {profile!r}")
    entries = gridfile.read(path, experiments.PROFILES)
    jobs: dict[str, list[Job]] = {}
    for name in gridfile.ordered(path, entries):
        entry = entries[name]
        if profile in entry["profiles"]:
            jobs[name] = [_with_depends(job, entry, jobs) for job in _expand(path, name, entry, profile)]
    return [job for group in jobs.values() for job in group]


def _expand(path: Path, name: str, entry: Mapping[str, Any], profile: str) -> list[Job]:
    settings = entry["profiles"][profile]
    values = {**(entry.get("parameters") or {}), **(settings.get("parameters") or {})}
    lists = {key: _as_list(value) or [None] for key, value in values.items()}
    source = (path.parent / entry["notebook"]).resolve()
    if not source.exists():  # paths are relative to the grid file's folder or to the one above it
        source = (path.parent.parent / entry["notebook"]).resolve()
    jobs = []
    for combination in itertools.product(*lists.values()):
        given = {**dict(zip(lists, combination, strict=True)), "profile": profile}
        try:
            parameters.check_values(parameters.read_notebook(source), given, f"notebook {source.name}")
            run_ids = tuple(_run_id(each, given, profile) for each in _as_list(entry.get("experiment")))
        except (InputError, GridError) as error:
            raise GridError(f"{path}: entry {name!r}: {error}") from None
        text = json.dumps([name, entry["notebook"], canonical(given)], sort_keys=True)
        job_id = f"{name}-{profile}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        jobs.append(Job(job_id, name, profile, source, given, run_ids, minutes=settings.get("minutes")))
    return jobs


def _run_id(experiment: str, given: Mapping[str, Any], profile: str) -> str:
    """The run that the notebook will ask for: it passes on those of its parameters that the experiment has."""
    known = experiments.get(experiment)
    return experiments.identify(known, {k: v for k, v in given.items() if k in known.defaults}, profile)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _with_depends(job: Job, entry: Mapping[str, Any], jobs: Mapping[str, Sequence[Job]]) -> Job:
    """The job with the ids of the jobs before it: of each entry it depends on, those that agree with it."""
    before = [
        other.id
        for name in entry.get("depends") or []
        for other in jobs.get(name, [])
        if all(job.parameters[k] == v for k, v in other.parameters.items() if k in job.parameters)
    ]
    return replace(job, depends=tuple(before))


def output_of(job: Job, results: Path) -> Path:
    """Where the job's executed notebook is kept."""
    return results / "_work" / "notebooks" / f"{job.id}.ipynb"


def state(job: Job, results: str | os.PathLike[str] | None = None, jobs: Sequence[Job] = ()) -> str:
    """How a job stands: "done", "stale", "invalid", "running", "failed" or "missing".

    A job is done when the records of its runs are there and valid; nothing that papermill wrote is asked.

    Args:
        job: the job.
        results: the folder of the records.
        jobs: all jobs, which a page that only draws is compared with.
    """
    folder = find_results(results)
    failed = (folder / "_failed" / job.id).is_dir()
    if not job.run_ids:
        path = output_of(job, folder)
        current = path.is_file() and _read_stamp(path) == stamp(job, jobs, folder)
        return "done" if current else "failed" if failed else "missing"
    states = {runs.state(run_id, results) for run_id in job.run_ids}
    for each in ("running", "invalid", "failed", "missing", "stale"):
        if each in states:
            return "failed" if each == "missing" and failed else each
    return "done"


def to_do(job: Job, current: str) -> bool:
    """Whether a job in this state has to run: stale records are computed anew under `quick` only."""
    return current not in ({"done"} if job.profile == "quick" else {"done", "stale"})


def open_jobs(jobs: Sequence[Job], states: Mapping[str, str], refresh: bool = False) -> list[Job]:
    """The jobs that have to run, in order; among them pages that are up to date now, but draw what is computed anew.

    Args:
        jobs: all jobs.
        states: of each, by id.
        refresh: jobs with stale records have to run under any profile.
    """
    first = {j.id for j in jobs if to_do(j, states[j.id]) or (refresh and states[j.id] == "stale")}
    return [j for j in jobs if j.id in first or (not j.run_ids and first.intersection(j.depends))]


def stamp(job: Job, jobs: Sequence[Job], results: Path) -> str:
    """What a page that only draws was made from: its notebook, its parameters, and the records before it."""
    before = [run_id for other in jobs if other.id in job.depends for run_id in other.run_ids]
    tokens = []
    for run_id in before:
        try:
            record = runs.find(run_id, results)
            tokens.append(record.info["table_token"] if record else "")
        except RecordError:
            tokens.append("invalid")
    text = json.dumps([notebook.digest(job.notebook), canonical(job.parameters), tokens])
    return hashlib.sha256(text.encode()).hexdigest()


def write_stamp(job: Job, jobs: Sequence[Job], results: Path) -> None:
    """Note what a page was made from, beside it."""
    scratch_folder(results)
    text = stamp(job, jobs, results)
    write_atomic(output_of(job, results).with_suffix(".stamp"), text.encode(), "the note on what a page was made from")


def _read_stamp(path: Path) -> str:
    try:
        return path.with_suffix(".stamp").read_text()
    except OSError:
        return ""


def seconds_left(jobs: Sequence[Job], states: Mapping[str, str], results: Path, parallel: int = 1) -> float | None:
    """A guess at the time until all jobs are done: as long as finished ones of the same entry took.

    Returns:
        Seconds, or None where nothing is known about some unfinished job.
    """
    took: dict[str, list[float]] = {}
    for job in jobs:
        if states[job.id] in ("done", "stale") and job.run_ids:
            found = [record for run_id in job.run_ids if (record := _readable(run_id, results)) is not None]
            if found:
                took.setdefault(job.entry, []).append(sum(r.info.get("wall_seconds", 0.0) for r in found))
    total = 0.0
    for job in jobs:
        if to_do(job, states[job.id]):
            known = took.get(job.entry)
            guess = sum(known) / len(known) if known else None if job.minutes is None else 60 * job.minutes
            if guess is None:
                return None
            total += guess
    return total / max(1, parallel)


def _readable(run_id: str, results: Path) -> records.Record | None:
    """The record of a run; None too where it is damaged, for a guess can do without it."""
    try:
        return runs.find(run_id, results)
    except RecordError:
        return None
