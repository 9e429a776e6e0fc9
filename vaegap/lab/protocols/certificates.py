"""How far the numbers can be trusted: BDMC widths, IWAE against AIS, the paper's AIS settings against ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from vaegap.annealing import Sandwich, bdmc
from vaegap.bounds import Bound, iwae
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.decompositions import Rows, _force_dtype, model_of
from vaegap.local import optimize_local
from vaegap.posteriors import Posterior

__all__ = ["compute_certificates"]


def compute_certificates(ctx: Context) -> Rows:
    """Widths and costs of several ways to log p(x), on simulated images; IWAE on real ones."""
    p = ctx.params
    vae, _ = model_of(p, ctx.profile, ctx.results)
    num, rows = p["num_simulated"], []
    rounded = _force_dtype()

    def fit(images: torch.Tensor) -> Posterior:
        return optimize_local(vae, images, "full_gaussian", num_eval=2, force_dtype=rounded, seed=5).posterior

    ways: dict[str, Callable[[], Sandwich]] = {
        "q*_full, 20 temperatures": lambda: bdmc(vae, num, num_temperatures=20, base=fit, force_dtype=rounded, seed=6),
        "q(z|x), 50 temperatures": lambda: bdmc(vae, num, num_temperatures=50, force_dtype=rounded, seed=6),
    }
    for steps in p["prior_temperatures"]:
        ways[f"prior, linear, {steps} temperatures"] = lambda steps=steps: bdmc(  # type: ignore[misc]
            vae, num, num_temperatures=steps, base="prior", schedule="linear", num_leapfrog=10, seed=6
        )
    for name, way in ways.items():
        values = _saved(ctx, name, lambda way=way: _measure(way))  # type: ignore[misc]
        labels: dict[str, Any] = {"split": "simulated", "model": name, "num_samples": num}
        rows.append({**labels, "metric": "bdmc_width", "value": values[0], "mcse": values[1], "unit": "nats"})
        rows.append(
            {**labels, "metric": "lower", "value": values[2], "mcse": values[3], "unit": "nats", "bound": "lower"}
        )
        rows.append(
            {**labels, "metric": "upper", "value": values[4], "mcse": values[5], "unit": "nats", "bound": "upper"}
        )
        rows.append({**labels, "metric": "seconds", "value": values[6], "unit": "s"})
    x = load_images(p["dataset"], "train", num_images=p["num_images"]).x
    best = fit(x)
    for name, proposal, k in (("IWAE from q", None, 5000), ("IWAE from q*_full", best, 1000)):
        values = _saved(ctx, name, lambda q=proposal, k=k: _weigh(iwae(vae, x, k, q, seed=7)))  # type: ignore[misc]
        labels = {"split": "train", "model": name, "num_samples": k}
        rows.append(
            {**labels, "metric": "log_p", "value": values[0], "mcse": values[1], "unit": "nats", "bound": "lower"}
        )
        rows.append({**labels, "metric": "khat_above_0.7", "value": values[2], "unit": "fraction"})
    from vaegap.annealing import ais

    values = _saved(
        ctx, "AIS", lambda: _weigh(ais(vae, x, num_temperatures=20, base=best, force_dtype=rounded, seed=8))
    )
    rows.append(
        {
            "split": "train",
            "model": "AIS from q*_full",
            "metric": "log_p",
            "value": values[0],
            "mcse": values[1],
            "unit": "nats",
            "bound": "lower",
        }
    )
    return rows


def _measure(way: Callable[[], Sandwich]) -> list[float]:
    start = time.monotonic()
    s = way()
    return [s.width, s.mcse, s.lower.mean, s.lower.mcse, s.upper.mean, s.upper.mcse, time.monotonic() - start]


def _weigh(bound: Bound) -> list[float]:
    heavy = float((bound.khat > 0.7).double().mean()) if bound.khat is not None else float("nan")
    return [bound.mean, bound.mcse, heavy]


def _saved(ctx: Context, name: str, compute: Callable[[], list[float]]) -> list[float]:
    """The numbers of one way, kept when done, so that a killed run does not repeat it."""
    path = ctx.checkpoint("".join(c if c.isalnum() else "-" for c in name))
    if not path.exists():
        checkpoints.save(path, {"values": torch.tensor(compute(), dtype=torch.float64)}, {})
    return list(checkpoints.load(path)[0]["values"].tolist())
