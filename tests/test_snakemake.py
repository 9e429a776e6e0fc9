"""The same grid file under Snakemake: the same records as the built-in runner's, failures kept, nothing lost.

Snakemake is an optional extra (requirements-cluster.txt) in an environment of its own: these tests take `$SNAKEMAKE`,
then .venv-cluster/bin/snakemake, then the one on the path. `VAEGAP_REQUIRE_SNAKEMAKE=1` makes its absence a failure.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_lab
import yaml
from grid_lab import ASK, DECLARED, PRELUDE, wait_for
from notebook_lab import notebook

from vaegap.lab import experiments, grid, runs

ROOT = Path(__file__).parents[1]
SNAKEFILE = ROOT / "workflow/Snakefile"
PROFILES = sorted((ROOT / "workflow/profiles").iterdir())


def find_snakemake() -> str:
    own = ROOT / ".venv-cluster/bin/snakemake"
    found = os.environ.get("SNAKEMAKE") or (str(own) if own.exists() else shutil.which("snakemake"))
    if not found:
        reason = "Snakemake is not installed: pip install -r requirements-cluster.txt (see book/reference/cluster.md)"
        if os.environ.get("VAEGAP_REQUIRE_SNAKEMAKE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Project:
    """A folder with a grid of toy experiments, and the two engines that can run it."""

    def __init__(self, folder: Path, entries: dict[str, Any]) -> None:
        self.folder, self.results = folder, folder / "results"
        (folder / "notebooks").mkdir(parents=True)
        notebook(folder / "notebooks/toy.ipynb", PRELUDE, ASK, declared=DECLARED)
        notebook(folder / "notebooks/page.ipynb", "print('a page')", declared='profile: str = "quick"\nseed: int = 0')
        self.grid = folder / "grid.yaml"
        self.grid.write_text(yaml.safe_dump({"experiments": entries}, sort_keys=False))
        (folder / "sitecustomize.py").write_text("import toy_lab\n")  # each Python of the project knows the toy
        path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" "$@"\n')
        self.python.chmod(0o755)

    def environment(self, results: Path) -> dict[str, str]:
        return os.environ | {"VAEGAP_RESULTS": str(results), "OMP_NUM_THREADS": "1"}

    def built_in(self, results: Path, profile: str = "quick") -> None:
        command = [str(self.python), "-m", "vaegap", "run", str(self.grid), "--profile", profile, "--jobs", "2"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment(results))
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self, *options: str, profile: str = "quick", **config: str) -> list[str]:
        config = {"profile": profile, "grid": str(self.grid), "python": str(self.python)} | config
        pairs = [f"{name}={value}" for name, value in config.items()]
        place = ["--directory", str(self.folder), "--nocolor"]
        return [find_snakemake(), "--snakefile", str(SNAKEFILE), *place, *options, "--config", *pairs]

    def snakemake(self, *options: str, profile: str = "quick", timeout: float = 300, **config: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*(options or ("--cores", "2")), profile=profile, **config),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(self.results),
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def jobs(self, profile: str = "quick") -> dict[str, grid.Job]:
        return {job.label: job for job in grid.load(self.grid, profile)}


def toy(profile: str = "quick", depends: list[str] | None = None, **parameters: Any) -> dict[str, Any]:
    base = {"notebook": "notebooks/toy.ipynb", "experiment": "toysteps", "parameters": parameters}
    return base | {"depends": depends or [], "profiles": {profile: {"minutes": 1}}}


def diamond() -> dict[str, Any]:
    page = {"notebook": "notebooks/page.ipynb", "depends": ["left", "right"], "profiles": {"quick": None}}
    left, right = toy(depends=["top"], seed=1, steps=[4, 5]), toy(depends=["top"], seed=1, steps=6)
    return {"top": toy(seed=1), "left": left, "right": right, "page": page}


def content(results: Path) -> dict[str, Any]:
    """What the records say: all rows and files, without run times, commits and machines."""
    return {
        r.run_id: [r.rows.to_json(double_precision=15, orient="split"), r.params, r.info["artifacts"]]
        for r in runs.list_records(results)
    }


def spent() -> float:
    """Processor seconds of all commands that were run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A diamond of jobs, run by Snakemake."""
    find_snakemake()
    project = Project(tmp_path_factory.mktemp("smk"), diamond())
    code, output = project.snakemake()
    assert code == 0, output
    return project, output


def test_same_records_as_the_built_in_runner(built: tuple[Project, str], tmp_path: Path) -> None:
    project, _ = built
    project.built_in(tmp_path / "other")
    expected = content(tmp_path / "other")
    assert len(expected) == 4
    assert content(project.results) == expected
    for job in project.jobs().values():
        assert grid.output_of(job, project.results).is_file(), "its executed notebook is kept"
        assert grid.state(job, project.results, list(project.jobs().values())) == "done"


def test_second_run_does_nothing(built: tuple[Project, str]) -> None:
    project, _ = built
    before = {p: p.stat().st_mtime_ns for p in project.results.glob("toy*/*")}
    used = spent()
    code, output = project.snakemake()
    assert spent() - used < 10, "seconds of processor time, which do not depend on what else runs here"
    assert code == 0
    assert "Nothing to be done" in output
    assert before == {p: p.stat().st_mtime_ns for p in project.results.glob("toy*/*")}


def test_both_engines_agree_on_what_is_to_do(built: tuple[Project, str]) -> None:
    project, _ = built
    lost = project.jobs()["left seed=1 steps=4"].run_ids[0]
    whole = content(project.results)
    shutil.rmtree(project.results / lost)
    code, output = project.snakemake("--dry-run")
    assert code == 0, output
    named = re.findall(r"^Job \d+: (.*)$", output, re.MULTILINE)
    assert named == ["left seed=1 steps=4", "page"], "the lost record, and the page that draws it"
    project.built_in(project.results)
    assert content(project.results) == whole
    code, output = project.snakemake()
    assert (code, "Nothing to be done" in output) == (0, True), output


def test_failures_are_kept_others_go_on_and_no_record_is_deleted(tmp_path: Path) -> None:
    project = Project(tmp_path, {})
    entries = {"good": toy(seed=[1, 2]), "bad": toy(seed=3, fail_at=1), "after": toy(depends=["bad"], seed=3, steps=9)}
    # a notebook that fails after its record was written
    notebook(tmp_path / "notebooks/late.ipynb", PRELUDE, ASK, "raise RuntimeError('cannot draw')", declared=DECLARED)
    entries["late"] = toy(seed=4) | {"notebook": "notebooks/late.ipynb"}
    project.grid.write_text(yaml.safe_dump({"experiments": entries}, sort_keys=False))
    code, output = project.snakemake("--cores", "2", "--keep-going")
    assert code == 1
    assert "told to fail at step 1" in output
    jobs = project.jobs()
    states = {label: grid.state(job, project.results) for label, job in jobs.items()}
    assert states == {
        "good seed=1": "done",
        "good seed=2": "done",
        "bad seed=3 fail_at=1": "failed",
        "after seed=3 steps=9": "missing",
        "late seed=4": "done",
    }
    kept = project.results / "_failed" / jobs["bad seed=3 fail_at=1"].id
    assert "RuntimeError: told to fail at step 1" in (kept / "error.txt").read_text()
    assert json.loads((kept / "notebook.ipynb").read_text())["cells"]
    code, output = project.snakemake("--cores", "2", only="good,late")
    assert (code, "Nothing to be done" in output) == (0, True), output


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_killed_snakemake_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    find_snakemake()
    project = Project(tmp_path, {"slow": toy("laptop", seed=1, steps=40, pause=0.1)})
    process = subprocess.Popen(
        project.command("--cores", "2", profile="laptop"), env=project.environment(tmp_path / "results"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    work = project.results / "_work"
    wait_for(lambda: bool(list(work.glob("toy*/checkpoint.json"))), 90)
    (lock,) = work.glob("toy*/lock")
    kernel = json.loads(lock.read_text())["pid"]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not Path(f"/proc/{kernel}").exists())
    assert runs.list_records(project.results) == []
    code, output = project.snakemake("--cores", "2", profile="laptop")
    assert code != 0
    assert "--unlock" in output
    assert project.snakemake("--unlock", profile="laptop")[0] == 0
    code, output = project.snakemake("--cores", "2", profile="laptop")
    assert code == 0, output
    (record,) = runs.list_records(project.results)
    assert record.info["attempts"] == 2
    whole = experiments.run(toy_lab.TOY, {"seed": 1, "steps": 40}, "laptop", tmp_path / "whole")
    assert record.value("total") == whole.value("total")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"profile": "huge"}, "huge"),
        ({"python": "/no/such/python"}, "name one: --config python=INTERPRETER"),
        ({"only": "nosuch"}, "no entry or job nosuch under the profile quick"),
        ({"grid": "/no/such/grid.yaml"}, "there is no such grid file"),
        ({"results": "/proc/nothing"}, "set VAEGAP_RESULTS to another folder"),
    ],
)
def test_wrong_settings(tmp_path: Path, config: dict[str, str], message: str) -> None:
    project = Project(tmp_path, {"a": toy()})
    code, output = project.snakemake(**config)
    assert code == 1
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("profile", PROFILES, ids=lambda folder: folder.name)
def test_profile_files(tmp_path: Path, profile: Path) -> None:
    project = Project(tmp_path, {"a": toy()})
    code, output = project.snakemake("--profile", str(profile), "--dry-run")
    assert code == 0, output
    assert "Job 1: a" in output
    assert ("gres=gpu:1" in output) == (profile.name == "slurm-gpu")
