"""What can go wrong on a machine: kill -9, full disks, read-only folders, damaged files. Nothing is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_lab
from notebook_lab import notebook as make_notebook

from vaegap.lab import checkpoints, experiments, grid, locks, notebook, records, runner, runs, schema
from vaegap.lab.errors import CheckpointError, RecordError, StorageError
from vaegap.lab.experiments import Context, run

TESTS = Path(__file__).parent
FEW = {"operations": 1, "training": 20, "ais": 15, "grid": 15}  # 50 at random moments, and one before each operation
MANY = {"training": 80, "ais": 60, "grid": 60}

CALM = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def kill(scenario: str, kills: int, seed: int = 0) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_lab.py"), scenario, str(kills), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | CALM,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("scenario", "kills"), FEW.items())
def test_killed_runs_resume_to_the_same_record(scenario: str, kills: int) -> None:
    assert kill(scenario, kills)["kills"] >= kills


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "kills"), MANY.items())
def test_killed_two_hundred_times(scenario: str, kills: int) -> None:
    assert kill(scenario, kills, seed=1)["kills"] >= kills


# ---- full and read-only disks ---------------------------------------------------------------------------------------
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a small disk of its own in memory, where the system lets us mount one."""
    point = tmp_path / "disk"
    point.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a disk is not permitted here")
        return point

    yield mount
    subprocess.run(["umount", str(point)], capture_output=True, check=False)


