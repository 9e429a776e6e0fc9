"""Ascent of L[q] for all images at once, in chunks and rounds; each image leaves when it no longer gains."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from vaegap.bounds import Bound, elbo, join_bounds
from vaegap.errors import InputError
from vaegap.evaluation import evaluating, make_generator
from vaegap.models import Model
from vaegap.posteriors import Family, FullGaussian, Posterior
from vaegap.posteriors.lifting import lift, same_form
from vaegap.progress import bar
from vaegap.rounds import PLAIN, Climber, Recipe, pick_rows, put_rows, still_to_gain

__all__ = ["LocalFit", "climb"]

_NUMBERS = 2**24  # of all posteriors of a chunk, 64 MB in float32; the ascent holds some ten times as many


@dataclass(frozen=True)
class LocalFit:
    """A locally optimal posterior.

    Args:
        bound: L[q*] per image, on samples that neither the optimiser nor the choice of start or end saw. Images whose
            ascent diverged, has not ended, or ended below its start at every rate are in its `flagged` (the last two
            not with a recipe of a single round, which is meant to be cut short).
        posterior: q*.
        start: L of the (first) start, per image, on samples of its own.
        steps: optimisation steps that each image took (N,), leaps not counted.

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
    own = same_form(start.family, family)
    frozen = {k for k, v in start.params.items() if v.shape[0] == 1 < count or k in shared} if own else set()
    one = start[:1] if own else lift(start[:1], family)
    numbers = sum(v[0].numel() for k, v in one.params.items() if k not in frozen)
    size = min(plan.chunk, max(1, _NUMBERS // max(1, numbers)))
    pieces = [torch.arange(i, min(i + size, count)) for i in range(0, count, size)]
    workers = min(torch.get_num_threads(), len(pieces)) if x.device.type == "cpu" and plan.chunk < 500 else 1
    merged: dict[str, Tensor] = {}
    reports: list[tuple[Bound, Bound, Tensor]] = [None] * len(pieces)  # type: ignore[list-item]
    guard = Lock()
    progressed = bar(total=count, desc=f"q* {family.name}", show=progress)

    def work(number: int) -> None:
        index, chunk_seed = pieces[number].to(x.device), seed + 7919 * (number + 1)
        begin = start[index] if own else lift(start[index], family)
        try:
            best, before, steps, notes = _climb_chunk(vae, x[index], begin, plan, force_dtype, chunk_seed, frozen)
            fresh = elbo(vae, x[index], max(2, num_eval), best, seed=chunk_seed + 1)
        except InputError as error:
            raise error.among(pieces[number].tolist()) from error
        reports[number] = replace(fresh, flagged=notes or None), before, steps
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
) -> tuple[Posterior, Bound, Tensor, dict[int, str]]:
    """Rounds of ascent; an image leaves when little is left to gain, by its last round and what leaps or steps tell.

    Returns the better of start and end, L of the start, the steps each image took, and the images to flag.
    """
    generator = make_generator(vae, seed)
    best = start.detach()
    flagged: dict[int, str] = {}
    first = elbo(vae, x, plan.judges, best, seed=seed + 10)
    gain = torch.full_like(first.per_image, torch.inf)  # left to gain, by what each image's last round tells
    short = torch.zeros_like(gain)  # nats by which an image's last round ended below its start
    rates = [plan.lr] * (1 + plan.repeats) + [plan.lr * 0.5**k for k in range(1, plan.rounds)]
    climber = Climber(vae, x, plan, force_dtype, generator, frozen)
    far = torch.tensor(plan.far, dtype=torch.double, device=x.device)
    sure = plan.far if isinstance(start.family, FullGaussian) else PLAIN  # its steps know well what is left
    for done, lr in enumerate(rates):
        active = (gain > (plan.far if done <= plan.repeats else plan.tolerance)).nonzero().flatten()
        if len(active) == 0:
            continue  # later rounds ask for less
        num = plan.steps if done == 0 else plan.again or max(1, plan.steps // 2)
        begin = pick_rows(best, active, frozen)
        end, difference, noise, left = climber.round(active, begin, num, lr, seed + 20 * (done + 1), first=done == 0)
        finite, won = torch.isfinite(difference), difference >= 0
        flagged |= dict.fromkeys(active[~finite].tolist(), "the ascent diverged: this is where it started")
        rows = won.nonzero().flatten()
        best = put_rows(best, active[rows], pick_rows(end, rows, frozen), frozen)
        more = still_to_gain(difference, noise, left, sure)
        # an end that lost went too far, not nowhere: the falling rates get their turn
        turn = torch.full_like(more, plan.far) if done <= plan.repeats else left.to(more).fmax(far)
        gain[active] = torch.where(won, more, turn).where(finite, 0.0)
        short[active] = (-difference - 2 * noise).where(finite, 0.0)
    if len(rates) > 1:
        for i in (gain > plan.far).nonzero().flatten().tolist():
            flagged[i] = f"the ascent has not ended: {gain[i]:.2f} nats seem left, or more"
        for i in (short > plan.far).nonzero().flatten().tolist():
            flagged[i] = "the ascent ended below its start, at every rate that was tried: this is where it was before"
    return best, first, climber.taken.cpu(), flagged
