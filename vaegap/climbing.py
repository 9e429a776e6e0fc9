"""Ascent of L[q] for all images at once, in chunks and rounds; each image leaves when it no longer gains."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.bounds import Bound, elbo, join_bounds
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.evaluation import evaluating, make_generator
from vaegap.leaping import leap
from vaegap.models import Model
from vaegap.natural import ascend_naturally, is_plain_gaussian
from vaegap.posteriors import Family, Gaussian, Posterior
from vaegap.posteriors.lifting import lift, same_form
from vaegap.progress import bar
from vaegap.weights import controlled_log_weights

__all__ = ["LocalFit", "Recipe", "climb", "pick_rows", "put_rows"]

_LEAPS = 6  # most Newton steps in a row


@dataclass(frozen=True)
class Recipe:
    """How one family is optimised.

    Args:
        steps: steps of the first round.
        samples: noise vectors per image and step (antithetic pairs).
        lr: learning rate, falling to 1 % by cosine in each round: of Adam, or for Gaussians of the natural gradient.
        beta2: Adam's second decay.
        chunk: images optimised together.
        start: the poorer family it starts from; "" for the encoder.
        rounds: most rounds at falling rates, each half the last; an image leaves after a round that gained less than
            `tolerance`.
        repeats: most rounds at the full rate before the rate falls: an image that gained more than `far` in a round
            had not arrived: one round moves a number only so far.
        tolerance, far: nats.
        judges: samples an image on which an end is compared with its start; the end is reported on others.
        again: steps of later rounds; 0 for half as many as in the first.

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
    repeats: int = 0
    far: float = 0.1
    again: int = 0

    def __post_init__(self) -> None:
        counts = min(
            self.steps, self.samples, self.chunk, self.rounds, self.judges - 1, self.repeats + 1, self.again + 1
        )
        if counts < 1 or self.samples % 2 or not self.lr > 0:
            raise InputError(
                "a recipe needs steps, chunk and rounds of at least 1, a positive lr, 2 judges or more, and samples in "
                f"pairs; got {self}"
            )


