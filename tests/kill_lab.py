"""Kills computations with SIGKILL, again and again, and compares what they end with. Run by test_faults.py.

    python kill_lab.py SCENARIO KILLS SEED

A process of its own, because it forks: every attempt is a child that has all modules loaded already and so lives for
some hundredths of a second, which makes hundreds of kills affordable. It has no thread but its first one, and watches
over that: of a process that forks while others of its threads run, the children may wait for ever for a lock that
nobody holds. So CALM in test_faults.py keeps the libraries from starting threads, and runs are warmed up in a child.

Prints a summary as JSON; a difference is an AssertionError.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import toy_lab

from vaegap.lab import experiments, grid, locks, runner, runs
from vaegap.lab.experiments import Context, Experiment
from vaegap.lab.files import work_folder

Work = Callable[[], Any]
PATIENCE = 300.0  # seconds after which a child that nobody kills tells where it hangs
REPORT = Path(tempfile.gettempdir()) / f"kill_lab_{os.getpid()}.txt"  # a child's traceback


def attempt(work: Work, lifetime: float | None = None, event: int | None = None, folder: Path | None = None) -> bool:
    """Run `work` in a child; kill it after some seconds, or just before its n-th operation on files in a folder.

    Returns:
        Whether it came to its end.
    """
    threads = psutil.Process().num_threads()
    assert threads == 1, f"about to fork a process of {threads} threads: set what CALM in test_faults.py sets"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            report = open(REPORT, "w")
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=report)
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 2)
                os.dup2(null.fileno(), 1)
            if event is not None:
                sys.addaudithook(die_at(event, str(folder)))
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=report)
            report.flush()
        finally:
            os._exit(code)
    if lifetime is not None:
        deadline = time.monotonic() + lifetime
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return judge(status)
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    return judge(os.waitpid(pid, 0)[1])


def judge(status: int) -> bool:
    """Ended well, or killed; anything else is a bug."""
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"died of signal {os.WTERMSIG(status)}"
        return False
    assert os.WEXITSTATUS(status) == 0, "an attempt failed:\n" + REPORT.read_text()
    return True


def die_at(event: int, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that kills this process before its n-th operation on something in the folder."""
    seen = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name.partition(".")[0] in ("open", "os", "shutil") and any(folder in str(a) for a in arguments):
            seen += 1
            if seen > event:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def outcome(run_id: str, results: Path) -> Any:
    """What a run ended with, without times and ids of attempts; None while it is not done."""
    record = runs.find(run_id, results)
    if record is None:
        return None
    assert runs.state(run_id, results) in ("done", "running", "stale"), "a record that is there is done"
    table = record.rows[["metric", "image", "value", "mcse"]].to_json(double_precision=15)
    return [table, record.info["artifacts"]]


def outcomes(run_ids: Sequence[str], results: Path) -> list[Any]:
    """What several runs ended with."""
    return [outcome(name, results) for name in run_ids]


def locked(run_id: str, results: Path) -> bool:
    """Whether the next attempt has to wait."""
    return locks.holder(work_folder(results, run_id) / "lock") is not None


def every_operation(results: Path) -> int:
    """Die before each single operation on files in turn; each time the next attempt ends with the same record."""
    params = {"seed": 5, "steps": 4}
    name = experiments.identify(toy_lab.TOY, params, "laptop")

    def work(folder: Path) -> None:
        experiments.run(toy_lab.TOY, params, "laptop", folder)

    attempt(partial(work, results / "whole"))
    expected = outcome(name, results / "whole")
    for event in range(10_000):
        folder = results / f"r{event}"
        survived = attempt(partial(work, folder), event=event, folder=folder)
        assert outcome(name, folder) in (None, expected), f"half a record after operation {event}"
        assert not locked(name, folder), f"the dead hold the lock after operation {event}"
        if not survived:
            attempt(partial(work, folder), event=max(0, event - 5), folder=folder)  # a second death on the way
        assert outcome(name, folder) in (None, expected)
        assert attempt(partial(work, folder))
        assert outcome(name, folder) == expected, f"another result after operation {event}"
        leftovers = [p.name for p in folder.glob("*/*") if p.name.endswith(".tmp") and "gitignore" not in p.name]
        leftovers += [p.name for p in folder.glob("_work/*") if not p.name.startswith(".")]
        assert not leftovers, f"after operation {event}: {leftovers}"
        shutil.rmtree(folder)
        if survived:
            return event
    raise AssertionError("it never came to its end")


