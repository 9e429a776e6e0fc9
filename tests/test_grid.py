"""Grids: the file, the jobs, the runner and the command line, with real papermill where it matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_lab
import yaml
from test_parameters import notebook
from typer.testing import CliRunner

from vaegap.lab import cli, experiments, grid, provenance, runner, runs
from vaegap.lab.errors import GridError
from vaegap.lab.grid import Job

ROOT = Path(__file__).parents[1]
NAMES = ("profile", "seed", "steps", "pause")
DECLARED = """profile: str = "quick"  # how large
seed: int = 0  # of the random numbers
steps: int = 3  # how many
pause: float = 0.0  # seconds a step
fail_at: int = -1  # step to fail at
"""
PRELUDE = f"""import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from vaegap.lab import experiments, parameters
parameters.check(globals(), profile=experiments.PROFILES)
import toy_lab"""
ASK = """record = experiments.run(
    "toysteps", dict(seed=seed, steps=steps, pause=pause, fail_at=fail_at), profile
)
print("the record", record.run_id)"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two notebooks, and results of its own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "workflow").mkdir()
    notebook(tmp_path / "notebooks/toy.ipynb", PRELUDE, ASK, declared=DECLARED)
    notebook(tmp_path / "notebooks/page.ipynb", "print('a page')", declared='profile: str = "quick"')
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path)
    return tmp_path


def write_grid(project: Path, **entries: Any) -> Path:
    path = project / "workflow/grid.yaml"
    path.write_text(yaml.safe_dump({"experiments": entries}, sort_keys=False))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    base = {"notebook": "notebooks/toy.ipynb", "experiment": "toysteps", "profiles": {"quick": None}}
    return base | changes


def light(job: Job, results: Path) -> list[str]:
    """Without papermill: the stand-in, in a plain Python process."""
    given = {"seed": 0, "steps": 3, "pause": 0.0, **job.parameters}
    if job.parameters.get("fail_at", -1) >= 0:
        return [sys.executable, "-c", "print('some output'); raise SystemExit('it broke')"]
    return [sys.executable, str(ROOT / "tests/toy_lab.py"), *(str(given[n]) for n in NAMES), str(results)]


# ---- the file -------------------------------------------------------------------------------------------------------
def test_combinations_profiles_and_dependencies(project: Path) -> None:
    path = write_grid(
        project,
        second=entry(depends=["first"], parameters={"seed": [0, 1], "steps": [2, 4]}),
        first=entry(
            parameters={"seed": [0, 1]},
            profiles={"quick": {"minutes": 1}, "laptop": {"parameters": {"seed": [0, 1, 2]}, "minutes": 9}},
        ),
    )
    jobs = grid.load(path, "quick")
    assert [(j.entry, j.parameters.get("seed"), j.parameters.get("steps")) for j in jobs] == [
        ("first", 0, None),
        ("first", 1, None),
        ("second", 0, 2),
        ("second", 0, 4),
        ("second", 1, 2),
        ("second", 1, 4),
    ]
    assert jobs[0].run_ids == (experiments.identify("toysteps", {"seed": 0}),)
    assert jobs[2].depends == (jobs[0].id,)
    assert jobs[5].depends == (jobs[1].id,)
    assert len({j.id for j in jobs}) == 6
    laptop = grid.load(path, "laptop")
    assert [j.parameters["seed"] for j in laptop] == [0, 1, 2]
    assert laptop[0].minutes == 9
    assert laptop[0].parameters["profile"] == "laptop"


