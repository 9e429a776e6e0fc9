"""Kills computations with SIGKILL, again and again, and compares what they end with. Run by test_faults.py.

    python kill_lab.py SCENARIO KILLS SEED

A process of its own, because it forks: every attempt is a child that has all modules loaded already and so lives for
some hundredths of a second, which makes hundreds of kills affordable. Prints a summary as JSON; a difference is an
AssertionError.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import toy_lab

from vaegap.lab import experiments, grid, locks, runner, runs
from vaegap.lab.experiments import Context, Experiment
from vaegap.lab.files import work_folder

Work = Callable[[], Any]
REPORT = Path(tempfile.gettempdir()) / f"kill_lab_{os.getpid()}.txt"  # a child's traceback


def attempt(work: Work, lifetime: float | None = None, event: int | None = None, folder: Path | None = None) -> bool:
    """Run `work` in a child; kill it after some seconds, or just before its n-th operation on files in a folder.

    Returns:
        Whether it came to its end.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 2)
                os.dup2(null.fileno(), 1)
            if event is not None:
                sys.addaudithook(die_at(event, str(folder)))
            work()
            code = 0
        except BaseException:
            REPORT.write_text(traceback.format_exc())
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


def at_random(results: Path, experiment: Experiment, kills: int, generator: random.Random) -> int:
    """Kill at random moments until there were enough of them; each run ends as an undisturbed one does."""
    done = seed = 0
    while done < kills:
        seed += 1
        params = {"seed": seed}
        name = experiments.identify(experiment, params, "laptop")

        def work(folder: Path, params: dict[str, Any] = params) -> None:
            experiments.run(experiment, params, "laptop", folder)

        def took(folder: Path) -> float:
            started = time.monotonic()
            assert attempt(partial(work, folder))
            return time.monotonic() - started

        needed, tries, folder = took(results / "whole"), 0, results / "killed"
        expected = outcome(name, results / "whole")
        while not attempt(partial(work, folder), lifetime=generator.uniform(0, 0.6 * needed)):
            done, tries = done + 1, tries + 1
            assert outcome(name, folder) in (None, expected)
            assert not locked(name, folder), "the dead hold the lock"
            assert tries < 100, "it does not get on"
            if tries % 10 == 0:  # other programs may slow the machine by now: too short a life would get nowhere
                needed = took(results / f"again{seed}-{tries}")
        assert outcome(name, folder) == expected, f"seed {seed}: another result after {tries} kills"
    return done


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
    from vaegap.lab.protocols import decompositions

    decompositions._BLOCK = {"mlp": 3}
    vae = vaegap.VAE(20, 3, encoder_hidden=(16,), decoder_hidden=(16,), seed=0)

    def compute(ctx: Context) -> list[dict[str, Any]]:
        x = (torch.rand(15, 20, generator=torch.Generator().manual_seed(ctx.params["seed"])) < 0.4).float()

        def block(part: slice, seed: int) -> dict[str, torch.Tensor]:
            bound = vaegap.ais(vae, x[part], num_chains=4, num_temperatures=10, seed=seed)
            return {"log_p": bound.per_image, "mcse": bound.mcse_per_image}

        columns = decompositions.in_blocks(ctx, "ais", len(x), block)
        pairs = zip(columns["log_p"].tolist(), columns["mcse"].tolist(), strict=True)
        return [
            {"metric": "log_p", "image": i, "value": v, "mcse": e, "unit": "nats"} for i, (v, e) in enumerate(pairs)
        ]

    return Experiment("killed_ais", compute, {"seed": 0})


def whole_grid(results: Path, kills: int, generator: random.Random) -> int:
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

    assert attempt(partial(work, results / "whole"))
    expected = [outcome(job.run_ids[0], results / "whole") for job in jobs]
    done = round_ = 0
    while done < kills:
        round_ += 1
        folder = results / f"killed{round_}"
        while not attempt(partial(work, folder), lifetime=generator.uniform(0.1, 2.0)):
            done += 1
            if generator.random() < 0.5:
                kill_holders(folder)
            for job, wanted in zip(jobs, expected, strict=True):
                assert outcome(job.run_ids[0], folder) in (None, wanted)
        assert [outcome(job.run_ids[0], folder) for job in jobs] == expected
    return done


def kill_holders(folder: Path) -> None:
    """Kill the jobs that a dead runner left running."""
    for lock in folder.glob("_work/*/lock"):
        who = locks.holder(lock)
        if who is not None and who.pid:
            os.kill(who.pid, signal.SIGKILL)


def main(scenario: str, kills: int, seed: int) -> None:
    """Run one scenario."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch)
        experiments.run(toy_lab.TOY, results=results / "warm")  # loads what all children will need
        if scenario == "operations":
            done = every_operation(results)
        elif scenario == "grid":
            done = whole_grid(results, kills, generator)
        else:
            import torch

            torch.set_num_threads(1)
            experiment = training() if scenario == "training" else ais()
            experiments.run(experiment, profile="laptop", results=results / "warm")
            done = at_random(results, experiment, kills, generator)
    REPORT.unlink(missing_ok=True)
    print(json.dumps({"scenario": scenario, "kills": done}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
