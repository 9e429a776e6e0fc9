"""How many core-hours each profile of the grid takes, as a table for the book.

A job whose record is there counts with what it took (wall time times threads); the others with what finished jobs of
the same entry took on average, and where there are none with `minutes` of the grid file, a guess. The table keeps
measurements and guesses apart. `python workflow/hours.py` prints it; the book takes it when it is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vaegap.lab import experiments, grid, runs
from vaegap.lab.records import Record

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| profile | jobs | measured | their core-hours | core-hours guessed for the rest | longest job | on 50 cores |"


@dataclass(frozen=True)
class Cost:
    """What a job takes: core-hours, hours, and whether they were measured."""

    core_hours: float
    hours: float
    measured: bool


def measured(job: grid.Job, records: Mapping[str, Record]) -> Cost | None:
    """What a finished job took, or None."""
    found = [records[run] for run in job.run_ids if run in records]
    if not found or len(found) < len(job.run_ids):
        return None
    hours = [r.info.get("wall_seconds", 0.0) / 3600 for r in found]
    threads = [r.info.get("provenance", {}).get("threads") or 1 for r in found]
    return Cost(sum(h * t for h, t in zip(hours, threads, strict=True)), sum(hours), True)


def costs(jobs: Iterable[grid.Job], records: Mapping[str, Record]) -> dict[str, Cost]:
    """What each job takes, by its id."""
    jobs = list(jobs)
    known = {job.id: cost for job in jobs if (cost := measured(job, records)) is not None}
    out = {}
    for job in jobs:
        alike = [known[other.id] for other in jobs if other.entry == job.entry and other.id in known]
        guess = (job.minutes or 0) / 60
        if alike:
            guess = sum(cost.core_hours for cost in alike) / len(alike)
        out[job.id] = known.get(job.id, Cost(guess, guess, False))
    return out


def path_length(jobs: Iterable[grid.Job], cost: Mapping[str, Cost]) -> float:
    """Hours of the longest chain of jobs that wait for each other."""
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.id] = cost[job.id].hours + max((ends[before] for before in job.depends), default=0)
    return max(ends.values(), default=0)


def words(hours: float, known: bool = True) -> str:
    """A duration to be read; a guess says that it is one."""
    text = f"{60 * hours:.0f} min" if hours < 1.5 else f"{hours:.2g} h"
    return text if known else f"about {text}"


def row(profile: str, jobs: list[grid.Job], records: Mapping[str, Record]) -> str:
    """The line of a profile."""
    cost = costs(jobs, records)
    known = [c for c in cost.values() if c.measured]
    rest = [c for c in cost.values() if not c.measured]
    longest = max(cost.values(), key=lambda c: c.hours)
    wide = max(sum(c.hours for c in cost.values()) / 50, path_length(jobs, cost))
    cells = (
        f"`{profile}`",
        str(len(jobs)),
        str(len(known)),
        f"{sum(c.core_hours for c in known):.2g}" if known else "–",
        f"{sum(c.core_hours for c in rest):.2g}" if rest else "–",
        words(longest.hours, longest.measured),
        words(wide, not rest),
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table in Markdown."""
    records = {record.run_id: record for record in runs.list_records()}
    lines = [HEAD, "|---|---|---|---|---|---|---|"]
    for profile in experiments.PROFILES:
        jobs = grid.load(ROOT / "workflow" / "grid.yaml", profile)
        lines += [row(profile, jobs, records)] if jobs else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
