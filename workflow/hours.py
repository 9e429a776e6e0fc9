"""How many core-hours each profile of the grid takes, from `minutes` in the grid file, as a table for the book.

`python workflow/hours.py` prints it; with `--write` it replaces the one in book/reference/cluster.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vaegap.lab import experiments, grid

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "reference" / "cluster.md"
HEAD = "| profile | jobs | core-hours | longest job | days on two cores | hours on 50 cores |"


def path_length(jobs: list[grid.Job]) -> float:
    """Minutes of the longest chain of jobs that wait for each other."""
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.id] = (job.minutes or 0) + max((ends[before] for before in job.depends), default=0)
    return max(ends.values(), default=0)


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for profile in experiments.PROFILES:
        jobs = grid.load(ROOT / "workflow" / "grid.yaml", profile)
        minutes = [job.minutes or 0 for job in jobs]
        total = sum(minutes)
        wide = max(total / 50, path_length(jobs))
        cells = (total / 60, max(minutes) / 60, total / 2 / 60 / 24, wide / 60)
        lines.append(f"| `{profile}` | {len(jobs)} | " + " | ".join(f"{cell:.2g}" for cell in cells) + " |")
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
