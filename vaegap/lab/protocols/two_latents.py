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
from vaegap.lab.protocols.measuring import Rows, in_blocks
from vaegap.lab.protocols.models import model_of, spec_of
from vaegap.lab.records import Record
from vaegap.lab.zoo import origin_of
from vaegap.local import optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior, make_family
from vaegap.posteriors.either import either
from vaegap.posteriors.lifting import lift

__all__ = ["best_posterior", "compute_posterior", "load_2d", "verify_posterior"]

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
        begin = None
        for family in ("amortized", *FAMILIES):
            measured = _measured(ctx, vae, x, split, family, begin)
            begin = measured if family == "gaussian" else begin
            rows += _kl_rows(split, family, measured)
        truth = in_blocks(ctx, f"{split}-truth", len(x), partial(_evidence, vae, x, p["points"]))
        labels = {"split": split, "unit": "nats"}
        rows.append({**labels, "metric": "log_p", "value": truth["log_p"].mean().item(), "bound": "exact"})
        rows.append({**labels, "metric": "quadrature_error", "value": truth["coarse_error"].max().item()})
    return rows


def _measured(
    ctx: Context, vae: VAE, x: Tensor, split: str, family: str, begin: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """KL(q || p(z|x)), the mass of q inside the grid, and a Gaussian's moments, in blocks that are saved when done."""
    p = ctx.params

    def block(part: slice, seed: int) -> dict[str, Tensor]:
        images = x[part]
        print(f"{ctx.run_id}: {split}, {family}, images {part.start} to {part.stop - 1}", flush=True)
        truth = quadrature(vae, images, points=p["points"])
        start = None if begin is None else _gaussian(begin["mean"][part], begin["logvar"][part])
        q = best_posterior(truth, family, p["seed"] + seed, start)
        kept = {k: q.params[k] for k in ("mean", "logvar")} if family == "gaussian" else {}
        return {"kl": truth.kl(q), "mass": truth.mass(q), **kept}

    return in_blocks(ctx, f"{split}-{family}", len(x), block)


def best_posterior(truth: Quadrature, family: str, seed: int, begin: Posterior | None = None) -> Posterior:
    """The family's member of least KL to the true posterior, of all that are found; or the encoder's, "amortized".

    With two latents a posterior may have several hills, and an ascent ends on the one where it began. So Gaussians
    begin at the encoder's q and at the highest hills of the grid, and richer families at the best Gaussian.

    Args:
        truth: the images' true posteriors.
        family: "amortized", or a name for `optimize_local`.
        seed: of the ascents.
        begin: the best Gaussians, if they are known.

    Returns:
        a posterior of all images of `truth`.
    """
    vae: VAE = truth.vae  # type: ignore[assignment]
    encoder = vae.encode(truth.x).detach()
    if family == "amortized":
        return encoder
    if family == "gaussian":
        starts = [None, *(_gaussian(peak, encoder.params["logvar"]) for peak in _peaks(truth))]
        return _least(truth, [optimize_local(vae, truth.x, family, start, seed=seed).posterior for start in starts])
    begin = begin or best_posterior(truth, "gaussian", seed)
    found = optimize_local(vae, truth.x, family, begin, seed=seed).posterior
    return _least(truth, [lift(begin, found.family), found])


def _gaussian(mean: Tensor, logvar: Tensor) -> Posterior:
    return make_family("gaussian", 2).posterior(mean, logvar)


def _peaks(truth: Quadrature, num: int = 3) -> list[Tensor]:
    """Where the posteriors have their highest hilltops, one (N, 2) for the highest, one for the second ...

    Images with fewer hills repeat their highest.
    """
    heights = truth.log_posterior
    top = torch.nn.functional.max_pool2d(heights.unsqueeze(1), 5, stride=1, padding=2).squeeze(1)
    found = heights.where(heights == top, -torch.inf).flatten(1).topk(num, dim=1)
    index = found.indices.where(found.values > -torch.inf, found.indices[:, :1])
    grid = truth.grid().transpose(0, 1).to(truth.x)
    return list(grid.gather(1, index.unsqueeze(-1).expand(-1, -1, 2)).unbind(1))


def _least(truth: Quadrature, candidates: list[Posterior]) -> Posterior:
    """Image by image the candidate of least KL."""
    best = candidates[0]
    for other in candidates[1:]:
        best = either(best, other, truth.kl(other) < truth.kl(best))
    return best


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
        one, two = (truth.kl(best_posterior(truth, family, p["seed"] + seed)) for seed in (12345, 54321))
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
    truth = quadrature(vae, x, points=p["points"])
    names = ("amortized", "gaussian", "flow")
    return vae, truth, {family: best_posterior(truth, family, p["seed"]) for family in names}
