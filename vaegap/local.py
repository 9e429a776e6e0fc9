r"""q*: the best member of a family for each image, found by gradient ascent on all images at once.

The poorer family's optimum is the richer one's start, path gradients (Roeder et al. 2017) make the noise vanish
where q meets the posterior, and an image is optimised only as long as it still gains. The better of start and end is
chosen on one set of samples and reported on another, so that L[q*] ≥ L[start] within error.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.bounds import Bound, elbo, elbo_unchecked, evaluating, join_bounds, make_generator
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.models import Model
from vaegap.posteriors import Family, Posterior, make_family
from vaegap.posteriors.either import either
from vaegap.posteriors.lifting import lift, same_form
from vaegap.progress import bar

__all__ = ["RECIPES", "LocalFit", "Recipe", "lift", "optimize_local"]


@dataclass(frozen=True)
class Recipe:
    """How one family is optimised.

    Args:
        steps: Adam steps of the first round; later rounds take half.
        samples: noise vectors per image and step (antithetic pairs).
        lr: learning rate, falling to 1 % by cosine in each round.
        beta2: Adam's second decay.
        chunk: images optimised together.
        start: the poorer family it starts from; "" for the encoder.
        rounds: most rounds; an image leaves after a round that gained less than `tolerance`.
        tolerance: nats.
    """

    steps: int
    samples: int
    lr: float
    beta2: float = 0.999
    chunk: int = 500
    start: str = ""
    rounds: int = 3
    tolerance: float = 0.02


RECIPES: dict[str, Recipe] = {
    "gaussian": Recipe(300, 4, 0.03, 0.99),
    "full_gaussian": Recipe(400, 8, 0.02, start="gaussian"),
    "flow": Recipe(400, 8, 2e-3, chunk=64, start="gaussian", rounds=2),
    "spline": Recipe(300, 8, 2e-3, chunk=64, start="gaussian", rounds=2),
    "aux_flow": Recipe(500, 16, 5e-4, chunk=64, start="full_gaussian", rounds=1),
}
"""Settings by family; `start` names the ladder that makes L[q*] of a richer family at least that of a poorer one."""


@dataclass(frozen=True)
class LocalFit:
    """A locally optimal posterior.

    Args:
        bound: L[q*] per image, on samples that neither the optimiser nor the choice of start or end saw.
        posterior: q*.
        start: L of the start, per image, on the same kind of samples.
        steps: optimisation steps that each image took (N,).

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> fit = optimize_local(vae, vae.simulate(10, seed=1), seed=0)
        >>> fit.bound.mean > fit.start.mean
        True
    """

    bound: Bound
    posterior: Posterior
    start: Bound
    steps: Tensor

    @property
    def family(self) -> str:
        """Name of the family."""
        return self.posterior.family.name


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
            one asked for, the encoder is tried as a second start, and the better kept per image.
        protocol: "fast", or "paper" for the published procedure: mean 0 and variance 1 as a start, 100 samples,
            Adam at 1e-3, ended when 11 windows of 100 steps in a row fail to beat the best (supplement; official
            code local_ffg.py). Thousands of steps: for comparison only.
        num_eval: samples per image behind the reported bound.
        recipe: settings; None for `RECIPES[family]`.
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
        >>> abs(optimize_local(vae, x, seed=0).bound.mean - best) < 0.02
        True
    """
    if protocol not in ("fast", "paper"):
        raise InputError(f"unknown protocol {protocol!r}; choose 'fast' or 'paper'")
    x = vae.check(x)
    target = make_family(family, vae.latent_dim).local_variant()
    plan = recipe or RECIPES[target.name]
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    options: dict[str, Any] = {"force_dtype": force_dtype, "seed": seed, "progress": progress}
    if protocol == "paper":
        return _published(vae, x, target, num_eval, **options)
    with evaluating(vae):
        encoder = vae.encode(x).detach()
    if start is not None and len(start) != len(x):
        raise InputError(f"the start is for {len(start)} images, but there are {len(x)}")
    if start is None and plan.start:
        start = optimize_local(vae, x, plan.start, num_eval=2, **options).posterior
    fit = _climb(vae, x, start if start is not None else encoder, target, plan, num_eval, **options)
    if encoder.family.name == target.name and plan.start:
        own = replace(plan, steps=200, samples=8, lr=2e-3)
        other = _climb(vae, x, encoder, encoder.family, own, num_eval, **options)
        fit = _better(vae, x, fit, other, num_eval, seed)
    return fit


