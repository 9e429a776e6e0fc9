"""One process a run: who holds a lock, and when it is void."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from toy_runs import CALLS, ROOT, TOY, compute

from vaegap.lab import experiments, files, locks, runs
from vaegap.lab.errors import LockError
from vaegap.lab.experiments import Context, run

pytestmark = pytest.mark.usefixtures("fresh_calls")


def test_one_of_two_threads_computes(tmp_path: Path) -> None:
    def slow(ctx: Context) -> list[dict[str, Any]]:
        time.sleep(0.3)
        return compute(ctx)

    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(TOY, results=tmp_path, compute=slow).value("elbo")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0.5] * 4
    assert len(CALLS) == 1


def test_waiting_has_an_end(tmp_path: Path) -> None:
    name = experiments.identify(TOY)
    with locks.Lock(files.work_folder(tmp_path, name) / "lock"):
        assert runs.state(name, tmp_path) == "running"
        with pytest.raises(LockError, match=f"process {os.getpid()}"):
            run(TOY, results=tmp_path, wait=0.1)
    assert run(TOY, results=tmp_path, wait=0.1).value("elbo") == 0.5


def test_lock_of_a_dead_process_is_void(tmp_path: Path) -> None:
    path = tmp_path / "w" / "lock"
    code = "import os, pathlib, sys; from vaegap.lab import locks; locks.Lock(pathlib.Path(sys.argv[1])).acquire()"
    subprocess.run([sys.executable, "-c", f"{code}; os._exit(1)", str(path)], cwd=ROOT, check=False)
    assert path.exists()
    assert locks.holder(path) is None
    lock = locks.Lock(path)
    assert lock.try_acquire()
    lock.check()
    assert not locks.Lock(path).try_acquire()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (300.0, True), (700.0, False), (-300.0, True), (-1e7, False)])
def test_lock_of_another_host_counts_while_it_is_touched(tmp_path: Path, age: float, alive: bool) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "x", "since": 0.0, "token": "t"}))
    os.utime(path, (time.time() - age,) * 2)
    assert (locks.holder(path) is not None) is alive
    assert locks.Lock(path).try_acquire() is not alive


def test_lock_that_was_taken_over_stops_its_former_holder(tmp_path: Path) -> None:
    lock = locks.Lock(tmp_path / "lock")
    lock.acquire()
    (tmp_path / "lock").unlink()
    other = locks.Lock(tmp_path / "lock")
    other.acquire()
    with pytest.raises(LockError, match="took this run over"):
        lock.check()
    lock.release()
    other.check()
    other.release()


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_takes_a_new_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*names: object) -> None:
        raise PermissionError(1, "this disk knows no links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for _ in range(20):
        rivals = [locks.Lock(tmp_path / "lock") for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            taken = list(pool.map(locks.Lock.try_acquire, rivals))
        assert sum(taken) == 1
        rivals[taken.index(True)].release()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Else a process killed while it writes one leaves a lock that nobody holds, and the next attempt waits for it."""
    path, over, seen = tmp_path / "lock", threading.Event(), set()

    def watch() -> None:
        while not over.is_set():
            if (found := locks.holder(path)) is not None:
                seen.add(found.pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(300):
        with locks.Lock(path):
            pass
    over.set()
    watcher.join()
    assert seen == {os.getpid()}


def test_half_written_lock_is_respected_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert locks.holder(path) is not None
    os.utime(path, (time.time() - 60,) * 2)
    assert locks.holder(path) is None


def test_below_a_plain_file_nothing_is_locked(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder was meant")
    assert locks.holder(tmp_path / "results" / "_work" / "r" / "lock") is None
    assert runs.state(experiments.identify(TOY), tmp_path / "results") == "missing"


def test_a_fresh_record_is_done_though_another_process_still_reads_it(tmp_path: Path) -> None:
    """Of two grids on one folder, the one that waited holds the lock for a moment, and computes nothing."""
    name = run(TOY, results=tmp_path).run_id
    with locks.Lock(files.work_folder(tmp_path, name) / "lock"):
        assert runs.state(name, tmp_path) == "done"
