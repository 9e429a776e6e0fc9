"""A stand-in experiment that counts its calls, for the tests of runs, records, staleness and locks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaegap.lab.experiments import Context, Experiment

ROOT = Path(__file__).parents[1]
CALLS: list[dict[str, Any]] = []


def compute(ctx: Context) -> list[dict[str, Any]]:
    import vaegap.bounds  # noqa: F401  # what the numbers depend on

    CALLS.append(ctx.params)
    ctx.artifact("weights.bin").write_bytes(b"weights")
    value = float(ctx.params["seed"]) + 0.5
    rows: list[dict[str, Any]] = [{"metric": "elbo", "value": value, "mcse": 0.1, "unit": "nats", "bound": "lower"}]
    return rows + [{"metric": "elbo", "value": value + i, "unit": "nats", "image": i} for i in range(3)]


TOY = Experiment(
    "toy", compute, {"dataset": "mnist-5k", "seed": 0, "rate": 0.1, "hidden": [2]}, {"laptop": {"rate": 1.0}}
)


def mutate(package: Path) -> None:
    """Change what a public function computes."""
    path = package / "bounds.py"
    source = path.read_text()
    assert "def elbo(" in source
    path.write_text(source.replace("def elbo(", "_CHANGED = 1\n\n\ndef elbo(", 1))
