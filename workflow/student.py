"""Make the students' version of a lab notebook from its solution version, so that the two cannot drift apart.

In cells with the tag `solution`, code lines that end with `# solution` become blanks (`name = ...  # your code here`),
and text becomes a place for an answer. Everything else is copied. `python workflow/student.py` writes all of them;
`--check` only tells whether they are up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LABS = {ROOT / "notebooks" / "lab_gaps.ipynb": ROOT / "book" / "course" / "lab_gaps_student.ipynb"}
MARK = re.compile(r"\s*# solution$")
ASSIGNED = re.compile(r"(\s*)([^=(]+?) = ")
BLANK = "...  # your code here"
ANSWER = "*Your answer:*"


def blanked(source: str) -> str:
    """The code of a cell with its marked lines blank; neighbouring lines without a name of their own share a blank."""
    out: list[str] = []
    for line in source.split("\n"):
        if not MARK.search(line):
            out.append(line)
            continue
        assigned = ASSIGNED.match(line)
        indent = line[: len(line) - len(line.lstrip())]
        blank = f"{assigned[1]}{assigned[2]} = {BLANK}" if assigned else indent + BLANK
        if assigned or not out or out[-1].strip() != BLANK:
            out.append(blank)
    return "\n".join(out)


def student_version(solution: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without solutions, outputs or tags that would give them away."""
    notebook = nbformat.from_dict(solution)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            cell.source = ANSWER if cell.cell_type == "markdown" else blanked(cell.source)
            cell.metadata["tags"] = [tag for tag in tags if tag != "solution"]
            if not cell.metadata["tags"]:
                del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def written(solution: Path) -> str:
    """The file that `student_version` makes, as text."""
    return nbformat.writes(student_version(nbformat.read(solution, as_version=4))) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if one is out of date")
    options = parser.parse_args()
    stale = [target for lab, target in LABS.items() if not target.exists() or target.read_text() != written(lab)]
    for lab, target in LABS.items():
        if target in stale:
            print(f"{target.relative_to(ROOT)}: {'out of date' if options.check else 'written'}")
            if not options.check:
                target.write_text(written(lab))
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
