"""Section 5.1: a VAE with two latents, where the true posterior can be drawn and every KL is a sum over a grid."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaegap.exact import Quadrature, quadrature
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.decompositions import Rows, in_blocks, model_of, spec_of
from vaegap.lab.records import Record
from vaegap.lab.zoo import origin_of
from vaegap.local import optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

__all__ = ["compute_posterior", "load_2d", "verify_posterior"]

FAMILIES = ("gaussian", "full_gaussian", "flow")
_SCATTER = 0.01  # nats: by so much two fits of one image easily differ (up to 0.013 among 60 seen)


def compute_posterior(ctx: Context) -> Rows:
    """KL to the true posterior of the encoder's q and of each family's q*, by quadrature."""
    p = ctx.params
    vae, meta = model_of(p, ctx.profile, ctx.results)
    checkpoints.save_model(ctx.artifact("model.safetensors"), vae)
    ctx.notes |= {"model": spec_of(p, ctx.profile).id, "model_trained": origin_of(meta)}
    rows: Rows = []
    for split in ("train", "test"):
        x = load_images(p["dataset"], split, num_images=p["num_images"]).x
        for family in ("amortized", *FAMILIES):
            rows += _kl_rows(split, family, _measured(ctx, vae, x, split, family))
        truth = in_blocks(ctx, f"{split}-truth", len(x), partial(_evidence, vae, x, p["points"]))
        labels = {"split": split, "unit": "nats"}
        rows.append({**labels, "metric": "log_p", "value": truth["log_p"].mean().item(), "bound": "exact"})
        rows.append({**labels, "metric": "quadrature_error", "value": truth["coarse_error"].max().item()})
    return rows


def _measured(ctx: Context, vae: VAE, x: Tensor, split: str, family: str) -> dict[str, Tensor]:
    """KL(q || p(z|x)) and the mass of q inside the grid (N,), in blocks of images that are saved when done."""
    p = ctx.params

    def block(part: slice, seed: int) -> dict[str, Tensor]:
        images = x[part]
        print(f"{ctx.run_id}: {split}, {family}, images {part.start} to {part.stop - 1}", flush=True)
        truth = quadrature(vae, images, points=p["points"])
        q = _posterior(vae, images, family, p["seed"] + seed)
        return {"kl": truth.kl(q), "mass": truth.mass(q)}

    return in_blocks(ctx, f"{split}-{family}", len(x), block)


def _posterior(vae: VAE, x: Tensor, family: str, seed: int) -> Posterior:
    return vae.encode(x).detach() if family == "amortized" else optimize_local(vae, x, family, seed=seed).posterior


def _evidence(vae: VAE, x: Tensor, points: int, part: slice, seed: int) -> dict[str, Tensor]:
    truth = quadrature(vae, x[part], points=points)
    return {"log_p": truth.log_p, "coarse_error": truth.coarse_error}


def _kl_rows(split: str, family: str, measured: dict[str, Tensor]) -> Rows:
    kl, labels = measured["kl"], {"split": split, "family": family}
    exact = {**labels, "metric": "kl", "unit": "nats", "bound": "exact"}
    rows: Rows = [{**exact, "image": str(i), "value": value} for i, value in enumerate(kl.tolist())]
    rows.append({**exact, "value": kl.mean().item()})
    rows.append({**labels, "metric": "mass", "value": measured["mass"].min().item(), "unit": "probability"})
    return rows


def verify_posterior(ctx: Context, record: Record) -> Rows:
    """The KLs of the first images, from the kept weights; those of q* from two fits, whose difference is the error.

    A KL by quadrature has no Monte Carlo error, but the q* that it belongs to was found by stochastic ascent, and the
    record's by one as well. Where a fit ends in another optimum, two more do not show it, hence the least error.
    """
    p = record.params
    vae = checkpoints.load_model(record.artifact("model.safetensors")).eval()
    x = load_images(p["dataset"], "train", num_images=min(10, p["num_images"])).x
    truth = quadrature(vae, x, points=p["points"])
    rows: Rows = []
    for family in ("amortized", *FAMILIES):
        one, two = (truth.kl(_posterior(vae, x, family, p["seed"] + seed)) for seed in (12345, 54321))
        scatter = (one - two).abs() / 2**0.5  # an estimate of the standard deviation, from two fits
        least = 0.0 if family == "amortized" else _SCATTER
        error = 1.5**0.5 * torch.maximum(scatter, scatter.square().mean().sqrt()).clamp_min(least)
        labels = {"split": "train", "metric": "kl", "family": family, "unit": "nats", "bound": "exact"}
        rows += [
            {**labels, "image": str(i), "value": ((one + two) / 2)[i].item(), "mcse": error[i].item()}
            for i in range(len(x))
        ]
    return rows


def load_2d(record: Record, images: list[int], split: str = "train") -> tuple[VAE, Quadrature, dict[str, Posterior]]:
    """What a contour plot of some images needs: the model, the true posterior on a grid, and the approximations.

    Args:
        record: of the experiment "posterior_2d".
        images: positions in the split.
        split: "train" or "test".

    Returns:
        the model, the quadrature of these images, and the posteriors "amortized", "gaussian" and "flow".
    """
    p: dict[str, Any] = record.params
    vae = checkpoints.load_model(record.artifact("model.safetensors")).eval()
    x = load_images(p["dataset"], split).x[images]
    posteriors = {"amortized": vae.encode(x).detach()}
    for family in ("gaussian", "flow"):
        posteriors[family] = optimize_local(vae, x, family, seed=p["seed"]).posterior
    return vae, quadrature(vae, x, points=p["points"]), posteriors