def kill_until_done(
    results: Path, work: Work, run_ids: Sequence[str], generator: random.Random, between: Callable[[Path], None]
) -> int:
    """Kill at random moments, until one attempt comes to its end; it ends as an undisturbed one does.

    Lives are parts of what an undisturbed run takes. That is measured again and again: where other programs slow the
    machine down meanwhile, lives that were cut from a quick moment would get nowhere.
    """
    took = partial(seconds, work)
    needed, tries = took(results / "whole"), 0
    expected = outcomes(run_ids, results / "whole")
    assert None not in expected
    while not attempt(partial(work, results / "killed"), lifetime=generator.uniform(0, 0.6 * needed)):
        tries += 1
        assert tries < 100, "it does not get on"
        between(results / "killed")
        for found, wanted in zip(outcomes(run_ids, results / "killed"), expected, strict=True):
            assert found in (None, wanted)
        if tries % 10 == 0:
            needed = took(results / f"again{tries}")
    assert outcomes(run_ids, results / "killed") == expected, f"another result after {tries} kills"
    return tries


def seconds(work: Work, folder: Path) -> float:
    """What an undisturbed run takes."""
    started = time.monotonic()
    assert attempt(partial(work, folder))
    return time.monotonic() - started


def one_run(results: Path, experiment: Experiment, seed: int, generator: random.Random) -> int:
    """Kill a run until it is done."""
    params = {"seed": seed}
    name = experiments.identify(experiment, params, "laptop")

    def work(folder: Path) -> None:
        experiments.run(experiment, params, "laptop", folder)

    def between(folder: Path) -> None:
        assert not locked(name, folder), "the dead hold the lock"

    return kill_until_done(results, work, [name], generator, between)


def training() -> Experiment:
    """A small VAE, trained with a checkpoint after each epoch."""
    import torch

    from vaegap import VAE
    from vaegap.lab import checkpoints
    from vaegap.lab.training import Schedule, train

    def compute(ctx: Context) -> list[dict[str, Any]]:
        seed = ctx.params["seed"]
        x = (torch.rand(200, 20, generator=torch.Generator().manual_seed(seed)) < 0.4).float()
        vae = VAE(20, 3, encoder_hidden=(16,), decoder_hidden=(16,), seed=seed)
        schedule = Schedule(epochs=8, batch_size=10)
        path = ctx.checkpoint()
        result = train(vae, x, schedule, seed=seed, checkpoint=path, checkpoint_seconds=0, progress=False)
        checkpoints.save_model(ctx.artifact("model.safetensors"), vae)  # its digest is compared: bit by bit the same
        return [
            {"metric": f"elbo_{i}", "value": row["elbo"], "unit": "nats"} for i, row in enumerate(result.history, 1)
        ]

    return Experiment("killed_training", compute, {"seed": 0})