def fill(folder: Path) -> Path:
    """Use up all room."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as stream:
        for size in (4096, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue
    return ballast


def test_full_disk_leaves_the_old_checkpoint(disk: Callable[..., Path]) -> None:
    path = disk("size=256k") / "c.safetensors"
    checkpoints.save(path, {"w": torch.ones(1000)}, {"epoch": 1})
    with pytest.raises(StorageError, match=f"(?s){path}.*the checkpoint.*disk is full.*free some space"):
        checkpoints.save(path, {"w": torch.ones(1_000_000)}, {"epoch": 2})
    tensors, meta = checkpoints.load(path)
    assert meta == {"epoch": 1}
    assert torch.equal(tensors["w"], torch.ones(1000))
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_full_disk_at_the_end_of_a_run(disk: Callable[..., Path]) -> None:
    results = disk("size=400k")
    computed: list[bool] = []

    def compute(ctx: Context) -> list[dict[str, Any]]:
        computed.append(ctx.resumed)
        rows = toy_lab.compute(ctx)
        if not ctx.resumed:
            fill(results)
        return rows

    with pytest.raises(StorageError, match="disk is full"):
        run(toy_lab.TOY, profile="laptop", results=results, compute=compute)
    name = experiments.identify(toy_lab.TOY, profile="laptop")
    assert runs.state(name, results) in ("missing", "failed")
    assert (results / "_work" / name / "checkpoint.json").exists(), "what was computed is kept"
    assert not [p for p in results.rglob("*.tmp")]
    (results / "ballast").unlink()
    record = run(toy_lab.TOY, profile="laptop", results=results, compute=compute)
    assert computed == [False, True]
    assert record.value("steps") == 5


def test_full_disk_before_a_grid(disk: Callable[..., Path]) -> None:
    results = disk("size=64k")
    fill(results)
    job = grid.Job("j", "j", "quick", TESTS / "none.ipynb", {}, (experiments.identify(toy_lab.TOY),))
    with pytest.raises(StorageError, match="disk is full"):
        runner.run_jobs([job], results)


def toy_jobs(number: int, entry: str = "j") -> list[grid.Job]:
    names = [experiments.identify(toy_lab.TOY, {"seed": seed}) for seed in range(number)]
    return [grid.Job(f"{entry}{i}", entry, "quick", TESTS / "none.ipynb", {}, (n,)) for i, n in enumerate(names)]


def one_toy(job: grid.Job, results: Path) -> list[str]:
    return [sys.executable, str(TESTS / "toy_lab.py"), "quick", job.id[1:], "3", "0.0", str(results)]


def test_disk_that_fills_up_while_a_grid_runs(disk: Callable[..., Path]) -> None:
    results = disk("size=400k")

    def command(job: grid.Job, folder: Path) -> list[str]:
        if not (results / "ballast").exists():
            fill(results)
        return [sys.executable, "-c", "raise SystemExit(1)"]

    assert [o.state for o in runner.run_jobs(toy_jobs(3), results, command=command)] == ["failed"] * 3


@pytest.mark.parametrize("broken", ["_failed", "_work/logs/j1.log"])
def test_what_cannot_be_written_for_one_job_does_not_end_the_grid(tmp_path: Path, broken: str) -> None:
    """A plain file where a folder has to be, or the other way round: writing fails as it does on a full disk."""
    path = tmp_path / broken
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if broken == "_failed" else path.mkdir()

    def command(job: grid.Job, folder: Path) -> list[str]:
        fails = broken == "_failed" and job.id == "j1"
        return [sys.executable, "-c", "raise SystemExit('it broke')"] if fails else one_toy(job, folder)

    outcomes = {o.job.id: o for o in runner.run_jobs(toy_jobs(3), tmp_path, command=command)}
    assert {name: o.state for name, o in outcomes.items()} == {"j0": "done", "j1": "failed", "j2": "done"}
    assert ("it broke" if broken == "_failed" else "could not be started") in outcomes["j1"].reason


def test_a_page_whose_note_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "notebook.ipynb").write_text("{}")
    page = grid.Job("page", "page", "quick", tmp_path / "notebook.ipynb", {})
    grid.output_of(page, tmp_path).with_suffix(".stamp").mkdir(parents=True)
    outcomes = runner.run_jobs(
        [page, *toy_jobs(1)], tmp_path, command=lambda job, folder: one_toy(toy_jobs(1)[0], folder)
    )
    assert [o.state for o in outcomes] == ["failed", "done"]
    assert "the note on what a page was made from" in outcomes[0].reason


def test_a_command_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    (outcome,) = runner.run_jobs(toy_jobs(1), tmp_path, command=lambda job, folder: ["/nowhere/python"])
    assert outcome.state == "failed"
    assert "could not be started" in outcome.reason


def test_read_only_results(disk: Callable[..., Path]) -> None:
    results = disk("size=1m")
    record = run(toy_lab.TOY, results=results)
    subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
    assert run(toy_lab.TOY, results=results).value("total") == record.value("total"), "reading needs no writing"
    computed: list[int] = []
    with pytest.raises(StorageError, match="(?s)read-only; set VAEGAP_RESULTS.*half-written"):
        run(toy_lab.TOY, {"seed": 1}, results=results, compute=lambda ctx: computed.append(1) or [])
    assert computed == [], "it is said before hours are spent"


def test_results_where_nobody_can_write() -> None:
    with pytest.raises(StorageError, match="VAEGAP_RESULTS"):
        run(toy_lab.TOY, {"seed": 1}, results="/proc/nothing/results")


def test_a_notebook_on_a_full_or_read_only_disk(disk: Callable[..., Path], project: Path) -> None:
    results, source = disk("size=64k"), project / "notebooks/page.ipynb"
    fill(results)
    with pytest.raises(StorageError, match="the executed notebook.*-o FILE names another place.*disk is full"):
        notebook.execute(source, results / "page.ipynb", {})
    (results / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
    with pytest.raises(StorageError, match="the executed notebook.*read-only"):
        notebook.execute(source, results / "page.ipynb", {})


def test_a_disk_that_fills_up_while_a_notebook_runs(disk: Callable[..., Path], project: Path) -> None:
    pytest.importorskip("papermill")
    results = disk("size=400k")
    filling = f"""with open({str(results / "ballast")!r}, "wb", buffering=0) as stream:
    try:
        while stream.write(b"x"):
            pass
    except OSError:
        print("the disk is full" * 10_000)"""
    make_notebook(project / "notebooks/page.ipynb", filling)
    with pytest.raises(StorageError, match="the executed notebook.*disk is full"):
        notebook.execute(project / "notebooks/page.ipynb", results / "page.ipynb", {})
    assert not (results / "page.ipynb").exists()


def test_a_grid_says_that_its_disk_is_full_where_no_log_can(disk: Callable[..., Path], project: Path) -> None:
    results = disk("size=400k")

    def command(job: grid.Job, folder: Path) -> list[str]:
        if not (results / "ballast").exists():
            fill(results)
        job = replace(job, notebook=project / "notebooks/page.ipynb", parameters={})
        return runner.command_of(job, folder)

    (outcome,) = runner.run_jobs(toy_jobs(1), results, command=command)
    assert outcome.state == "failed"
    assert outcome.reason == f"its files cannot be written in {results}: is the disk full?"


def test_two_processes_do_not_write_one_copy_at_a_time(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began = threading.Event()
    monkeypatch.setattr(notebook, "_execute", lambda *arguments: began.set())
    arguments = (project / "notebooks/page.ipynb", tmp_path / "out.ipynb", {})
    with locks.Lock(tmp_path / ".out.lock"):
        second = threading.Thread(target=notebook.execute, args=arguments)
        second.start()
        assert not began.wait(0.3)
    second.join(20)
    assert began.is_set()
    assert f"waiting for process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / ".out.lock").exists()


# ---- damaged files --------------------------------------------------------------------------------------------------
def test_truncated_checkpoint_stops_a_run_with_its_cure(tmp_path: Path) -> None:
    def compute(ctx: Context) -> list[dict[str, Any]]:
        if ctx.checkpoint().exists():
            checkpoints.load(ctx.checkpoint())
        else:
            checkpoints.save(ctx.checkpoint(), {"w": torch.ones(100)})
            raise KeyboardInterrupt
        return [{"metric": "m", "value": 1.0, "unit": "nats"}]

    with pytest.raises(KeyboardInterrupt):
        run(toy_lab.TOY, profile="laptop", results=tmp_path, compute=compute)
    (path,) = tmp_path.rglob("checkpoint.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(CheckpointError, match=f"(?s){path}: is truncated.*rm {path}"):
        run(toy_lab.TOY, profile="laptop", results=tmp_path, compute=compute)
    path.write_bytes(whole)
    assert run(toy_lab.TOY, profile="laptop", results=tmp_path, compute=compute).value("m") == 1.0


def test_record_of_a_newer_schema_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = schema.SCHEMA_VERSION + 1
    for module in (schema, records):
        monkeypatch.setattr(module, "SCHEMA_VERSION", newer)
    folder = run(toy_lab.TOY, results=tmp_path).folder
    monkeypatch.undo()
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RecordError, match="newer vaegap"):
        run(toy_lab.TOY, results=tmp_path)
    assert before == {p: p.read_bytes() for p in folder.iterdir()}
