r"""q*: the best member of a family for each image, found by gradient ascent on all images at once.

The poorer family's optimum is the richer one's start, path gradients (Roeder et al. 2017) make the noise vanish
where q meets the posterior, and an image is optimised only as long as something is left to gain: Gaussians by natural
gradients and Newton steps, other families by Adam. The better of start and end is chosen on one set of samples and
reported on another, so that L[q*] ≥ L[start] within error.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vaegap.bounds import elbo
from vaegap.climbing import LocalFit, climb
from vaegap.errors import InputError
from vaegap.evaluation import encode, evaluating, matching
from vaegap.models import Model
from vaegap.natural import is_plain_gaussian
from vaegap.posteriors import Family, FullGaussian, Gaussian, Posterior, make_family
from vaegap.posteriors.either import either
from vaegap.posteriors.lifting import lift, same_form
from vaegap.published import published
from vaegap.rounds import Recipe, pick_rows, put_rows

__all__ = ["OTHER", "RECIPES", "LocalFit", "Recipe", "lift", "optimize_local"]

_NEAR = 3.0  # nats: images where the encoder is further below q* than this do not start from it as well

RECIPES: dict[str, Recipe] = {
    "gaussian": Recipe(20, 8, 0.3, chunk=1000, rounds=2, judges=40, repeats=20, far=0.05, again=100),
    "full_gaussian": Recipe(
        32, 16, 0.3, start="gaussian", rounds=3, judges=40, tolerance=0.05, repeats=20, far=0.1, again=32
    ),
    "flow": Recipe(400, 8, 2e-3, chunk=64, start="gaussian", rounds=2, repeats=10),
    "spline": Recipe(300, 8, 2e-3, chunk=32, start="gaussian", rounds=2, repeats=10),
    "aux_flow": Recipe(300, 16, 5e-4, chunk=64, start="full_gaussian", rounds=1, repeats=10),
}
"""Settings by family; `start` names the ladder that makes L[q*] of a richer family at least that of a poorer one."""

OTHER = Recipe(180, 4, 0.03, 0.99, rounds=2, judges=100, repeats=20)
"""Settings of Adam for a family that says nothing of its own."""


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
        start: a posterior of this family, in any form, or of a poorer one; None climbs the ladder from the encoder
            (gaussian -> full_gaussian -> aux_flow; gaussian -> flow, spline). If the encoder's own family is the
            one asked for, the encoder is a second start for images where it comes near, and the better is kept.
        protocol: "fast", or "paper" for the published procedure: mean 0 and variance 1 as a start, 100 samples,
            Adam at 1e-3, ended when 11 windows of 100 steps in a row fail to beat the best (supplement; official
            code local_ffg.py). Two differences: one stop for all images, and a window is judged by one ELBO of 100
            fresh samples an image instead of the mean of its losses. Flows take our own form of the family, not the
            published one (200 hidden units, q(v_0|z_0)), and stop in groups of 64 images. Thousands of steps: for
            comparison only. `start` and `recipe` are not for it.
        num_eval: samples per image behind the reported bound.
        recipe: settings; None for `RECIPES[family]`, or `OTHER` for a family that has none there.
        force_dtype: precision of the decoder's gradients, e.g. torch.bfloat16.
        seed: of everything random.
        progress: show a bar.

    Returns:
        a `LocalFit`; images whose ascent diverged, has not ended, or ended below its start are in `.bound.flagged`.

    Raises:
        InputError: unusable images, an unknown family or protocol, a start that is not in the family, for other
            images or without a finite bound, or settings that go with no protocol.

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
    if protocol == "paper" and (start is not None or recipe is not None):
        raise InputError("protocol='paper' has a start and settings of its own: leave out start and recipe")
    x = vae.check(x)
    target = _family(family, vae.latent_dim)
    plan = recipe or RECIPES.get(target.name, OTHER)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    options: dict[str, Any] = {"force_dtype": force_dtype, "seed": seed, "progress": progress}
    if protocol == "paper":
        return published(vae, x, target, num_eval, **options)
    with evaluating(vae):
        encoder = encode(vae, x).detach()
        twice = vae.encode(x[:1].expand(2, -1))  # networks that all images share keep one row
    gaussian = isinstance(encoder.family, Gaussian | FullGaussian)
    shared = frozenset(k for k, v in twice.params.items() if v.shape[0] == 1 and not gaussian)
    start = given = None if start is None else matching(vae, x, start).detach()
    if start is None and plan.start:
        start = optimize_local(
            vae, x, plan.start, num_eval=2, force_dtype=force_dtype, seed=seed, progress=progress
        ).posterior
    if start is None:
        fit = climb(vae, x, encoder, target, plan, num_eval, shared=shared, **options)
    else:
        fit = climb(vae, x, start, target, plan, num_eval, **options)
    if given is not None and given.family.name == target.name and not same_form(given.family, target):
        fit = _or_else(vae, x, fit, given, plan, num_eval, math.inf, shared=_shared(given, encoder, shared), **options)
    if encoder.family.name == target.name and plan.start:
        fit = _or_else(vae, x, fit, encoder, plan, num_eval, _NEAR, shared=shared, **options)
    return fit


def _family(family: str | Family, latent_dim: int) -> Family:
    """The form of a family that is optimised, if it goes with the model."""
    made = make_family(family, latent_dim)
    if made.latent_dim != latent_dim:
        raise InputError(f"the family is over {made.latent_dim} latents, the model has {latent_dim}")
    return made.local_variant()


def _shared(q: Posterior, encoder: Posterior, known: frozenset[str]) -> frozenset[str]:
    """Tensors that all images share: the encoder's if q is of its form, else those with one row for many images."""
    if same_form(q.family, encoder.family):
        return known
    return frozenset(k for k, v in q.params.items() if v.shape[0] == 1 < len(q))


