"""How many core-hours each profile of the grid takes, from `minutes` in the grid file, as a table for the book.

`python workflow/hours.py` prints it; with `--write` it replaces the one in book/reference/cluster.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vaegap.lab import experiments, grid

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "reference" / "cluster.md"
HEAD = "| profile | jobs | core-hours | longest job | all on 2 cores | all on 50 cores |"


def path_length(jobs: list[grid.Job]) -> float:
    """Minutes of the longest chain of jobs that wait for each other."""
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.id] = (job.minutes or 0) + max((ends[before] for before in job.depends), default=0)
    return max(ends.values(), default=0)


def words(minutes: float) -> str:
    """A duration to be read."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.2g} h"


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for profile in experiments.PROFILES:
        jobs = grid.load(ROOT / "workflow" / "grid.yaml", profile)
        minutes = [job.minutes or 0 for job in jobs]
        total = sum(minutes)
        wide = max(total / 50, path_length(jobs))
        cells = (f"`{profile}`", len(jobs), f"{total / 60:.2g}", *map(words, (max(minutes), total / 2, wide)))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    if "--write" not in sys.argv:
        print(table(), end="")
        return
    text = CHAPTER.read_text(encoding="utf-8")
    before, rest = text.split(HEAD, 1)
    after = rest[rest.index("\n\n") + 1 :]
    CHAPTER.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
