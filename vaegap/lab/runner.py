"""Run the jobs of a grid on this machine, each notebook in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from vaegap.lab import grid, notebook
from vaegap.lab.errors import LabError
from vaegap.lab.files import find_results, find_root, scratch_folder, storage_errors
from vaegap.lab.grid import Job

__all__ = ["Outcome", "command_of", "run_jobs"]

_POLL = 0.1  # seconds
_REPORT = 60.0  # seconds between lines on what is running, in a log
_GRACE = 15.0  # seconds that a notebook has to shut its kernel down


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "done", "failed", "blocked" (a job before it failed) or "stopped".
        seconds: wall time.
        reason: what went wrong, or "".
    """

    job: Job
    state: str
    seconds: float
    reason: str = ""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    stream: IO[bytes]
    since: float


def command_of(job: Job, results: Path) -> list[str]:
    """The command that runs a job's notebook."""
    values = json.dumps(job.parameters)
    return [sys.executable, "-m", "vaegap.lab.notebook", str(job.notebook), str(grid.output_of(job, results)), values]


def run_jobs(
    jobs: Sequence[Job],
    results: str | os.PathLike[str] | None = None,
    parallel: int = 1,
    command: Callable[[Job, Path], list[str]] = command_of,
    refresh: bool = False,
    only: Collection[str] | None = None,
) -> list[Outcome]:
    """Run all jobs that are not done, some at a time, each after those it depends on.

    A job that fails leaves its notebook, its log and the traceback in `results/_failed/<job>/`; the others go on. On
    Ctrl-C (or SIGTERM, or SIGHUP) the running notebooks are stopped; their checkpoints stay.

    Args:
        jobs: from `grid.load`.
        results: the folder of the records.
        parallel: how many at a time; with more than one, each gets one thread.
        command: what runs a job.
        refresh: run jobs with stale records too, under any profile.
        only: ids of the jobs to run; all where it is not given. What they depend on is then taken as it is.

    Returns:
        One outcome for each job that had to run.

    Raises:
        StorageError: the folder of the records cannot be written to.
    """
    folder = find_results(results)
    chosen = [job for job in jobs if only is None or job.id in only]
    states = {job.id: grid.state(job, results, jobs) for job in chosen}
    waiting = grid.open_jobs(chosen, states, refresh)
    number = len(chosen)
    _say(f"{number - len(waiting)} of {number} jobs are done already, {len(waiting)} to run, {parallel} at a time")
    if not waiting:
        return []
    with storage_errors(folder, "the grid's files"):
        (scratch_folder(folder) / "logs").mkdir(exist_ok=True)
        (folder / "_work" / "notebooks").mkdir(exist_ok=True)
    with _progress(len(waiting)) as bar, _signals() as stopped:
        return _Loop(jobs, waiting, folder, results, parallel, command, refresh, bar, stopped).run()