def _climb(
    vae: Model,
    x: Tensor,
    start: Posterior,
    family: Family,
    plan: Recipe,
    num_eval: int,
    *,
    force_dtype: torch.dtype | None,
    seed: int,
    progress: bool,
) -> LocalFit:
    """Optimise chunk by chunk, two at a time where there are two cores, and report on fresh samples.

    Everything a chunk needs, its lifted start included, lives only as long as the chunk: a flow has 40,000 numbers an
    image, and the result should be the only place that holds them for all images.
    """
    count = len(x)
    pieces = [torch.arange(i, min(i + plan.chunk, count)) for i in range(0, count, plan.chunk)]
    workers = min(torch.get_num_threads(), len(pieces)) if x.device.type == "cpu" and plan.chunk < 500 else 1
    merged: dict[str, Tensor] = {}
    reports: list[tuple[Bound, Bound, Tensor]] = [None] * len(pieces)  # type: ignore[list-item]
    own = same_form(start.family, family)
    frozen = {k for k, v in start.params.items() if v.shape[0] == 1 < count} if own else set()
    guard = Lock()
    progressed = bar(total=count, desc=f"q* {family.name}", show=progress)

    def work(number: int) -> None:
        index, chunk_seed = pieces[number].to(x.device), seed + 7919 * (number + 1)
        begin = start[index] if own else lift(start[index], family)
        best, steps = _climb_chunk(vae, x[index], begin, plan, force_dtype, chunk_seed, frozen)
        fresh = elbo(vae, x[index], max(2, num_eval), best, seed=chunk_seed + 101)
        before = elbo(vae, x[index], max(2, num_eval), begin, seed=chunk_seed + 102)
        reports[number] = fresh, before, steps
        with guard:
            for name, value in best.params.items():
                if name in frozen:
                    merged[name] = value
                    continue
                if name not in merged:
                    merged[name] = value.new_empty((count, *value.shape[1:]))
                merged[name][index] = value
        progressed.update(len(index))

    elbo(vae, x, 2, start, seed=seed)  # a start that overflows is reported with the images' own indices, not a chunk's
    with evaluating(vae), progressed:
        if workers > 1:  # many small products: one thread a chunk beats two threads on each product
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(work, range(len(pieces))))
        else:
            for number in range(len(pieces)):
                work(number)
    bounds = [join_bounds([r[k] for r in reports]) for k in (0, 1)]  # type: ignore[misc]
    return LocalFit(bounds[0], Posterior(family, merged), bounds[1], torch.cat([r[2] for r in reports]))


def _climb_chunk(
    vae: Model,
    x: Tensor,
    start: Posterior,
    plan: Recipe,
    force_dtype: torch.dtype | None,
    seed: int,
    frozen: Collection[str],
) -> tuple[Posterior, Tensor]:
    """Rounds of ascent; an image leaves after a round that gained less than the tolerance or the noise."""
    generator = make_generator(vae, seed)
    joint = LogJoint(vae, x, force_dtype)
    best = start.detach()
    level = elbo(vae, x, 200, best, seed=seed)
    steps = torch.zeros(len(x), dtype=torch.long)
    active = torch.arange(len(x), device=x.device)
    for done in range(plan.rounds):
        num = plan.steps if done == 0 else plan.steps // 2
        begin = _pick(best, active, frozen)
        with torch.enable_grad():
            lr = plan.lr * 0.5**done
            *_, end = ascend(joint.subset(active), begin, num, plan.samples, lr, plan.beta2, generator, frozen)
        steps[active.cpu()] += num
        end = end.detach()
        new = elbo_unchecked(vae, x[active], 200, end, seed=seed + done + 1)
        gain = (new.per_image - level.per_image[active]).nan_to_num(-math.inf)  # what diverged has lost
        won = (gain > 0).nonzero().flatten()
        best = _replace(best, active[won], _pick(end, won, frozen), frozen)
        values, errors = level.per_image.clone(), level.mcse_per_image.clone()
        values[active[won]], errors[active[won]] = new.per_image[won], new.mcse_per_image[won]
        noise = (new.mcse_per_image.square() + level.mcse_per_image[active].square()).sqrt()
        level = replace(level, per_image=values, mcse_per_image=errors)
        active = active[gain > torch.maximum(2 * noise, torch.full_like(noise, plan.tolerance))]
        if len(active) == 0:
            break
    return best, steps


def _pick(q: Posterior, index: Tensor, frozen: Collection[str]) -> Posterior:
    """The posteriors of some images; frozen tensors belong to all, also where one image is left."""
    return Posterior(q.family, {k: v if k in frozen else v[index] for k, v in q.params.items()})


def _replace(q: Posterior, index: Tensor, new: Posterior, frozen: Collection[str]) -> Posterior:
    """q with the parameters of some images taken from `new`."""
    if len(index) == 0:
        return q
    out = {k: v if k in frozen else v.index_copy(0, index, new.params[k]) for k, v in q.params.items()}
    return Posterior(q.family, out)


def _better(vae: Model, x: Tensor, one: LocalFit, two: LocalFit, num_eval: int, seed: int) -> LocalFit:
    """The better fit per image, chosen on samples of its own and reported on others."""
    first = elbo(vae, x, 200, one.posterior, seed=seed + 11)
    second = elbo(vae, x, 200, two.posterior, seed=seed + 12)
    pick = second.per_image > first.per_image
    posterior = either(one.posterior, two.posterior, pick)
    bound = elbo(vae, x, max(2, num_eval), posterior, seed=seed + 13)
    return LocalFit(bound, posterior, two.start, torch.where(pick.cpu(), two.steps, one.steps))


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