@pytest.mark.parametrize(
    ("entries", "needed"),
    [
        ({"a": entry(notebook="notebooks/absent.ipynb")}, "entry 'a'.*no such notebook"),
        ({"a": entry(experiment="nosuch")}, "entry 'a'.*no experiment 'nosuch'"),
        ({"a": entry(parameters={"sede": 1})}, "entry 'a'.*no parameter 'sede'"),
        ({"a": entry(parameters={"seed": ["x"]})}, "entry 'a'.*'seed'.*must be int"),
        ({"a": entry(colour="red")}, "unknown keys colour"),
        ({"a": entry(profiles={"huge": {}})}, "profile must be one of"),
        ({"a": entry(profiles={"quick": {"hours": 1}})}, "unknown keys hours"),
        ({"a": entry(depends=["b"])}, "depends on 'b', which is not there"),
        ({"a": entry(depends=["b"]), "b": entry(depends=["a"])}, "in a circle: a -> b -> a"),
        ({"a": {"notebook": "n.ipynb"}}, "needs `notebook:` and `profiles:`"),
        ({"a": 3}, "must be a mapping"),
        ({"a/b": entry()}, "a/b.*letters, digits"),
        ({"..": entry()}, "begins with a letter or digit"),
        ({"a": entry(notebook=3)}, "needs `notebook:`.*a file"),
        ({"a": entry(profiles=["quick"])}, "needs `notebook:` and `profiles:`"),
        ({"a": entry(experiment=7)}, "experiment must be a list of names.*not 7"),
        ({"a": entry(depends=7)}, "depends must be a list of names.*not 7"),
        ({"a": entry(depends="xyz")}, "depends must be a list of names.*not 'xyz'"),
        ({"a": entry(parameters=["seed"])}, r"parameters must be a mapping.*not \['seed'\]"),
        ({"a": entry(parameters={"seed": []})}, "list of values of 'seed' is empty"),
        ({"a": entry(parameters={"seed": [1, 2, 1]})}, "'seed' has the same value twice"),
        ({"a": entry(profiles={"quick": {"minutes": "abc"}})}, "quick: minutes must be a number.*not 'abc'"),
        ({"a": entry(profiles={"quick": {"parameters": 3}})}, "quick: parameters must be a mapping"),
        ({"a": entry(profiles={"quick": 3})}, "quick must be a mapping"),
    ],
)
def test_wrong_grid_files(project: Path, entries: dict[str, Any], needed: str) -> None:
    with pytest.raises(GridError, match=f"(?s)grid.yaml.*{needed}"):
        grid.load(write_grid(project, **entries), "quick")


def test_unreadable_grid_files(project: Path) -> None:
    path = project / "workflow/grid.yaml"
    with pytest.raises(GridError, match="no such grid file"):
        grid.load(path, "quick")
    path.write_text("experiments: [")
    with pytest.raises(GridError, match="cannot be read"):
        grid.load(path, "quick")
    path.write_text("experiments: {}\nexperimets: {}")
    with pytest.raises(GridError, match="not also experimets"):
        grid.load(path, "quick")
    path.write_text("- a\n- b\n")
    with pytest.raises(GridError, match="one mapping"):
        grid.load(path, "quick")


# ---- the runner, without papermill ----------------------------------------------------------------------------------
def test_failures_are_kept_others_go_on_and_dependents_are_blocked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(
        project,
        good=entry(parameters={"seed": [1, 2]}),
        bad=entry(parameters={"seed": 3, "fail_at": 1}),
        after=entry(depends=["bad"], parameters={"seed": 3, "steps": 7, "fail_at": 1}),
    )
    jobs = grid.load(path, "quick")
    outcomes = {o.job.label: o for o in runner.run_jobs(jobs, parallel=2, command=light)}
    assert {label: o.state for label, o in outcomes.items()} == {
        "good seed=1": "done",
        "good seed=2": "done",
        "bad seed=3 fail_at=1": "failed",
        "after seed=3 steps=7 fail_at=1": "blocked",
    }
    kept = project / "results/_failed" / jobs[2].id
    assert "it broke" in (kept / "error.txt").read_text()
    assert "some output" in (kept / "log.txt").read_text()
    assert grid.state(jobs[2]) == "failed"
    out = capsys.readouterr().out
    assert "start    good seed=1" in out
    assert str(kept) in out
    started = time.monotonic()
    again = runner.run_jobs(grid.load(path, "quick"), command=light)
    assert {o.state for o in again} == {"failed", "blocked"}
    assert time.monotonic() - started < 10