class _Loop:
    """The runner's state: what waits, what runs, what came out."""

    def __init__(
        self,
        jobs: Sequence[Job],
        waiting: list[Job],
        folder: Path,
        results: str | os.PathLike[str] | None,
        parallel: int,
        command: Callable[[Job, Path], list[str]],
        refresh: bool,
        bar: Any,
        stopped: list[int],
    ) -> None:
        self.jobs, self.waiting, self.folder, self.parallel = jobs, waiting, folder, parallel
        self.command, self.refresh, self.bar, self.stopped = command, refresh, bar, stopped
        self.results = results  # as the caller named it: where it did not, a published record counts too
        self.total, self.running, self.outcomes = len(waiting), list[_Running](), list[Outcome]()
        self.reported = time.monotonic()

    def run(self) -> list[Outcome]:
        """Start, watch and collect until nothing is left, or until somebody stops us."""
        try:
            while (self.waiting or self.running) and not self.stopped:
                self._start_ready()
                for one in [r for r in self.running if r.process.poll() is not None]:
                    self._collect(one)
                self._report()
                time.sleep(_POLL)
        finally:
            self._stop_all()
        return self.outcomes

    def _start_ready(self) -> None:
        failed = {o.job.id for o in self.outcomes if o.state in ("failed", "blocked")}
        for job in [j for j in self.waiting if failed.intersection(j.depends)]:
            self.waiting.remove(job)
            self._end(Outcome(job, "blocked", 0.0, "a job that it depends on failed"))
        unfinished = {j.id for j in self.waiting} | {r.job.id for r in self.running}
        for job in [j for j in self.waiting if not unfinished.intersection(j.depends)]:
            if len(self.running) >= self.parallel:
                return
            self.waiting.remove(job)
            try:
                self._start(job)
            except (OSError, LabError) as error:  # a full disk, say: the other jobs may fare better
                self._end(Outcome(job, "failed", 0.0, f"could not be started: {error}"))

    def _start(self, job: Job) -> None:
        log = self.folder / "_work" / "logs" / f"{job.id}.log"
        environment = {**os.environ, "VAEGAP_RESULTS": str(self.folder), "PYTHONUNBUFFERED": "1"}
        if self.refresh:  # the notebook is what loads or computes
            environment["VAEGAP_REFRESH"] = "1"
        if self.parallel > 1:  # processes that each take all cores only stand in each other's way
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        stream = open(log, "wb")  # noqa: SIM115  # closed when the job ends
        try:
            process = subprocess.Popen(
                self.command(job, self.folder),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=find_root(),
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for us; we pass it on in good order
            )
        except BaseException:
            stream.close()
            raise
        self.running.append(_Running(job, process, log, stream, time.monotonic()))
        _say(f"start    {job.label}")

    def _collect(self, one: _Running) -> None:
        """A process has ended: is the record there?"""
        self.running.remove(one)
        one.stream.close()
        job, seconds = one.job, time.monotonic() - one.since
        try:
            reason = self._what_is_wrong(one)
        except (OSError, LabError) as error:
            reason = str(error)
        failures = self.folder / "_failed" / job.id
        if reason:
            self._keep_failure(one, failures, reason)
            self._end(Outcome(job, "failed", seconds, reason))
        else:
            shutil.rmtree(failures, ignore_errors=True)
            self._end(Outcome(job, "done", seconds))

    def _what_is_wrong(self, one: _Running) -> str:
        """Why a job whose process has ended is not done; "" if it is."""
        job, code = one.job, one.process.returncode
        if code != 0:
            said = _last_lines(one.log)
            full = f"its files cannot be written in {self.folder}: is the disk full?" * (code == notebook.NOT_WRITTEN)
            return said or full or f"ended with exit code {code}"
        if not job.run_ids:
            grid.write_stamp(job, self.jobs, self.folder)
        current = grid.state(job, self.results, self.jobs)
        if current in ("done", "stale"):
            return ""
        return f"the notebook ended without a record of {', '.join(job.run_ids)} (now {current})"

    def _keep_failure(self, one: _Running, target: Path, reason: str) -> None:
        with contextlib.suppress(OSError, LabError):  # the disk may be what failed
            scratch_folder(self.folder, "_failed")
            target.mkdir(parents=True, exist_ok=True)
            partial = notebook.partial_of(grid.output_of(one.job, self.folder))
            (target / "error.txt").write_text((notebook.traceback_of(partial) or reason) + "\n")
            shutil.copyfile(one.log, target / "log.txt")
            if partial.exists():
                os.replace(partial, target / "notebook.ipynb")

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.bar.update()
        left = self._left()
        text = f"[{len(self.outcomes)}/{self.total}] {outcome.state:8s} {outcome.job.label}, {outcome.seconds:.0f} s"
        _say(text + (f"; about {_duration(left)} left" if left else ""))
        if outcome.state == "failed":
            last = outcome.reason.strip().splitlines()[-1]
            kept = self.folder / "_failed" / outcome.job.id
            _say(f"         {last}" + f"\n         see {kept}" * kept.is_dir())

    def _left(self) -> float | None:
        if not self.waiting and not self.running:
            return None
        open_ids = {j.id for j in self.waiting} | {r.job.id for r in self.running}
        states = {j.id: "missing" if j.id in open_ids else "done" for j in self.jobs}
        states |= {o.job.id: "skipped" for o in self.outcomes if o.state != "done"}
        known = [j for j in self.jobs if states[j.id] != "skipped"]
        return grid.seconds_left(known, states, self.folder, self.parallel)

    def _report(self) -> None:
        """In a log, a line a minute on what runs: its age, and the last line that it printed."""
        if time.monotonic() - self.reported < _REPORT:
            return
        self.reported = time.monotonic()
        for one in self.running:
            line = (_last_lines(one.log, 1) or "").strip()[-100:]
            _say(f"running  {one.job.label}, {_duration(time.monotonic() - one.since)}" + f": {line}" * bool(line))

    def _stop_all(self) -> None:
        """Stop what still runs: politely, then for good."""
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for one in self.running:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(one.process.pid, signal.SIGKILL)
                one.process.wait()
            one.stream.close()
            self.outcomes.append(Outcome(one.job, "stopped", time.monotonic() - one.since))
        if self.running or self.waiting:
            _say(f"stopped with {len(self.running) + len(self.waiting)} jobs open; the same command goes on from here")
        self.outcomes += [Outcome(job, "stopped", 0.0) for job in self.waiting]
        self.running, self.waiting = [], []


def _last_lines(log: Path, count: int = 12) -> str:
    try:
        lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _say(text: str) -> None:
    """A line on the terminal above the bar, or in the log."""
    from tqdm import tqdm

    tqdm.write(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, unit="notebook", disable=None, dynamic_ncols=True) as bar:  # only on a terminal
        yield bar


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect what would end this process: Ctrl-C, kill, a closed terminal (unless nohup said to overlook it)."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    wanted = [n for n in (signal.SIGINT, *notebook.ENDINGS) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
