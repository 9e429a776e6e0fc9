"""How far the numbers can be trusted: BDMC widths, IWAE against AIS, the paper's AIS settings against ours."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vaegap.annealing import bdmc
from vaegap.bounds import Bound, iwae
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.decompositions import Rows, _force_dtype, in_blocks, model_of
from vaegap.local import optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

__all__ = ["compute_certificates"]

_IMAGE_TEMPERATURES = 10_000  # about a minute on one core with 16 chains and 10 leapfrog steps


def compute_certificates(ctx: Context) -> Rows:
    """Widths and costs of several ways to log p(x), on simulated images; IWAE on real ones."""
    p = ctx.params
    vae, _ = model_of(p, ctx.profile, ctx.results)
    num, rows = p["num_simulated"], []
    rounded = _force_dtype()

    def fit(images: torch.Tensor) -> Posterior:
        return optimize_local(vae, images, "full_gaussian", num_eval=2, force_dtype=rounded, seed=5).posterior

    ways: dict[str, dict[str, Any]] = {
        "q*_full, 20 temperatures": {"num_temperatures": 20, "base": fit, "force_dtype": rounded},
        "q(z|x), 50 temperatures": {"num_temperatures": 50, "force_dtype": rounded},
    }
    for steps in p["prior_temperatures"]:
        published = {"base": "prior", "schedule": "linear", "num_leapfrog": 10}
        ways[f"prior, linear, {steps} temperatures"] = {"num_temperatures": steps, **published}
    # thousands of temperatures take so long that few images make a minute's work, which is what a killed run may lose;
    # one size for all ways, so that all see the same simulated images
    size = max(1, _IMAGE_TEMPERATURES // max(s["num_temperatures"] for s in ways.values()))
    for name, settings in ways.items():
        values = _sandwich(ctx, vae, name, num, size, settings)
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


def _sandwich(ctx: Context, vae: VAE, name: str, num: int, size: int, settings: dict[str, Any]) -> list[float]:
    """Width, lower and upper bound with their errors, and seconds, of BDMC in blocks of images."""

    def block(first: int, part: slice, seed: int) -> dict[str, torch.Tensor]:
        count, start = part.stop - part.start, time.monotonic()
        print(f"{ctx.run_id}: {name}, images {first + part.start} to {first + part.stop - 1}", flush=True)
        s = bdmc(vae, count, seed=seed + 7919 * first, **settings)
        seconds = torch.full((count,), (time.monotonic() - start) / count)
        bounds = {"lower": s.lower, "upper": s.upper}
        values = {k: b.per_image.double() for k, b in bounds.items()}
        return values | {f"{k}_mcse": b.mcse_per_image.double() for k, b in bounds.items()} | {"seconds": seconds}

    word = re.sub(r"[^a-zA-Z0-9]", "-", name)
    starts = range(0, num, size)
    pieces = [in_blocks(ctx, f"{word}-{i}", min(size, num - i), partial(block, i)) for i in starts]
    out = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
    width = out["upper"] - out["lower"]
    values = [width.mean().item(), width.std().item() / num**0.5]
    for key in ("lower", "upper"):
        values += [out[key].mean().item(), out[f"{key}_mcse"].square().sum().sqrt().item() / num]
    return [*values, out["seconds"].sum().item()]


def _weigh(bound: Bound) -> list[float]:
    heavy = float((bound.khat > 0.7).double().mean()) if bound.khat is not None else float("nan")
    return [bound.mean, bound.mcse, heavy]


def _saved(ctx: Context, name: str, compute: Callable[[], list[float]]) -> list[float]:
    """The numbers of one way, kept when done, so that a killed run does not repeat it."""
    path = ctx.checkpoint("".join(c if c.isalnum() else "-" for c in name))
    if not path.exists():
        checkpoints.save(path, {"values": torch.tensor(compute(), dtype=torch.float64)}, {})
    return list(checkpoints.load(path)[0]["values"].tolist())
