"""How far the numbers can be trusted: oracles, BDMC widths, IWAE against AIS, the paper's AIS settings against ours."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from vaegap.annealing import ais, bdmc
from vaegap.bounds import Bound, iwae
from vaegap.energy import quickest_forces
from vaegap.errors import InputError
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.measuring import Rows, in_blocks
from vaegap.lab.protocols.models import kept_model, model_of
from vaegap.lab.protocols.oracles import Weighings, oracle_errors, oracles
from vaegap.lab.records import Record
from vaegap.local import optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

__all__ = ["compute_certificates", "verify_certificates"]

# Temperatures from the prior that cost what 20 from q*_full do: 15 moves of 24 chains (the pilot runs' are among them)
# with 11 gradients each are 4,000 of an image, and so are 19 moves of 24 chains with 7, and 1,000 for the search.
_EQUAL_COST = 16
_IMAGE_TEMPERATURES = 10_000  # about a minute on one core with 16 chains and 10 leapfrog steps


def compute_certificates(ctx: Context) -> Rows:
    """Widths and costs of several ways to log p(x), on simulated images; IWAE and AIS on real ones."""
    p = ctx.params
    vae, _ = model_of(p, ctx.profile, ctx.results)
    num, rows = p["num_simulated"], []
    ways = _ways(vae, p)
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
    for name, (num_samples, bound) in _weighings(vae, x).items():
        mean, mcse, heavy = _saved(ctx, name, partial(_weigh, bound))
        labels = {"split": "train", "model": name, "num_samples": num_samples}
        rows.append({**labels, "metric": "log_p", "value": mean, "mcse": mcse, "unit": "nats", "bound": "lower"})
        if heavy == heavy:  # AIS has no tail to fit
            rows.append({**labels, "metric": "khat_above_0.7", "value": heavy, "unit": "fraction"})
    return rows + _oracle_rows(ctx)


def verify_certificates(ctx: Context, record: Record) -> Rows:
    """Widths of the ways of fewer than a thousand temperatures, and log p̂ of real images, with other random numbers.

    A way of a thousand temperatures is the same code for longer, and takes four fifths of all the time. The oracles
    are left out: on which hill of a posterior q* ends is not in their error.

    Raises:
        InputError: the record is from before the oracles were measured.
    """
    if record.select(metric="log_p_error").empty:
        raise InputError("it has no oracles, which certificates are measured on today: vaegap run --refresh")
    p = record.params
    vae = kept_model(ctx, p)
    rows: Rows = []
    for name, settings in _ways(vae, p).items():
        if settings["num_temperatures"] < 1000:
            s = bdmc(vae, p["num_simulated"], seed=12345, **settings)
            labels = {"split": "simulated", "model": name, "metric": "bdmc_width", "unit": "nats"}
            rows.append({**labels, "value": s.width, "mcse": s.mcse})
    x = load_images(p["dataset"], "train", num_images=p["num_images"]).x
    for name, (_, bound) in _weighings(vae, x, seed=12345).items():
        mean, mcse, _ = _weigh(bound)
        labels = {"split": "train", "model": name, "metric": "log_p", "unit": "nats", "bound": "lower"}
        rows.append({**labels, "value": mean, "mcse": mcse})
    return rows


def _oracle_rows(ctx: Context) -> Rows:
    """What the estimators of real images miss where log p(x) is known."""
    rows: Rows = []
    for oracle, known in oracles(ctx, min(100, ctx.params["num_images"])).items():
        split = f"oracle, {oracle}"
        for way, compute in oracle_errors(known, _weighings, _published_lengths(ctx.params)):
            mean, mcse = _saved(ctx, f"{oracle}-{way}", compute)
            row = {"split": split, "model": way, "metric": "log_p_error", "unit": "nats"}
            rows.append({**row, "value": mean, "mcse": mcse})
        unsure = known()[3]
        rows.append({"split": split, "metric": "oracle_error", "value": unsure, "unit": "nats"})
    return rows


def _fit(vae: VAE, images: torch.Tensor, seed: int = 5) -> Posterior:
    return optimize_local(vae, images, "full_gaussian", num_eval=2, force_dtype=quickest_forces(), seed=seed).posterior


def _ways(vae: VAE, p: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of BDMC by name: ours from two bases, and the paper's at several lengths."""
    rounded = quickest_forces()
    ways: dict[str, dict[str, Any]] = {
        "q*_full, 20 temperatures": {"num_temperatures": 20, "base": partial(_fit, vae), "force_dtype": rounded},
        "q(z|x), 50 temperatures": {"num_temperatures": 50, "force_dtype": rounded},
    }
    for steps in _published_lengths(p):
        published = {"base": "prior", "schedule": "linear", "num_leapfrog": 10}
        ways[f"prior, linear, {steps} temperatures"] = {"num_temperatures": steps, **published}
    return ways


def _published_lengths(p: Mapping[str, Any]) -> list[int]:
    """How many temperatures the published annealing takes here: at equal cost, and what was asked for."""
    return sorted({_EQUAL_COST, *p["prior_temperatures"]})


def _weighings(vae: VAE, x: torch.Tensor, seed: int = 0) -> Weighings:
    """log p̂ of given images by name: the number of samples, and what computes it."""

    @cache
    def best() -> Posterior:
        return _fit(vae, x, 5 + seed)

    def annealed() -> Bound:
        return ais(vae, x, num_temperatures=20, base=best(), force_dtype=quickest_forces(), seed=8 + seed)

    return {
        "IWAE from q": (5000, lambda: iwae(vae, x, 5000, seed=7 + seed)),
        "IWAE from q*_full": (1000, lambda: iwae(vae, x, 1000, best(), seed=7 + seed)),
        "AIS from q*_full": (None, annealed),
    }


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


def _weigh(compute: Callable[[], Bound]) -> list[float]:
    """Mean, its error, and the share of images whose weights have too heavy a tail (NaN for AIS)."""
    bound = compute()
    heavy = float((bound.khat > 0.7).double().mean()) if bound.khat is not None else float("nan")
    return [bound.mean, bound.mcse, heavy]


def _saved(ctx: Context, name: str, compute: Callable[[], list[float]]) -> list[float]:
    """The numbers of one way, kept when done, so that a killed run does not repeat it."""
    path = ctx.checkpoint("".join(c if c.isalnum() else "-" for c in name))
    if not path.exists():
        checkpoints.save(path, {"values": torch.tensor(compute(), dtype=torch.float64)}, {})
    return list(checkpoints.load(path)[0]["values"].tolist())