def _or_else(
    vae: Model, x: Tensor, fit: LocalFit, other: Posterior, plan: Recipe, num_eval: int, reach: float, **options: Any
) -> LocalFit:
    """A posterior in a form of its own as a second start for the images where it comes near; the better is kept.

    An image's own numbers move, the network weights that all images share do not. For the encoder of models trained
    with q_AF the first start won on every image by 0.8 nat or more, also against an ascent of all weights (`_NEAR`
    leaves room).

    Args:
        reach: nats by which the other may lie below the fit.
    """
    seed = options["seed"]
    first = elbo(vae, x, plan.judges, fit.posterior, seed=seed + 11).per_image
    begin = elbo(vae, x, plan.judges, other, seed=seed + 12).per_image
    near = (begin > first - reach).nonzero().flatten()
    if len(near) == 0:
        return fit
    own = plan if is_plain_gaussian(other) else replace(plan, steps=200, samples=8, lr=2e-3)
    try:
        found = climb(vae, x[near], pick_rows(other, near, options["shared"]), other.family, own, num_eval, **options)
        second = elbo(vae, x[near], plan.judges, found.posterior, seed=seed + 13).per_image
    except InputError as error:
        raise error.among(near.tolist()) from error
    won = (second > first[near]).nonzero().flatten()
    if len(won) == 0:
        return fit
    ascended = put_rows(other, near, found.posterior, options["shared"])
    pick = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill(0, near[won], True)
    posterior = either(fit.posterior, ascended, pick)
    bound = elbo(vae, x, max(2, num_eval), posterior, seed=seed + 14)
    steps = fit.steps.clone()
    steps[near[won].cpu()] = found.steps[won.cpu()]
    flagged = dict(fit.bound.flagged or {})
    for k in won.tolist():
        flagged.pop(int(near[k]), None)
        if (why := (found.bound.flagged or {}).get(k)) is not None:
            flagged[int(near[k])] = why
    return LocalFit(replace(bound, flagged=flagged or None), posterior, fit.start, steps)