def test_second_run_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_grid(project, a=entry(parameters={"seed": list(range(4))}))
    runner.run_jobs(grid.load(path, "quick"), parallel=2, command=light)
    before = {p: p.stat().st_mtime_ns for p in (project / "results").glob("toy*/*")}
    started = time.monotonic()
    assert runner.run_jobs(grid.load(path, "quick"), command=light) == []
    assert time.monotonic() - started < 2
    assert before == {p: p.stat().st_mtime_ns for p in (project / "results").glob("toy*/*")}
    assert "4 of 4 jobs are done already" in capsys.readouterr().out


def test_refresh_computes_stale_records_anew_under_any_profile(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vaegap.bounds  # noqa: F401  # so that the record names it

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "science_modules", lambda package=None: {"vaegap.bounds": "of old"})
        experiments.run(toy_lab.TOY, profile="laptop", results=project / "results")
    jobs = grid.load(write_grid(project, a=entry(profiles={"laptop": None})), "laptop")
    assert grid.state(jobs[0]) == "stale"
    assert runner.run_jobs(jobs, command=light) == []

    def whole(job: grid.Job, results: Path) -> list[str]:
        return [*light(job, results)[:2], job.profile, "0", "5", "0.0", str(results)]

    assert [o.state for o in runner.run_jobs(jobs, command=whole, refresh=True)] == ["done"]
    assert grid.state(jobs[0]) == "done"


def test_a_clean_exit_without_a_record_is_a_failure(project: Path) -> None:
    jobs = grid.load(write_grid(project, a=entry()), "quick")
    (outcome,) = runner.run_jobs(jobs, command=lambda job, results: [sys.executable, "-c", "pass"])
    assert outcome.state == "failed"
    assert "without a record" in outcome.reason


def test_pages_run_again_when_the_records_before_them_change(project: Path) -> None:
    def page(job: Job, results: Path) -> list[str]:
        target = str(grid.output_of(job, results))
        return light(job, results) if job.run_ids else [sys.executable, "-c", f"open({target!r}, 'w').write('x')"]

    path = write_grid(
        project,
        a=entry(),
        page={"notebook": "notebooks/page.ipynb", "depends": ["a"], "profiles": {"quick": None}},
    )
    assert [o.state for o in runner.run_jobs(grid.load(path, "quick"), command=page)] == ["done", "done"]
    assert runner.run_jobs(grid.load(path, "quick"), command=page) == []
    for file in (project / "results").glob("toy*/record.parquet"):
        file.unlink()
    assert len(runner.run_jobs(grid.load(path, "quick"), command=page)) == 2
    notebook(project / "notebooks/page.ipynb", "print('another page')", declared='profile: str = "quick"')
    assert [o.job.entry for o in runner.run_jobs(grid.load(path, "quick"), command=page)] == ["page"]


def test_time_left(project: Path) -> None:
    path = write_grid(project, a=entry(parameters={"seed": [0, 1, 2]}, profiles={"quick": {"minutes": 2}}))
    jobs = grid.load(path, "quick")
    states = {job.id: grid.state(job) for job in jobs}
    assert grid.seconds_left(jobs, states, project / "results", 2) == 180
    experiments.run(toy_lab.TOY, {"pause": 0.1}, results=project / "results")
    experiments.run(toy_lab.TOY, results=project / "results")
    states = {job.id: grid.state(job) for job in jobs}
    left = grid.seconds_left(jobs, states, project / "results")
    assert left is not None
    assert left < 5, "measured, not guessed"


# ---- the command line, with papermill -------------------------------------------------------------------------------
def command(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
    code = "import toy_lab; from vaegap.lab.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, **extra
    )


