"""One round of ascent for some images, by what suits their family, and what it leaves to gain."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.leaping import leap
from vaegap.models import Model
from vaegap.natural import ascend_naturally, is_plain_gaussian
from vaegap.posteriors import Gaussian, Posterior
from vaegap.weights import controlled_log_weights

__all__ = ["PLAIN", "Climber", "Recipe", "compare", "judge", "pick_rows", "put_rows", "still_to_gain"]

_SURE = 0.1  # nats: with less noise than that, a wrong winner loses a fiftieth at most, on average
_MISSED = 0.6  # nats: a leap that missed its promise by less came near enough for steps
PLAIN = 0.3  # nats: promises above it count whatever the noise, and noise above it tells nothing


@dataclass(frozen=True)
class Recipe:
    """How one family is optimised.

    Args:
        steps: steps of the first round.
        samples: noise vectors per image and step (antithetic pairs); a full covariance takes a sixth of its latents'
            number if that is more, and no rate above samples / latents.
        lr: learning rate of Adam, falling to 1 % by cosine in each round, or for Gaussians of the natural gradient,
            falling as 1 / step.
        beta2: Adam's second decay.
        chunk: images optimised together.
        start: the poorer family it starts from; "" for the encoder.
        rounds: most rounds at falling rates, the first at `lr`, each later one at half the one before; an image leaves
            after a round that gained less than `tolerance`, or after which leaps, or steps of a full covariance, tell
            that less is left.
        repeats: most further rounds at the full rate before the rate falls: an image that gained more than `far` in a
            round had not arrived: one round moves a number only so far.
        tolerance, far: nats.
        judges: samples an image on which an end or a leap is compared with its start; the end is reported on others.
        again: steps of later rounds; 0 for half as many as in the first.
        leaps: most Newton steps in a row, for Gaussians, up to 18, none beyond 512 latents; one that promises less than
            `tolerance` is the last.

    Raises:
        InputError: a count below 1, or below 0 where 0 means none, fewer than 2 judges, more than 18 leaps, a rate that
            is not positive, or samples that do not make pairs.
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
    leaps: int = 6

    def __post_init__(self) -> None:
        counts = (self.steps, self.samples, self.chunk, self.rounds, self.judges - 1)
        wrong = min(counts) < 1 or min(self.repeats, self.again, self.leaps) < 0 or self.leaps > 18
        if wrong or self.samples % 2 or not self.lr > 0:
            raise InputError(
                "a recipe needs steps, chunk and rounds of at least 1, a positive lr, 2 judges or more, at most 18 "
                f"leaps, and samples in pairs; got {self}"
            )


