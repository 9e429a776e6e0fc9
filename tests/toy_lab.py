"""A stand-in experiment for the tests of grids and of kill -9: steps, a checkpoint after each, no torch to import."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from vaegap.lab import experiments
from vaegap.lab.experiments import Context, Experiment
from vaegap.lab.files import write_atomic


def compute(ctx: Context) -> list[dict[str, Any]]:
    """A sum of random numbers, drawn in steps: the result tells whether a resumed run is the very same one."""
    path = ctx.folder / "checkpoint.json"
    generator, total, step = random.Random(ctx.params["seed"]), 0.0, 0
    if path.exists():
        total, step, (version, state, gauss) = json.loads(path.read_text())
        generator.setstate((version, tuple(state), gauss))
    while step < ctx.params["steps"]:
        time.sleep(ctx.params["pause"])
        if step == ctx.params["fail_at"]:
            raise RuntimeError(f"told to fail at step {step}")
        total, step = total + generator.random(), step + 1
        write_atomic(path, json.dumps([total, step, generator.getstate()]).encode())
    ctx.artifact("total.txt").write_text(str(total))
    return [{"metric": "total", "value": total, "unit": "nats"}, {"metric": "steps", "value": step, "unit": "1"}]


TOY = experiments.register(
    Experiment("toysteps", compute, {"seed": 0, "steps": 3, "pause": 0.0, "fail_at": -1}, {"laptop": {"steps": 5}})
)

if __name__ == "__main__":  # what the tests start instead of a notebook: profile, seed, steps, pause, results
    profile, seed, steps, pause, results = sys.argv[1:]
    experiments.run(TOY, {"seed": int(seed), "steps": int(steps), "pause": float(pause)}, profile, Path(results))
