"""Ascent of L[q] for all images at once, in chunks and rounds; each image leaves when it no longer gains."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.bounds import Bound, elbo, elbo_unchecked, evaluating, join_bounds, make_generator
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.models import Model
from vaegap.posteriors import Family, Posterior
from vaegap.posteriors.lifting import lift, same_form
from vaegap.progress import bar

__all__ = ["LocalFit", "Recipe", "climb", "pick_rows", "put_rows"]


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
        judges: samples an image on which an end is compared with its start; the end is reported on others.

    Raises:
        InputError: a count below 1, fewer than 2 judges, or samples that do not make pairs.
    """

    steps: int
    samples: int
    lr: float
    beta2: float = 0.999
    chunk: int = 500
    start: str = ""
    rounds: int = 3
    tolerance: float = 0.02
    judges: int = 200

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.chunk, self.rounds, self.judges - 1) < 1 or self.samples % 2:
            raise InputError(
                "a recipe needs steps, chunk and rounds of at least 1, 2 judges or more, and samples in pairs; "
                f"got {self}"
            )


@dataclass(frozen=True)
class LocalFit:
    """A locally optimal posterior.

    Args:
        bound: L[q*] per image, on samples that neither the optimiser nor the choice of start or end saw.
        posterior: q*.
        start: L of the start, per image, on the samples on which it was compared with the end.
        steps: optimisation steps that each image took (N,).

    Example:
        >>> from vaegap import optimize_local
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


def climb(
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
    shared: Collection[str] = (),
) -> LocalFit:
    """Optimise chunk by chunk, two at a time where there are two cores, and report on fresh samples.

    Weights that all images share stay as they are: those with one row, and `shared`, which names them for one image.
    Everything a chunk needs, its lifted start included, lives only as long as the chunk: a flow has 40,000 numbers an
    image, and the result should be the only place that holds them for all images.
    """
    count = len(x)
    pieces = [torch.arange(i, min(i + plan.chunk, count)) for i in range(0, count, plan.chunk)]
    workers = min(torch.get_num_threads(), len(pieces)) if x.device.type == "cpu" and plan.chunk < 500 else 1
    merged: dict[str, Tensor] = {}
    reports: list[tuple[Bound, Bound, Tensor]] = [None] * len(pieces)  # type: ignore[list-item]
    own = same_form(start.family, family)
    frozen = {k for k, v in start.params.items() if v.shape[0] == 1 < count or k in shared} if own else set()
    guard = Lock()
    progressed = bar(total=count, desc=f"q* {family.name}", show=progress)

    def work(number: int) -> None:
        index, chunk_seed = pieces[number].to(x.device), seed + 7919 * (number + 1)
        begin = start[index] if own else lift(start[index], family)
        try:
            best, before, steps, lost = _climb_chunk(vae, x[index], begin, plan, force_dtype, chunk_seed, frozen)
            fresh = elbo(vae, x[index], max(2, num_eval), best, seed=chunk_seed + 101)
        except InputError as error:
            raise error.among(pieces[number].tolist()) from error
        fresh = replace(fresh, flagged=dict.fromkeys(lost, "the ascent diverged: this is where it started") or None)
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
) -> tuple[Posterior, Bound, Tensor, list[int]]:
    """Rounds of ascent; an image leaves after a round that gained less than the tolerance or the noise.

    Returns the better of start and end, L of the start, the steps each image took, and the images that diverged.
    """
    generator = make_generator(vae, seed)
    joint = LogJoint(vae, x, force_dtype)
    best = start.detach()
    level = first = elbo(vae, x, plan.judges, best, seed=seed)
    steps = torch.zeros(len(x), dtype=torch.long)
    active = torch.arange(len(x), device=x.device)
    lost: list[int] = []
    for done in range(plan.rounds):
        num = plan.steps if done == 0 else plan.steps // 2
        begin = pick_rows(best, active, frozen)
        with torch.enable_grad():
            lr = plan.lr * 0.5**done
            *_, end = ascend(joint.subset(active), begin, num, plan.samples, lr, plan.beta2, generator, frozen)
        steps[active.cpu()] += num
        end = end.detach()
        # the same noise as before: a paired comparison
        new = elbo_unchecked(vae, x[active], plan.judges, end, seed=seed)
        finite = torch.isfinite(new.per_image)
        lost += active[~finite].tolist()
        gain = (new.per_image - level.per_image[active]).where(finite, -torch.inf)
        noise = (new.mcse_per_image.square() + level.mcse_per_image[active].square()).sqrt()
        won = (gain > -noise).nonzero().flatten()  # in doubt the end: ascents seldom lose, and a noisy start can shine
        best = put_rows(best, active[won], pick_rows(end, won, frozen), frozen)
        values, errors = level.per_image.clone(), level.mcse_per_image.clone()
        values[active[won]], errors[active[won]] = new.per_image[won], new.mcse_per_image[won]
        level = replace(level, per_image=values, mcse_per_image=errors)
        active = active[gain > torch.maximum(2 * noise, torch.full_like(noise, plan.tolerance))]
        if len(active) == 0:
            break
    return best, first, steps, sorted(set(lost))


def pick_rows(q: Posterior, index: Tensor, frozen: Collection[str]) -> Posterior:
    """The posteriors of some images; frozen tensors belong to all, also where one image is left."""
    return Posterior(q.family, {k: v if k in frozen else v[index] for k, v in q.params.items()})


def put_rows(q: Posterior, index: Tensor, new: Posterior, frozen: Collection[str]) -> Posterior:
    """q with the parameters of some images taken from `new`."""
    if len(index) == 0:
        return q
    out = {k: v if k in frozen else v.index_copy(0, index, new.params[k]) for k, v in q.params.items()}
    return Posterior(q.family, out)