def ais() -> Experiment:
    """AIS on blocks of images, each kept when it is done."""
    import torch

    import vaegap
    from vaegap.lab.protocols import measuring

    measuring._BLOCK = {"mlp": 3}
    vae = vaegap.VAE(20, 3, encoder_hidden=(16,), decoder_hidden=(16,), seed=0)

    def compute(ctx: Context) -> list[dict[str, Any]]:
        x = (torch.rand(15, 20, generator=torch.Generator().manual_seed(ctx.params["seed"])) < 0.4).float()

        def block(part: slice, seed: int) -> dict[str, torch.Tensor]:
            bound = vaegap.ais(vae, x[part], num_chains=4, num_temperatures=10, seed=seed)
            return {"log_p": bound.per_image, "mcse": bound.mcse_per_image}

        columns = measuring.in_blocks(ctx, "ais", len(x), block)
        pairs = zip(columns["log_p"].tolist(), columns["mcse"].tolist(), strict=True)
        return [
            {"metric": "log_p", "image": i, "value": v, "mcse": e, "unit": "nats"} for i, (v, e) in enumerate(pairs)
        ]

    return Experiment("killed_ais", compute, {"seed": 0})


def whole_grid(results: Path, generator: random.Random) -> int:
    """Kill the runner of a grid, and now and then its jobs too; the same command goes on each time."""
    tests = Path(__file__).parent
    jobs = [
        grid.Job(
            f"job{seed}", "job", "laptop", tests / "none.ipynb", {"seed": seed, "steps": 8, "pause": 0.02},
            (experiments.identify(toy_lab.TOY, {"seed": seed, "steps": 8, "pause": 0.02}, "laptop"),),
        )
        for seed in range(4)
    ]  # fmt: skip

    def command(job: grid.Job, folder: Path) -> list[str]:
        values = [str(job.parameters[name]) for name in ("seed", "steps", "pause")]
        return [sys.executable, str(tests / "toy_lab.py"), "laptop", *values, str(folder)]

    def work(folder: Path) -> None:
        ended = runner.run_jobs(jobs, folder, 2, command)
        assert {o.state for o in ended} <= {"done"}, ended

    def between(folder: Path) -> None:
        if generator.random() < 0.5:
            kill_holders(folder)
        deadline = time.monotonic() + PATIENCE
        while len(left := orphans(folder)) > 4:  # some may go on beside the next runner, but not ever more of them
            assert time.monotonic() < deadline, f"jobs that a dead runner left do not end: {left}"
            time.sleep(0.05)

    return kill_until_done(results, work, [job.run_ids[0] for job in jobs], generator, between)


def kill_holders(folder: Path) -> None:
    """Kill the jobs that a dead runner left running."""
    for lock in folder.glob("_work/*/lock"):
        who = locks.holder(lock)
        if who is not None and who.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(who.pid, signal.SIGKILL)


def orphans(folder: Path) -> list[int]:
    """The jobs that still run for this folder."""
    processes = psutil.process_iter(["cmdline", "status"])
    return [
        p.pid
        for p in processes
        if str(folder) in (p.info["cmdline"] or ()) and p.info["status"] != psutil.STATUS_ZOMBIE
    ]


def warm(results: Path, experiment: Experiment) -> None:
    """Import here, where it starts no threads, whatever a run imports on its way; its children then need not."""
    loaded = REPORT.with_suffix(".modules")

    def work() -> None:
        before = set(sys.modules)
        record = experiments.run(experiment, profile="laptop", results=results)
        assert len(record.rows)
        loaded.write_text("\n".join(set(sys.modules) - before))

    assert attempt(work)
    for name in sorted(loaded.read_text().split("\n")):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    loaded.unlink()


def main(scenario: str, kills: int, seed: int) -> None:
    """Run one scenario, again and again until there were enough kills."""
    generator, done, rounds = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        warm(Path(scratch) / "toy", toy_lab.TOY)
        experiment = {"training": training, "ais": ais}.get(scenario, lambda: toy_lab.TOY)()
        warm(Path(scratch) / "warm", experiment)
        while done < kills:
            rounds += 1
            results = Path(scratch) / f"round{rounds}"
            if scenario == "operations":
                done += every_operation(results)
            elif scenario == "grid":
                done += whole_grid(results, generator)
            else:
                done += one_run(results, experiment, rounds, generator)
    REPORT.unlink(missing_ok=True)
    print(json.dumps({"scenario": scenario, "kills": done}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