@dataclass(frozen=True)
class LocalFit:
    """A locally optimal posterior.

    Args:
        bound: L[q*] per image, on samples that neither the optimiser nor the choice of start or end saw. Images whose
            ascent diverged, or still gained in its last round, are in its `flagged`.
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
            best, before, steps, notes = _climb_chunk(vae, x[index], begin, plan, force_dtype, chunk_seed, frozen)
            fresh = elbo(vae, x[index], max(2, num_eval), best, seed=chunk_seed + 101)
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
    """Rounds of ascent; an image leaves when a round gained less than asked for, or than the noise.

    Returns the better of start and end, L of the start, the steps each image took, and the images to flag.
    """
    generator = make_generator(vae, seed)
    joint = LogJoint(vae, x, force_dtype)
    best = start.detach()
    flagged: dict[int, str] = {}
    first = elbo(vae, x, plan.judges, best, seed=seed)
    steps = torch.zeros(len(x), dtype=torch.long)
    gain = torch.full_like(first.per_image, torch.inf)  # of each image's last round, as far as it is beyond doubt
    rates = [plan.lr] * (1 + plan.repeats) + [plan.lr * 0.5**k for k in range(1, plan.rounds)]
    for done, lr in enumerate(rates):
        active = (gain > (plan.far if done <= plan.repeats else plan.tolerance)).nonzero().flatten()
        if len(active) == 0:
            continue  # later rounds ask for less
        num = plan.steps if done == 0 else plan.again or max(1, plan.steps // 2)
        begin = pick_rows(best, active, frozen)
        end, left = _round(vae, x[active], joint.subset(active), begin, plan, num, lr, seed + done, generator, frozen)
        steps[active.cpu()] += num
        difference, noise = _compare(vae, x[active], begin, end, plan.judges, seed + done)
        finite, won = torch.isfinite(difference), difference > 0
        flagged |= dict.fromkeys(active[~finite].tolist(), "the ascent diverged: this is where it started")
        rows = won.nonzero().flatten()
        best = put_rows(best, active[rows], pick_rows(end, rows, frozen), frozen)
        left = difference.where(difference > 2 * noise, 0.0).fmin(left.to(difference))
        # an end that lost went too far, not nowhere: the falling rates get their turn
        gain[active] = torch.where(won, left, plan.far).where(finite, 0.0)
    if len(rates) > 1:
        for i in (gain > plan.far).nonzero().flatten().tolist():
            flagged[i] = f"the ascent has not ended: its last round still gained {gain[i]:.2f} nats"
    return best, first, steps, flagged


def _round(
    vae: Model,
    x: Tensor,
    joint: LogJoint,
    q: Posterior,
    plan: Recipe,
    steps: int,
    lr: float,
    seed: int,
    generator: torch.Generator,
    frozen: Collection[str],
) -> tuple[Posterior, Tensor]:
    """Where one round from q ends, and what is left to gain there (N,): NaN where only the next round tells."""
    unknown = torch.full((len(q),), torch.nan)
    if not is_plain_gaussian(q):
        with torch.enable_grad():
            *_, last = ascend(joint, q, steps, plan.samples, lr, plan.beta2, generator, frozen)
        return last.detach(), unknown
    if isinstance(q.family, Gaussian):  # leaps polish, for their noise is less than that of steps
        q = ascend_naturally(joint, q, steps, plan.samples, lr, generator)
        return _leap_while_better(vae, x, joint, q, plan, seed, generator)
    # ... and for a full covariance, whose steps have no noise at the posterior, they are how to start
    q, _ = _leap_while_better(vae, x, joint, q, plan, seed, generator)
    return ascend_naturally(joint, q, steps, plan.samples, lr, generator), unknown


def _leap_while_better(
    vae: Model, x: Tensor, joint: LogJoint, q: Posterior, plan: Recipe, seed: int, generator: torch.Generator
) -> tuple[Posterior, Tensor]:
    """Gaussians after Newton steps that brought what they promised, and what is left to gain (N,)."""
    left = torch.full((len(q),), torch.nan, dtype=q.params["mean"].dtype, device=x.device)
    index = torch.arange(len(q), device=x.device)
    for k in range(_LEAPS):
        there, promised = leap(joint.subset(index), q[index], generator)
        left[index] = promised
        small, large = promised <= plan.tolerance, promised > plan.tolerance
        q = put_rows(q, index[small], there[small], ())  # no comparison could tell
        index, there, promised = index[large], there[large], promised[large]
        if len(index) == 0:
            break
        difference, noise = _compare(vae, x[index], q[index], there, plan.judges, seed + k)
        kept = (difference > 2 * noise) | ((difference - promised).abs() <= 2 * noise)
        q = put_rows(q, index[kept], there[kept], ())
        left[index] = ((promised - difference.where(kept, 0.0)).abs() - 2 * noise).clamp_min(0).to(left)
        index = index[kept & (difference > plan.far)]
        if len(index) == 0:
            break
    return q, left


def _compare(vae: Model, x: Tensor, begin: Posterior, end: Posterior, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """L[end] - L[begin] on the same noise and its standard error (N,)."""
    groups = zip(*(controlled_log_weights(vae, x, num, q, seed) for q in (begin, end)), strict=True)
    gains = ((after - before).double() for before, after in groups)
    difference, noise = torch.cat([torch.stack([g.mean(0), g.std(0) / num**0.5]) for g in gains], 1)
    return difference, noise


def pick_rows(q: Posterior, index: Tensor, frozen: Collection[str]) -> Posterior:
    """The posteriors of some images; frozen tensors belong to all, also where one image is left."""
    return Posterior(q.family, {k: v if k in frozen else v[index] for k, v in q.params.items()})


def put_rows(q: Posterior, index: Tensor, new: Posterior, frozen: Collection[str]) -> Posterior:
    """q with the parameters of some images taken from `new`."""
    if len(index) == 0:
        return q
    out = {k: v if k in frozen else v.index_copy(0, index, new.params[k]) for k, v in q.params.items()}
    return Posterior(q.family, out)
