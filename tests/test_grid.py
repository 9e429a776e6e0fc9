"""The runner of a grid, without papermill: failures, repetitions, pages, the time left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import toy_lab
from grid_lab import entry, light, write_grid
from notebook_lab import notebook

from vaegap.lab import experiments, grid, provenance, runner
from vaegap.lab.grid import Job


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