def test_grid_by_papermill_from_the_command_line(project: Path) -> None:
    pytest.importorskip("papermill")
    path = write_grid(
        project,
        good=entry(parameters={"seed": [1]}),
        bad=entry(parameters={"fail_at": 1}),
    )
    first = command("run", str(path), "--profile", "quick", "--jobs", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 done, 1 failed" in first.stdout
    (failure,) = (project / "results/_failed").glob("bad-*")
    assert "RuntimeError: told to fail at step 1" in (failure / "error.txt").read_text()
    assert json.loads((failure / "notebook.ipynb").read_text())["cells"]
    assert list((project / "results/_work/notebooks").glob("good-*.ipynb"))

    started = time.monotonic()
    listed = command("status", "--grid", str(path))
    assert time.monotonic() - started < 10
    assert "done     good seed=1" in listed.stdout, listed.stdout + listed.stderr
    assert "failed   bad fail_at=1  [RuntimeError: told to fail" in listed.stdout
    assert "time left" in listed.stdout
    counts = json.loads(command("status", "--grid", str(path), "--json").stdout)["counts"]
    assert counts == {"done": 1, "failed": 1}


def test_one_notebook_from_the_command_line(project: Path) -> None:
    pytest.importorskip("papermill")
    path = str(project / "notebooks/toy.ipynb")
    wrong = command("run", path, "-p", "sede", "1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no parameter 'sede'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "must be int" in command("run", path, "-p", "seed", "abc").stderr
    done = command("run", path, "-p", "seed", "6", "--parameter", "steps=2", "-o", str(project / "out.ipynb"), cwd="/")
    assert done.returncode == 0, done.stderr
    assert runs.find(experiments.identify("toysteps", {"seed": 6, "steps": 2})) is not None
    assert (project / "out.ipynb").exists()
    assert json.loads((project / "notebooks/toy.ipynb").read_text())["cells"][1]["outputs"] == []


@pytest.mark.parametrize("option", [["--jobs", "2"], ["--only", "a"]])
def test_options_of_grids_are_refused_for_notebooks(project: Path, option: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["run", str(project / "notebooks/toy.ipynb"), *option])
    assert done.exit_code == 2
    assert "--jobs and --only are for a grid file" in " ".join(done.output.replace("│", " ").split())


def test_dry_run_and_refresh_of_a_notebook(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str | None] = []
    monkeypatch.setattr(
        "vaegap.lab.notebook.execute", lambda *arguments: executed.append(os.environ.get("VAEGAP_REFRESH"))
    )
    monkeypatch.setenv("VAEGAP_REFRESH", "0")
    call = ["run", str(project / "notebooks/toy.ipynb"), "-p", "seed", "6"]
    said = CliRunner().invoke(cli.app, [*call, "--dry-run"])
    assert said.exit_code == 0 and executed == []
    assert "would run" in said.output and "seed=6, profile='quick'" in said.output
    assert CliRunner().invoke(cli.app, [*call, "--dry-run", "-p", "sede", "6"]).exit_code == 2
    assert not (project / "results").exists()
    CliRunner().invoke(cli.app, call)
    CliRunner().invoke(cli.app, [*call, "--refresh"])
    assert executed == ["0", "1"]


def test_status_and_run_look_into_the_same_folders(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments.run(toy_lab.TOY, profile="laptop", results=project / "results")  # a published one
    path = write_grid(project, a=entry(profiles={"laptop": None}))
    rest = [str(path), "--profile", "laptop", "--results", str(tmp_path / "own")]
    assert "1 of 1 jobs are done" in CliRunner().invoke(cli.app, ["run", *rest]).output
    monkeypatch.setenv("VAEGAP_RESULTS", str(project / "nothing"))
    assert "1 jobs: 1 done" in CliRunner().invoke(cli.app, ["status", "--grid", *rest]).output


@pytest.mark.parametrize("text", ["[]", '{"err', "{}", '{"error": ""}'])
def test_status_reads_a_damaged_note_on_a_failure(project: Path, text: str) -> None:
    with pytest.raises(RuntimeError):
        experiments.run(toy_lab.TOY, {"fail_at": 1}, results=project / "results")
    (note,) = (project / "results/_work").glob("toy*/failed.json")
    note.write_text(text)
    path = write_grid(project, a=entry(parameters={"fail_at": 1}))
    done = CliRunner().invoke(cli.app, ["status", "--grid", str(path)])
    assert done.exit_code == 0, done.output
    assert "cannot be read" in done.output


def test_status_says_what_is_wrong_with_an_invalid_record(project: Path) -> None:
    record = experiments.run(toy_lab.TOY, results=project / "results")
    (record.folder / "record.parquet").write_bytes(b"x")
    other = str(project / "results")
    done = CliRunner().invoke(cli.app, ["status", "--grid", str(write_grid(project, a=entry())), "--results", other])
    assert "invalid  a" in done.output and "record.parquet: cannot be read" in done.output
    assert f"--results {other}" in done.output, "the command that goes on"


def test_claims_know_the_profiles() -> None:
    done = CliRunner().invoke(cli.app, ["claims", "--profile", "foo"])
    assert done.exit_code == 2
    assert "'laptop'" in done.output


def test_ctrl_c_on_a_notebook_says_how_to_go_on(project: Path) -> None:
    pytest.importorskip("papermill")
    code = "import toy_lab; from vaegap.lab.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    given = ["--profile", "laptop", "-p", "steps", "400", "-p", "pause", "0.1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(project / "notebooks/toy.ipynb"), *given],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: bool(list((project / "results/_work").glob("toy*/checkpoint.json"))))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the kernel too
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; the same command goes on from its last checkpoint"
    assert "Traceback" not in said and "zmq" not in said


def test_interrupted_grid_stops_its_notebooks_and_goes_on_later(project: Path) -> None:
    pytest.importorskip("papermill")
    parameters = {"seed": 1, "steps": 40, "pause": 0.1}
    path = write_grid(project, slow=entry(parameters=parameters, profiles={"laptop": None}))
    code = "import toy_lab; from vaegap.lab.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(path), "-j", "2", "--profile", "laptop"], env=environment
    )
    wait_for(lambda: len(list((project / "results/_work").glob("toy*/checkpoint.json"))) == 1)
    pids = [json.loads(p.read_text())["pid"] for p in (project / "results/_work").glob("toy*/lock")]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    jobs = grid.load(path, "laptop")
    assert {grid.state(job) for job in jobs} <= {"missing", "failed"}
    for outcome in runner.run_jobs(jobs, parallel=2, command=light):
        assert outcome.state == "done"
        record = runs.find(outcome.job.run_ids[0])
        assert record is not None
        assert record.info["attempts"] == 2


