r"""Annealed importance sampling (AIS) and bidirectional Monte Carlo (BDMC): log p(x) from below and from both sides.

All chains of all images run at once, in the base's whitened coordinates u, z = loc + L u. With frozen step sizes
every transition leaves its density invariant, so exp of the weight is unbiased for p(x) and its logarithm a lower
bound in expectation, whatever the number of temperatures (Neal 2001; Grosse et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vaegap.bases import Base, make_base
from vaegap.bounds import Bound
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.evaluation import encode, evaluating, image_chunks, make_generator, matching, output_width
from vaegap.hmc import transition
from vaegap.models import Model, borrowed_rng
from vaegap.posteriors import Posterior
from vaegap.progress import bar
from vaegap.schedules import even_temperatures, spread, temperatures
from vaegap.weights import log_mean_exp

__all__ = ["Sandwich", "ais", "bdmc", "temperatures"]

_TARGET_ACCEPT = 0.8
_FEW = 8  # chains: fewer say little of their own spread
_LONGEST = math.pi / 2  # a trajectory of this length decorrelates a whitened Gaussian; longer ones come back


@dataclass(frozen=True)
class Sandwich:
    """log p(x) between two stochastic bounds, on data simulated from the model.

    Args:
        lower, upper: the bounds, per image in nats.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> sandwich = bdmc(linear_gaussian_vae(), num_images=20, num_temperatures=20, seed=0)
        >>> abs(sandwich.width) < 0.2
        True
    """

    lower: Bound
    upper: Bound

    @property
    def width(self) -> float:
        """Mean distance of the bounds over the images: the error of AIS, for such data, is at most about this."""
        return self.upper.mean - self.lower.mean

    @property
    def mcse(self) -> float:
        """Monte-Carlo standard error of `width`, from its spread over the simulated images.

        The errors of the bounds would not do: all reverse chains of an image start at its one exact sample, so that
        `upper.mcse_per_image` is the error given that sample, and too small.
        """
        width = (self.upper.per_image - self.lower.per_image).double()
        return width.std().item() / math.sqrt(len(width)) if len(width) > 1 else math.nan

    def __repr__(self) -> str:
        return f"Sandwich(width={self.width:.3f} ± {self.mcse:.3f} nats, {self.lower!r})"


class _Annealer:
    """The sequence of densities f_t = base^(1−β_t) · p(x, z)^β_t for a chunk of images, and moves on them."""

    def __init__(
        self, joint: LogJoint, base: Base, betas: Tensor, num_leapfrog: int, generator: torch.Generator
    ) -> None:
        self.joint, self.base, self.num_leapfrog, self.generator = joint, base, num_leapfrog, generator
        self.betas = betas.tolist()
        self.steps: list[Tensor] = []  # one (N, 1) per temperature 1..T-1, set by `tune`
        self.spread: list[float] = []  # standard deviation of log p(x, z) − log base at each temperature, likewise

    def energy(self, u: Tensor, rejecting: bool = False) -> tuple[Tensor, Tensor]:
        """log base and log p(x, z) + log|L|, each (C, N); `rejecting` as in `LogJoint.value`, for proposals."""
        return self.base.log_prob(u), self.joint.value(self.base.to_z(u), rejecting) + self.base.log_det

    def move(
        self, u: Tensor, parts: tuple[Tensor, ...], t: int, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """One transition that leaves f_t invariant."""
        beta = self.betas[t]

        def force(at: Tensor) -> Tensor:
            pull = self.base.pull(self.joint.grad(self.base.to_z(at), rejecting=True))
            return pull.mul_(beta).add_(self.base.grad(at), alpha=1 - beta)

        def log_density(p: tuple[Tensor, ...]) -> Tensor:
            return (1 - beta) * p[0] + beta * p[1]

        proposed = partial(self.energy, rejecting=True)
        return transition(u, parts, log_density, proposed, force, step, self.num_leapfrog, self.generator)

    def tune(self, num_chains: int, rounds: int) -> None:
        """Pilot runs: adapt log step sizes per image towards the target acceptance, then freeze them."""
        most = math.log(_LONGEST / self.num_leapfrog)
        shape = (len(self.betas) - 2, self.base.num_images, 1)
        log_steps = torch.full(shape, most - math.log(2), dtype=self.base.dtype, device=self.base.device)
        for done in range(rounds):
            u = self.base.sample(num_chains, self.generator)
            parts: tuple[Tensor, ...] = self.energy(u)
            self.spread = [spread(parts)]
            offset: Tensor | float = 0.0  # a correction carries over to the next temperature, so a wrong start heals
            for t in range(1, len(self.betas) - 1):
                before = log_steps[t - 1].clone()
                u, parts, accept = self.move(u, parts, t, (before + offset).clamp(max=most).exp())
                error = (accept.mean(0) - _TARGET_ACCEPT).unsqueeze(-1)
                log_steps[t - 1] = (before + offset + (1.0 if done == 0 else 0.4) * error).clamp(max=most)
                offset = log_steps[t - 1] - before
                self.spread.append(spread(parts))
        self.steps = list(log_steps.exp())

    def forward(self, num_chains: int, tick: Callable[[], object]) -> tuple[Tensor, Tensor]:
        """AIS: log-weights (C, N) and mean acceptance (N,), NaN where one temperature leaves nothing to move."""
        u = self.base.sample(num_chains, self.generator)
        parts = self.energy(u)
        return self._run(u, parts, range(1, len(self.betas)), tick)

    def reverse(self, z: Tensor, num_chains: int, tick: Callable[[], object]) -> tuple[Tensor, Tensor]:
        """The same path backwards from exact posterior samples z (N, d)."""
        u = self.base.to_u(z).expand(num_chains, -1, -1).contiguous()
        parts = self.energy(u)
        return self._run(u, parts, range(len(self.betas) - 1, 0, -1), tick)

    def _run(
        self, u: Tensor, parts: tuple[Tensor, ...], order: range, tick: Callable[[], object]
    ) -> tuple[Tensor, Tensor]:
        last = len(self.betas) - 1
        log_w = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        accepted, moves = torch.zeros(u.shape[1], dtype=torch.float64, device=u.device), 0
        for t in order:
            if order.step < 0 and t < last:
                u, parts, accept = self.move(u, parts, t, self.steps[t - 1])
                accepted, moves = accepted + accept.mean(0), moves + 1
            log_w += (self.betas[t] - self.betas[t - 1]) * (parts[1] - parts[0]).double()
            if order.step > 0 and t < last:  # at β = 1 a move would no longer change the weight
                u, parts, accept = self.move(u, parts, t, self.steps[t - 1])
                accepted, moves = accepted + accept.mean(0), moves + 1
            tick()
        return log_w, accepted / moves if moves else torch.full_like(accepted, math.nan)


def ais(
    vae: Model,
    x: Tensor,
    num_chains: int = 16,
    num_temperatures: int = 50,
    base: str | Posterior = "posterior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 6,
    force_dtype: torch.dtype | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Bound:
    r"""log p(x) by annealed importance sampling: a stochastic lower bound.

    Starts at `base`, passes through base(z)^{1−β} p(x, z)^β with one HMC transition per temperature, and averages
    exp(Σ_t (β_t − β_{t−1}) [log p(x, z_t) − log base(z_t)]) over chains. Step sizes are tuned per image and
    temperature in pilot runs with their own randomness and then frozen: adapting on the way would cost the bound.

    Args:
        vae: the model.
        x: images (N, D).
        num_chains: chains per image.
        num_temperatures: increments of β.
        base: where to start: "posterior" (a Gaussian with the moments of the encoder's q), "prior" (as in the
            paper), "mixture" (half and half, which cannot miss a mode the prior covers), or a `Posterior`, e.g. a
            locally optimal one.
        schedule: "sigmoid", "linear", or "adaptive": temperatures placed by a pilot run so that every increment of the
            log-weight spreads alike, then frozen.
        num_leapfrog: leapfrog steps per transition (10 in the paper's AIS).
        force_dtype: precision of the leapfrog forces, e.g. torch.bfloat16; energies stay exact.
        seed: of everything random.
        progress: show a bar.

    Returns:
        a lower `Bound`, per image in nats, with acceptance rates and effective sample sizes; images whose chains
        hardly move (acceptance below 10 %), or of which one carries the weight (an effective sample size below 2, from
        8 chains on), are in `flagged`.

    Raises:
        InputError: unusable images, a `Posterior` for other images, or a weight that is not finite.

    Source: Neal 2001; Wu et al. 2017; Cremer et al. 2018, supplement on AIS.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> x = vae.simulate(20, seed=1)
        >>> abs(ais(vae, x, num_temperatures=20, seed=0).mean - vae.log_evidence(x).mean().item()) < 0.1
        True
    """
    _check_counts(num_chains, num_leapfrog)
    x = vae.check(x)
    generator = make_generator(vae, seed)
    pieces = []
    with evaluating(vae):
        if isinstance(base, Posterior):
            base = matching(vae, x, base)
        elif base in ("posterior", "mixture"):
            encode(vae, x)  # what is wrong with the encoder is told with the images' own indices, not a chunk's
        chunks = _chunks(x, num_chains)
        progressed = bar(total=len(chunks) * num_temperatures, desc="AIS", show=progress)
        for part in chunks:
            annealer = _annealer(
                vae, x[part], base, part, num_temperatures, schedule, num_leapfrog, force_dtype, generator
            )
            pieces.append(annealer.forward(num_chains, progressed.update))
        progressed.close()
    return _bound(pieces, num_chains, "lower")


def bdmc(
    vae: Model,
    num_images: int = 100,
    num_chains: int = 16,
    num_temperatures: int = 50,
    base: str | Callable[[Tensor], Posterior] = "posterior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 6,
    force_dtype: torch.dtype | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Sandwich:
    r"""How good AIS is on this model: both bounds on data simulated from it.

    With z ~ p(z) and x ~ p(x|z), z is an exact posterior sample for x, so AIS can be run backwards from it:
    −log mean exp(−log w) is a stochastic upper bound. Forward and backward runs share path and step sizes.

    Args:
        vae: the model.
        num_images: images to simulate.
        num_chains, num_temperatures, schedule, num_leapfrog, force_dtype, seed, progress: as in `ais`.
        base: as in `ais`, or a function from images to a `Posterior`, e.g. one that fits q* to them.

    Returns:
        a `Sandwich`; its `.width` in nats is what to print beside an AIS value obtained with the same settings.

    Raises:
        InputError: nothing to simulate, fewer than one chain, or a weight that is not finite; its indices count the
            simulated images.

    Source: Grosse, Ghahramani & Adams 2015; Wu et al. 2017, section 3.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> bdmc(linear_gaussian_vae(), num_images=10, seed=0).lower.kind
        'lower'
    """
    if num_images < 1:
        raise InputError(f"num_images={num_images}: there is nothing to simulate")
    _check_counts(num_chains, num_leapfrog)
    generator = make_generator(vae, seed)
    forward, backward = [], []
    with evaluating(vae):
        z = vae.sample_prior(num_images, generator)
        with borrowed_rng(vae.device):  # torch.distributions knows no generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=vae.device)))
            # a few at a time: a categorical decoder gives out hundreds of numbers a pixel
            first = vae.decode(z[:1]).sample().flatten(1)
            rows = max(1, 2**20 // output_width(vae, first))
            x = torch.cat([vae.decode(part).sample() for part in z.split(rows)]).flatten(1).to(vae.dtype)
        start = matching(vae, x, base(x)) if callable(base) else base
        chunks = _chunks(x, num_chains)
        progressed = bar(total=2 * len(chunks) * num_temperatures, desc="BDMC", show=progress)
        for part in chunks:
            annealer = _annealer(
                vae, x[part], start, part, num_temperatures, schedule, num_leapfrog, force_dtype, generator
            )
            forward.append(annealer.forward(num_chains, progressed.update))
            log_w, accept = annealer.reverse(z[part], num_chains, progressed.update)
            backward.append((-log_w, accept))
        progressed.close()
    return Sandwich(_bound(forward, num_chains, "lower"), _bound(backward, num_chains, "upper"))


def _check_counts(num_chains: int, num_leapfrog: int) -> None:
    if num_chains < 1 or num_leapfrog < 1:
        raise InputError(f"num_chains={num_chains}, num_leapfrog={num_leapfrog}: at least 1 each")


def _chunks(x: Tensor, num_chains: int) -> list[slice]:
    return image_chunks(len(x), num_chains * max(512, x.shape[-1] // 4), most=500)


def _annealer(
    vae: Model,
    x: Tensor,
    base: str | Posterior,
    part: slice,
    num: int,
    schedule: str,
    num_leapfrog: int,
    force_dtype: torch.dtype | None,
    generator: torch.Generator,
) -> _Annealer:
    betas = temperatures(num, "sigmoid" if schedule == "adaptive" else schedule)
    chosen = base[part] if isinstance(base, Posterior) else base
    annealer = _Annealer(LogJoint(vae, x, force_dtype), make_base(vae, x, chosen), betas, num_leapfrog, generator)
    annealer.tune(num_chains=4, rounds=2)
    if schedule == "adaptive" and num > 2:  # the pilot's spreads place the temperatures; then the steps are tuned anew
        annealer.betas = even_temperatures(betas, annealer.spread, num).tolist()
        annealer.tune(num_chains=4, rounds=2)
    return annealer


def _bound(pieces: list[tuple[Tensor, Tensor]], num_chains: int, kind: str) -> Bound:
    log_w = torch.cat([p[0] for p in pieces], 1)
    accept = torch.cat([p[1] for p in pieces])
    bad = (~torch.isfinite(log_w).all(0)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"AIS weights of {len(bad)} images are not finite (first: image {bad[0]}): the model overflows there", bad
        )
    value, error, ess = log_mean_exp(log_w)
    if num_chains == 1:
        error = torch.full_like(value, torch.nan)
    stuck = (accept < 0.1).nonzero().flatten().tolist()
    flagged = {i: f"HMC accepts only {accept[i].item():.0%}: the chains hardly move" for i in stuck}
    if num_chains >= _FEW:
        lone = (ess < 2).nonzero().flatten().tolist()
        alone = f"one of {num_chains} chains carries the weight: the base is far off, or the temperatures are too few"
        flagged = dict.fromkeys(lone, alone) | flagged
    return Bound(value if kind == "lower" else -value, error, kind, num_chains, ess, None, accept, flagged or None)
