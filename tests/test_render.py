"""What runs the book's notebooks: only what has changed, Ctrl-C at once, and nothing lost by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
import hours  # noqa: E402
import render  # noqa: E402

from vaegap.lab import captions, grid, runs  # noqa: E402

RUN = "toy-quick-0123456789ab"


class Project:
    """A folder with render.py and some notebooks, which run the code of the file beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("workflow", "notebooks", "results"):
            (root / folder).mkdir()
        for name in ("render.py", "hours.py"):
            shutil.copy(ROOT / "workflow" / name, root / "workflow")
        self.write("workflow/grid.yaml", "experiments: {}\n")
        self.write("workflow/book.yaml", "one: {profile: quick}\ntwo: {profile: quick}\nthree: {profile: quick}\n")
        self.write("claims.yaml", "[]\n")
        self.write("pyproject.toml", "")
        for name in ("one", "two", "three"):
            self.notebook(name, f"print({name!r})")

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def notebook(self, name: str, code: str) -> None:
        parameters = new_code_cell('profile: str = "quick"  # size', metadata={"tags": ["parameters"]})
        content = new_notebook(cells=[parameters, new_code_cell(code)])
        content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(content, self.root / "notebooks" / f"{name}.ipynb")

    def start(self, jobs: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "workflow/render.py", "--jobs", str(jobs)],
            cwd=self.root,
            env={**os.environ, "VAEGAP_RESULTS": str(self.root / "results")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def render(self) -> str:
        process = self.start(2)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def stamps(self) -> dict[str, dict[str, object]]:
        return json.loads((self.root / "_build" / "stamps.json").read_text())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_interrupt_ends_at_once_and_keeps_what_is_done(project: Project):
    waits = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(300)"
    project.notebook("two", waits)
    process = project.start()
    wait_for(lambda: (project.root / "pid").exists() and (project.root / "pid").read_text() != "")
    kernel = int((project.root / "pid").read_text())
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert time.monotonic() - started < 15
    assert "stopped" in output and "three: done" not in output
    assert set(project.stamps()) == {"one"}
    wait_for(lambda: not Path(f"/proc/{kernel}").exists(), 15)
    project.notebook("two", "print('two')")
    again = project.render()
    assert "2 of 3 notebooks to run ['two', 'three']" in again


def test_only_what_has_changed_runs_again(project: Project):
    project.notebook("two", f"print({RUN!r})")  # it shows a record, or says that there is none
    assert "3 of 3" in project.render()
    assert "0 of 3" in project.render()
    project.write(f"results/{RUN}/run.json", "{}")
    assert "1 of 3 notebooks to run ['two']" in project.render()
    assert (project.root / "_build/source/extra/results" / RUN / "run.json").exists()
    project.write("results/toy-quick-ffffffffffff/run.json", "{}")
    assert "0 of 3" in project.render()
    project.write("claims.yaml", "[{}]\n")
    assert "3 of 3" in project.render()


def test_what_judges_claims_runs_again_with_every_new_record_of_its_profile(project: Project):
    project.write("workflow/book.yaml", "one: {profile: laptop}\ntwo: {profile: laptop}\nthree: {profile: quick}\n")
    for name in ("two", "three"):
        project.notebook(name, "# tables.verdicts('C1', profile=profile)")
    assert "3 of 3" in project.render()
    project.write("results/toy-laptop-ffffffffffff/run.json", "{}")
    assert "1 of 3 notebooks to run ['two']" in project.render()
    project.write("results/toy-quick-ffffffffffff/run.json", "{}")
    assert "0 of 3" in project.render()


def test_a_failure_is_told_and_tried_again(project: Project):
    project.notebook("three", "raise ValueError('no such digit')")
    process = project.start(2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "three: FAILED" in output and "no such digit" in output
    assert set(project.stamps()) == {"one", "two"}


def test_figures_are_numbered_once():
    picture = new_output("display_data", {"image/png": "iVBOR"})
    under = new_output("display_data", {"text/html": "<p>run</p>"})
    numbered = {"mystnb": {"figure": {"caption": "A figure."}}}
    drawn = new_code_cell("draw()", metadata=numbered, outputs=[picture, under])
    empty = new_code_cell("draw()", metadata={"mystnb": {"figure": {"caption": "A figure."}}}, outputs=[under])
    content = new_notebook(cells=[drawn, empty])
    render.settle(content)
    assert [cell.outputs for cell in content.cells] == [[picture], [under], [under]]
    assert [("figure" in cell.metadata.get("mystnb", {})) for cell in content.cells] == [True, False, False]
    nbformat.validate(content)


def test_a_figure_says_what_was_drawn_and_of_which_data():
    said = {captions.SVG: {"alt": "MNIST: approximation 1.25.", "data": ["MNIST", "Fashion-MNIST"]}}
    picture = new_output("display_data", {"image/png": "iVBOR"}, metadata=said)
    settings = {"mystnb": {"figure": {"caption": "Gaps."}, "image": {"alt": "Bars. In nats:"}}}
    content = new_notebook(cells=[new_code_cell("draw()", metadata=settings, outputs=[picture])])
    render.settle(content)
    assert content.cells[0].metadata["mystnb"] == {
        "figure": {"caption": "Gaps. Data: MNIST, Fashion-MNIST."},
        "image": {"alt": "Bars. In nats: MNIST: approximation 1.25."},
    }


# ---- core-hours -----------------------------------------------------------------------------------------------------
def job(name: str, entry: str, run: str, minutes: float = 60) -> grid.Job:
    return grid.Job(name, entry, "laptop", Path("x"), {}, (run,), minutes=minutes)


def record(run: str, seconds: float, threads: int) -> runs.Record:
    return runs.Record(run, None, {"wall_seconds": seconds, "provenance": {"threads": threads}}, Path())  # type: ignore[arg-type]


def test_measured_hours_stand_apart_from_guesses():
    jobs = [job("a", "gaps", "r1"), job("b", "gaps", "r2"), job("c", "flows", "r3", minutes=30)]
    cost = hours.costs(jobs, {"r1": record("r1", 1800, 2)})
    assert cost["a"] == hours.Cost(1.0, 0.5, True)
    assert cost["b"] == hours.Cost(1.0, 1.0, False), "like its finished neighbour, not like the guess"
    assert cost["c"] == hours.Cost(0.5, 0.5, False)
    row = hours.row("laptop", jobs, {"r1": record("r1", 1800, 2)})
    assert row == "| `laptop` | 3 | 1 | 1 | 1.5 | about 60 min | about 60 min |"
    assert "about" not in hours.row("laptop", jobs[:1], {"r1": record("r1", 1800, 2)})
