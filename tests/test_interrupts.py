"""Ctrl-C, kill and kill -9 on grids and notebooks, with real papermill: what runs is stopped, and goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid_lab import entry, light, start, wait_for, write_grid

from vaegap.lab import grid, notebook, runner, runs


def test_ctrl_c_on_a_notebook_says_how_to_go_on(project: Path) -> None:
    pytest.importorskip("papermill")
    given = ["--profile", "laptop", "-p", "steps", "400", "-p", "pause", "0.1"]
    process = start(
        "run", str(project / "notebooks/toy.ipynb"), *given, stderr=subprocess.PIPE, text=True, start_new_session=True
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
    process = start("run", str(path), "-j", "2", "--profile", "laptop")
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
    process = start("run", str(path), "--profile", "laptop")
    os.kill(running(project), signal.SIGKILL)
    assert process.wait(60) == 1
    (failure,) = (project / "results/_failed").glob("slow-*")
    assert "died" in (failure / "error.txt").read_text()
    (job,) = grid.load(path, "laptop")
    assert grid.state(job) == "failed"
    assert start("run", str(path), "--profile", "laptop").wait(60) == 0
    record = runs.find(job.run_ids[0])
    assert record is not None
    assert record.info["attempts"] == 2
    assert not failure.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_killed_runner_takes_its_notebooks_along(project: Path) -> None:
    path = write_grid(project, slow=entry(parameters={"steps": 400, "pause": 0.1}, profiles={"laptop": None}))
    process = start("run", str(path), "--profile", "laptop")
    kernel = running(project)
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{kernel}").exists(), 20)


# ---- what ends a process other than Ctrl-C --------------------------------------------------------------------------
@pytest.mark.parametrize("sign", notebook.ENDINGS)
def test_kill_and_a_closed_terminal_are_taken_as_ctrl_c(sign: signal.Signals) -> None:
    before = signal.getsignal(sign)
    with pytest.raises(KeyboardInterrupt), notebook.stopped_by_signals():
        os.kill(os.getpid(), sign)
        time.sleep(5)
    assert signal.getsignal(sign) is before


@pytest.mark.parametrize("sign", notebook.ENDINGS)
def test_kill_and_a_closed_terminal_stop_a_grids_jobs(sign: signal.Signals, project: Path) -> None:
    jobs = grid.load(write_grid(project, a=entry(parameters={"seed": [0, 1]})), "quick")

    def sleeper(job: grid.Job, results: Path) -> list[str]:
        os.kill(os.getpid(), sign)
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    assert [o.state for o in runner.run_jobs(jobs, command=sleeper)] == ["stopped", "stopped"]
    assert runs.state(jobs[0].run_ids[0]) == "missing"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_nohup_is_respected(project: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with notebook.stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        jobs = grid.load(write_grid(project, a=entry()), "quick")

        def closes(job: grid.Job, results: Path) -> list[str]:
            os.kill(os.getpid(), signal.SIGHUP)
            return light(job, results)

        assert [o.state for o in runner.run_jobs(jobs, command=closes)] == ["done"]
    finally:
        signal.signal(signal.SIGHUP, before)
