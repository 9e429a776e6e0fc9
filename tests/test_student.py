"""The students' lab notebooks: generated from the solutions, blank where they should be, and whole otherwise."""

from __future__ import annotations

import ast
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
from student import ANSWER, BLANK, LABS, MARK, blanked, written  # noqa: E402

each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.stem)


@each_lab
def test_student_version_is_up_to_date(lab: Path):
    assert LABS[lab].read_text() == written(lab), "run python workflow/student.py"


@each_lab
def test_student_version_is_the_solution_with_blanks(lab: Path):
    solution, student = (nbformat.read(path, as_version=4).cells for path in (lab, LABS[lab]))
    assert [c.id for c in student] == [c.id for c in solution]
    blanks = 0
    for theirs, ours in zip(student, solution, strict=True):
        known = set(ours.source.split("\n"))
        new = [line for line in theirs.source.split("\n") if line not in known]
        assert all(line.endswith(BLANK) or line == ANSWER for line in new), theirs.id
        assert not any(MARK.search(line) for line in theirs.source.split("\n"))
        blanks += len(new)
        if theirs.cell_type == "code":
            ast.parse(theirs.source)
    assert blanks >= 5


@each_lab
def test_marks_are_in_cells_with_the_tag(lab: Path):
    for cell in nbformat.read(lab, as_version=4).cells:
        marked = any(MARK.search(line) for line in cell.source.split("\n"))
        assert not marked or "solution" in cell.metadata.get("tags", []), cell.id


def test_blanks_keep_names_and_indents():
    source = "for i in x:\n    a = f(i)  # solution\n    g(a)  # solution\n    h(a)  # solution\nprint(a)"
    assert blanked(source) == f"for i in x:\n    a = {BLANK}\n    {BLANK}\nprint(a)"


@pytest.mark.slow
@each_lab
def test_solution_runs_within_three_minutes(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started, before = time.monotonic(), os.times()
    papermill.execute_notebook(
        lab,
        tmp_path / lab.name,
        {"profile": "quick"},
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=600,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    # processor time, where it is less: other work on this machine is no fault of the lab
    spent = os.times().children_user + os.times().children_system - before.children_user - before.children_system
    assert min(time.monotonic() - started, spent or 1e9) < 180
