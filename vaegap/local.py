r"""q*: the best member of a family for each image, found by gradient ascent on all images at once.

The poorer family's optimum is the richer one's start, path gradients (Roeder et al. 2017) make the noise vanish
where q meets the posterior, and an image is optimised only as long as it still gains. The better of start and end is
chosen on one set of samples and reported on another, so that L[q*] ≥ L[start] within error.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.bounds import elbo, encode, evaluating, make_generator
from vaegap.climbing import LocalFit, Recipe, climb, pick_rows, put_rows
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.models import Model
from vaegap.posteriors import Family, Posterior, make_family
from vaegap.posteriors.either import either
from vaegap.posteriors.lifting import lift
from vaegap.progress import bar

__all__ = ["RECIPES", "LocalFit", "Recipe", "lift", "optimize_local"]

_NEAR = 3.0  # nats: images where the encoder is further below q* than this do not start from it as well

RECIPES: dict[str, Recipe] = {
    "gaussian": Recipe(180, 4, 0.03, 0.99, rounds=2, judges=100),
    "full_gaussian": Recipe(270, 8, 0.015, start="gaussian", rounds=1, judges=100),
    "flow": Recipe(400, 8, 2e-3, chunk=64, start="gaussian", rounds=2),
    "spline": Recipe(300, 8, 2e-3, chunk=32, start="gaussian", rounds=2),
    "aux_flow": Recipe(300, 16, 5e-4, chunk=64, start="full_gaussian", rounds=1),
}
"""Settings by family; `start` names the ladder that makes L[q*] of a richer family at least that of a poorer one."""


def optimize_local(
    vae: Model,
    x: Tensor,
    family: str | Family = "gaussian",
    start: Posterior | None = None,
    protocol: str = "fast",
    num_eval: int = 300,
    recipe: Recipe | None = None,
    force_dtype: torch.dtype | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> LocalFit:
    r"""q*(z|x) = argmax over the family of L[q], separately for each image.

    Args:
        vae: the model; its parameters stay as they are.
        x: images (N, D).
        family: "gaussian", "full_gaussian", "flow", "aux_flow", "spline", or a `Family`.
        start: a posterior of this family or of a poorer one; None climbs the ladder from the encoder
            (gaussian -> full_gaussian -> aux_flow; gaussian -> flow, spline). If the encoder's own family is the
            one asked for, the encoder is a second start for images where it comes near, and the better is kept.
        protocol: "fast", or "paper" for the published procedure: mean 0 and variance 1 as a start, 100 samples,
            Adam at 1e-3, ended when 11 windows of 100 steps in a row fail to beat the best (supplement; official
            code local_ffg.py). Two differences: one stop for all images, and a window is judged by one ELBO of 100
            fresh samples an image instead of the mean of its losses. Flows take our own form of the family, not the
            published one (200 hidden units, q(v_0|z_0)). Thousands of steps: for comparison only.
        num_eval: samples per image behind the reported bound.
        recipe: settings; None for `RECIPES[family]`, or the Gaussian's for a family that has none there.
        force_dtype: precision of the decoder's gradients, e.g. torch.bfloat16.
        seed: of everything random.
        progress: show a bar.

    Returns:
        a `LocalFit`.

    Raises:
        InputError: unusable images, an unknown family or protocol, or a start that is not in the family.

    Source: Cremer et al. 2018, section 2 and supplement; Roeder et al. 2017, eq. 8.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> x = vae.simulate(10, seed=1)
        >>> best = vae.exact_gaps(x).best_gaussian.mean().item()
        >>> found = optimize_local(vae, x, seed=0).bound
        >>> abs(found.mean - best) < 4 * found.mcse
        True
    """
    if protocol not in ("fast", "paper"):
        raise InputError(f"unknown protocol {protocol!r}; choose 'fast' or 'paper'")
    x = vae.check(x)
    target = make_family(family, vae.latent_dim).local_variant()
    plan = recipe or RECIPES.get(target.name, RECIPES["gaussian"])
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    options: dict[str, Any] = {"force_dtype": force_dtype, "seed": seed, "progress": progress}
    if protocol == "paper":
        return _published(vae, x, target, num_eval, **options)
    with evaluating(vae):
        encoder = encode(vae, x).detach()
        twice = vae.encode(x[:1].expand(2, -1))  # tensors that all images share keep one row
    shared = frozenset(k for k, v in twice.params.items() if v.shape[0] == 1)
    if start is not None and len(start) != len(x):
        raise InputError(f"the start is for {len(start)} images, but there are {len(x)}")
    if start is None and plan.start:
        start = optimize_local(
            vae, x, plan.start, num_eval=2, force_dtype=force_dtype, seed=seed, progress=progress
        ).posterior
    if start is None:
        fit = climb(vae, x, encoder, target, plan, num_eval, shared=shared, **options)
    else:
        fit = climb(vae, x, start, target, plan, num_eval, **options)
    if encoder.family.name == target.name and plan.start:
        fit = _or_encoder(vae, x, fit, encoder, plan, num_eval, shared=shared, **options)
    return fit


def _or_encoder(
    vae: Model, x: Tensor, fit: LocalFit, encoder: Posterior, plan: Recipe, num_eval: int, **options: Any
) -> LocalFit:
    """The encoder, in its own form, as a second start for the images where it comes near; the better is kept.

    An image's own numbers move, the network weights that all images share do not. On models trained with q_AF the
    first start won on every image by 0.8 nat or more, also against an ascent of all weights (`_NEAR` leaves room).
    """
    seed = options["seed"]
    first = elbo(vae, x, plan.judges, fit.posterior, seed=seed + 11).per_image
    begin = elbo(vae, x, plan.judges, encoder, seed=seed + 12).per_image
    near = (begin > first - _NEAR).nonzero().flatten()
    if len(near) == 0:
        return fit
    own = replace(plan, steps=200, samples=8, lr=2e-3)
    other = climb(vae, x[near], pick_rows(encoder, near, options["shared"]), encoder.family, own, num_eval, **options)
    second = elbo(vae, x[near], plan.judges, other.posterior, seed=seed + 13).per_image
    won = (second > first[near]).nonzero().flatten()
    if len(won) == 0:
        return fit
    ascended = put_rows(encoder, near, other.posterior, options["shared"])
    pick = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill(0, near[won], True)
    posterior = either(fit.posterior, ascended, pick)
    bound = elbo(vae, x, max(2, num_eval), posterior, seed=seed + 14)
    steps = fit.steps.clone()
    steps[near[won].cpu()] = other.steps[won.cpu()]
    return LocalFit(replace(bound, flagged=fit.bound.flagged), posterior, fit.start, steps)


def _published(
    vae: Model, x: Tensor, family: Family, num_eval: int, *, force_dtype: torch.dtype | None, seed: int, progress: bool
) -> LocalFit:
    """The published procedure: one stopping rule for all images, on windows of 100 steps, patience 10."""
    generator = make_generator(vae, seed)
    zeros = torch.zeros(len(x), vae.latent_dim, dtype=vae.dtype, device=vae.device)
    start = family.posterior(zeros, zeros)
    best, bad, steps, level = start, 0, 0, -math.inf
    progressed = bar(desc=f"published q* {family.name}", show=progress)
    with evaluating(vae), torch.enable_grad():
        joint = LogJoint(vae, x, force_dtype)
        for now in ascend(joint, start, 10**6, 100, 1e-3, 0.999, generator, (), path=False):
            steps += 1
            progressed.update()
            if steps % 100 == 0:
                with torch.no_grad():
                    mean = elbo(vae, x, 100, now.detach(), seed=seed + steps).mean
                if mean > level:
                    best, bad, level = (
                        Posterior(family, {k: v.detach().clone() for k, v in now.params.items()}),
                        0,
                        mean,
                    )
                else:
                    bad += 1
                if bad > 10:
                    break
    progressed.close()
    posterior = best.detach()
    count = torch.full((len(x),), steps)
    begin = elbo(vae, x, max(2, num_eval), start, seed=seed + 2)
    return LocalFit(elbo(vae, x, max(2, num_eval), posterior, seed=seed + 1), posterior, begin, count)