class Climber:
    """Rounds of ascent for any of a chunk's images.

    Args:
        vae, x: the model and the images (N, D).
        plan: the family's settings.
        force_dtype: precision of the gradients in steps; leaps and comparisons are in the model's own.
        generator: of the noise of steps and leaps.
        frozen: names of tensors that all images share, and that stay as they are.
    """

    def __init__(
        self,
        vae: Model,
        x: Tensor,
        plan: Recipe,
        force_dtype: torch.dtype | None,
        generator: torch.Generator,
        frozen: Collection[str],
    ) -> None:
        self.vae, self.x, self.plan, self.generator, self.frozen = vae, x, plan, generator, frozen
        self.joint, self.exact = LogJoint(vae, x, force_dtype), LogJoint(vae, x)
        self.taken = torch.zeros(len(x), dtype=torch.long, device=x.device)  # steps of each image
        self.arrived = torch.zeros(len(x), dtype=x.dtype, device=x.device)  # those since it arrived: it averages

    def round(
        self, active: Tensor, q: Posterior, steps: int, lr: float, seed: int, first: bool
    ) -> tuple[Posterior, Tensor, Tensor, Tensor]:
        """Where one round from q ends, what it gained with which standard error, and what is left to gain there (n,).

        Args:
            active: the images' indices (n,).
            q: their posteriors.
            steps, lr: of the ascent.
            seed: of comparisons; 20 of them are used.
            first: whether it is these images' first.

        Returns:
            the posteriors, and three tensors (n,) in nats; what is left is NaN where only the gain tells.
        """
        plan, x = self.plan, self.x[active]
        if first and plan.leaps and is_plain_gaussian(q):
            return self._first(active, q, steps, lr, seed)
        joint, before = self.joint.subset(active), self.arrived[active]
        self.taken[active] += steps
        if not is_plain_gaussian(q):
            with torch.enable_grad():
                *_, last = ascend(joint, q, steps, plan.samples, lr, plan.beta2, self.generator, self.frozen)
            end, left = last.detach(), torch.full((len(q),), torch.nan, device=x.device)
        elif isinstance(q.family, Gaussian):  # leaps polish, for their noise is less than that of steps
            end, way, _ = ascend_naturally(joint, q, steps, plan.samples, lr, self.generator, hold=steps // 2)
            end, *_, left = self._leap(active, end, seed)
            left = torch.where(
                left.isnan() & (way > plan.far), way, left
            )  # slopes see less than leaps, but not nothing
        else:
            samples = max(plan.samples, 2 * (q.family.latent_dim // 12))  # a slope of d x d numbers wants some
            lr = min(lr, samples / q.family.latent_dim)  # ... or it is nearly all noise, and long steps go astray
            end, way, blur = ascend_naturally(joint, q, steps, samples, lr / (1 + lr * before), self.generator)
            self.arrived[active] = (before + steps).where(way < plan.far, 0.0)
            left = way.clamp_min(0) + blur
        difference, noise = judge(self.vae, x, q, end, plan.judges, seed + 18)
        self.arrived[active] = self.arrived[active].where(difference >= 0, before)  # an end that lost is not kept
        return end, difference, noise, left

    def _first(
        self, active: Tensor, q: Posterior, steps: int, lr: float, seed: int
    ) -> tuple[Posterior, Tensor, Tensor, Tensor]:
        """The first round of Gaussians: leaps, then steps where leaps do not suffice; arguments as of `round`.

        A full covariance takes steps in any case: they lose their noise at the posterior, and leaps keep some.
        """
        full = not isinstance(q.family, Gaussian)
        q, gain, noise, left = self._leap(active, q, seed, missed=_MISSED if full else 0.0)
        rows = (~(left <= self.plan.tolerance) | full).nonzero().flatten()
        if len(rows) == 0:
            return q, gain, noise, left
        end, more, error, rest = self.round(active[rows], q[rows], steps, lr, seed, first=False)
        lost = ~(more > -1e-4)  # more than rounding, or diverged: the steps were too long, and the leaps' end stands
        kept = (~lost).nonzero().flatten()
        gain = gain.index_copy(0, rows, more.where(~lost, 0.0).clamp_min(0))
        noise, left = noise.index_copy(0, rows, error), left.index_copy(0, rows, rest.to(left).where(~lost, torch.inf))
        return put_rows(q, rows[kept], end[kept], ()), gain, noise, left

    def _leap(
        self, active: Tensor, q: Posterior, seed: int, missed: float = 0.0
    ) -> tuple[Posterior, Tensor, Tensor, Tensor]:
        """Gaussians after Newton steps that brought what they promised; as `round`, but gains of small ones left out.

        An image leaps again if the last leap brought much, and missed its promise by more than `missed` nats.
        """
        plan = self.plan
        gain, variance = torch.zeros(2, len(q), dtype=torch.double, device=self.x.device)
        left = torch.full_like(gain, torch.nan)
        index = torch.arange(len(q), device=self.x.device)
        for k in range(plan.leaps):
            there, promised = leap(self.exact.subset(active[index]), q[index], self.generator)
            # a promise of a loss says that the quadratic knows nothing; what promises little may not show a loss
            left[index] = promised.where(promised > -plan.tolerance, torch.nan).to(left)
            small, large = (promised <= plan.tolerance).nonzero().flatten(), promised > plan.tolerance
            if len(small):
                rows, few = index[small], max(2, plan.judges // 2)
                shown, noise = compare(self.vae, self.x[active[rows]], q[rows], there[small], few, seed + k)
                fine = shown > -noise
                q = put_rows(q, rows[fine], there[small[fine]], ())
            index, there, promised = index[large], there[large], promised[large]
            if len(index) == 0:
                break
            difference, noise = compare(self.vae, self.x[active[index]], q[index], there, plan.judges, seed + k)
            twice = 2 * noise
            close = (difference > -noise) & ((difference - promised).abs() <= twice.clamp(max=PLAIN))
            kept = (difference > twice) | close
            q = put_rows(q, index[kept], there[kept], ())
            gain[index[kept]] += difference[kept]
            variance[index[kept]] += noise[kept].square()
            miss = (promised - difference.where(kept, 0.0)).abs()
            left[index] = (miss - twice).clamp_min(0).where(twice <= PLAIN, torch.nan)
            index = index[kept & (difference > plan.far) & (miss >= missed)]
            if len(index) == 0:
                break
        else:
            left[index] = torch.nan  # the last leap brought much: who knows what the next would
        return q, gain, variance.sqrt(), left


def still_to_gain(difference: Tensor, noise: Tensor, left: Tensor, sure: float) -> Tensor:
    """What an image's next round may bring, from what its last one brought (n,), that one's noise, and a witness.

    A gain that drowns in little noise is none; one that drowns in much says nothing. Where leaps or steps tell what is
    left (a number), a small rest ends an ascent, and one of more than `sure` nats goes on with it.
    """
    clear = (difference > 2 * noise) | (2 * noise > PLAIN)
    left = left.to(difference)
    return torch.where(left > sure, left, difference.abs().where(clear, 0.0).fmin(left))


def judge(vae: Model, x: Tensor, begin: Posterior, end: Posterior, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """`compare`, and where the noise leaves the winner in doubt once more, with five times the samples and seed + 1."""
    difference, noise = compare(vae, x, begin, end, num, seed)
    doubt = (noise > _SURE) & (difference.abs() <= 2 * noise)
    rows = doubt.nonzero().flatten()
    if len(rows):
        again = compare(vae, x[rows], begin[rows], end[rows], 5 * num, seed + 1)
        difference, noise = difference.index_copy(0, rows, again[0]), noise.index_copy(0, rows, again[1])
    return difference, noise


def compare(vae: Model, x: Tensor, begin: Posterior, end: Posterior, num: int, seed: int) -> tuple[Tensor, Tensor]:
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
