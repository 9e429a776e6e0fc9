"""Grid files of a stand-in notebook, and ways to run them, for the tests of grids, commands and Snakemake."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toy_lab
import yaml

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
COMMAND = "import toy_lab; from vaegap.lab.cli import app; app()"  # `vaegap`, with the stand-in experiment


def write_grid(project: Path, **entries: Any) -> Path:
    path = project / "workflow/grid.yaml"
    path.write_text(yaml.safe_dump({"experiments": entries}, sort_keys=False))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    base = {"notebook": "notebooks/toy.ipynb", "experiment": toy_lab.TOY.name, "profiles": {"quick": None}}
    return base | changes


def light(job: Job, results: Path) -> list[str]:
    """Without papermill: the stand-in, in a plain Python process."""
    given = {"seed": 0, "steps": 3, "pause": 0.0, **job.parameters}
    if job.parameters.get("fail_at", -1) >= 0:
        return [sys.executable, "-c", "print('some output'); raise SystemExit('it broke')"]
    return [sys.executable, str(ROOT / "tests/toy_lab.py"), *(str(given[n]) for n in NAMES), str(results)]


def surroundings() -> dict[str, str]:
    """The environment of a `vaegap` that knows the stand-in experiment."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def command(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
    """Run `vaegap` to its end."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=surroundings(), **extra
    )


def start(*arguments: str, **extra: Any) -> subprocess.Popen[Any]:
    """Start `vaegap`."""
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], env=surroundings(), **extra)


def wait_for(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