def wait_for(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_help_is_everywhere_and_quick() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vaegap", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert time.monotonic() - started < 2
    for name in ("run", "status", "verify", "claims", "audit", "data"):
        assert name in done.stdout
        if name != "audit":  # passes its arguments on
            assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0


# ---- deaths that papermill does not report --------------------------------------------------------------------------
def start(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    code = "import toy_lab; from vaegap.lab.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, "-c", code, "run", str(path), *arguments], env=environment)


def running(project: Path) -> int:
    """The process that computes, once it has got somewhere."""
    work = project / "results/_work"
    wait_for(lambda: bool(list(work.glob("toy*/checkpoint.json"))))
    (lock,) = work.glob("toy*/lock")
    return int(json.loads(lock.read_text())["pid"])


@pytest.mark.slow
def test_killed_kernel_is_a_failure_and_the_run_goes_on(project: Path) -> None:
    parameters = {"steps": 40, "pause": 0.1}
    path = write_grid(project, slow=entry(parameters=parameters, profiles={"laptop": None}))
    process = start(path, "--profile", "laptop")
    os.kill(running(project), signal.SIGKILL)
    assert process.wait(60) == 1
    (failure,) = (project / "results/_failed").glob("slow-*")
    assert "died" in (failure / "error.txt").read_text()
    (job,) = grid.load(path, "laptop")
    assert grid.state(job) == "failed"
    assert start(path, "--profile", "laptop").wait(60) == 0
    record = runs.find(job.run_ids[0])
    assert record is not None
    assert record.info["attempts"] == 2
    assert not failure.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_killed_runner_takes_its_notebooks_along(project: Path) -> None:
    path = write_grid(project, slow=entry(parameters={"steps": 400, "pause": 0.1}, profiles={"laptop": None}))
    process = start(path, "--profile", "laptop")
    kernel = running(project)
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{kernel}").exists(), 20)
