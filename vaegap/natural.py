r"""Natural-gradient ascent of L[q] for Gaussians: steps in the coordinates in which q itself is white.

With z = μ + L ε and r = Lᵀ ∇_z log p(x, z) + ε, the path gradient in those coordinates, a step is

    μ ← μ + η L E[r],     L ← L exp(η S),     S the lower half of E[r εᵀ], its diagonal halved,

(the exponential to first order off the diagonal, and a step cut at a length of `_REACH` √d)
which no change of the latents' scales can slow down, nor for a full covariance one of their correlations, and whose
noise vanishes where q is the posterior. Near it ½|E[r]|² + ¼|E[r εᵀ]|² nats are left to gain by more way, estimated
from products of averages over every other step, whose noises are independent; their difference tells the noise of a
step, and with it what the end has lost by noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaegap.energy import LogJoint
from vaegap.posteriors import FullGaussian, Gaussian, Posterior

__all__ = ["ascend_naturally", "is_plain_gaussian", "scale_of"]

_REACH = 0.3  # most that one step moves, per root of the dimension: in standard deviations, and in log-scales


def is_plain_gaussian(q: Posterior) -> bool:
    """Whether q is one of the Gaussian families with parameters of its own for every image."""
    return type(q.family) in (Gaussian, FullGaussian) and all(len(v) == len(q) for v in q.params.values())


def scale_of(q: Posterior) -> Tensor:
    """L of a Gaussian, z = μ + L ε: standard deviations (N, d), or a Cholesky factor (N, d, d)."""
    if isinstance(q.family, FullGaussian):
        return q.family.scale_tril(q.params)
    return (0.5 * q.params["logvar"]).exp()


@torch.no_grad()
def ascend_naturally(
    joint: LogJoint,
    q: Posterior,
    steps: int,
    samples: int,
    rate: float | Tensor,
    generator: torch.Generator,
    hold: int = 0,
) -> tuple[Posterior, Tensor, Tensor]:
    """The Gaussians (N) after some steps from q, and what is left to gain there.

    Args:
        joint: log p(x, z) of the images.
        q: factorized or full-covariance Gaussians.
        steps, samples: noise vectors an image and step, in antithetic pairs.
        rate: η at the beginning, of all or of each (N,). It falls as 1 / (1/η + step): the end is then the mean of what
            all steps ask for, and its noise as little as their number allows.
        generator: of the noise.
        hold: steps before the rate begins to fall: more way, and more noise.

    Returns:
        the Gaussians, the nats (N,) that more way may bring, and those that less noise may; NaN after fewer than 4
        steps.

    Source: natural gradients in whitened, exponential coordinates: Wierstra et al. 2014 (xNES), with gradients of
    log p in place of fitness values; path gradients: Roeder et al. 2017, eq. 8.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> x = vae.simulate(3)
        >>> noise = torch.Generator().manual_seed(0)
        >>> q, *left = ascend_naturally(LogJoint(vae, x), vae.encode(x), 300, 4, 0.2, noise)
        >>> bool(((q.mean - vae.posterior_moments(x)[0]).abs() < 0.1 * q.stddev).all())
        True
    """
    mean = q.params["mean"].clone()
    full = isinstance(q.family, FullGaussian)
    scale = scale_of(q)
    most = _REACH * mean.shape[1] ** 0.5
    begun = 1 / torch.as_tensor(rate, dtype=mean.dtype, device=mean.device)
    pairs = steps // 4  # of an even and an odd step: the later half
    totals = [[torch.zeros_like(mean), torch.zeros_like(scale)] for _ in range(2)]
    for step in range(steps):
        half = torch.randn((samples // 2, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)
        slopes = (_full_slopes if full else _slopes)(joint, mean, scale, torch.cat([half, -half]))
        if step >= steps - 2 * pairs:
            for total, slope in zip(totals[step % 2], slopes, strict=True):
                total += slope
        move, growth = (_within(slope, begun + max(0, step - hold), most) for slope in slopes)
        if full:
            factor = growth.tril(-1) + torch.diag_embed((0.5 * growth.diagonal(dim1=-2, dim2=-1)).exp())
            mean = torch.baddbmm(mean.unsqueeze(-1), scale, move.unsqueeze(-1)).squeeze(-1)
            scale = torch.bmm(scale, factor)
        else:
            mean, scale = mean + scale * move, scale * (0.5 * growth).exp()
    params = FullGaussian.from_tril(mean, scale) if full else {"mean": mean, "logvar": 2 * scale.log()}
    way, noise = _left(totals[0], totals[1], pairs, begun + max(0, steps - hold))
    return Posterior(q.family, params), way, noise


def _left(even: list[Tensor], odd: list[Tensor], pairs: int, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (N,) to be gained by more way and by less noise, from sums of slopes over some steps each."""
    way = noise = torch.zeros_like(even[0][:, 0])
    for weight, a, b in zip((0.5, 0.25), even, odd, strict=True):
        way = way + weight * (a * b).flatten(1).sum(1)
        noise = noise + weight * (a - b).square().flatten(1).sum(1)
    return way / pairs**2, noise / (2 * pairs * steps)


def _slopes(joint: LogJoint, mean: Tensor, scale: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """E[r] and the diagonal of E[r εᵀ], both (N, d), on noise (S, N, d)."""
    residual = joint.grad(mean + scale * eps).mul_(scale).add_(eps)
    return residual.mean(0), (residual * eps).mean(0)


def _full_slopes(joint: LogJoint, mean: Tensor, scale: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """E[r] (N, d) and E[r εᵀ] (N, d, d) for a lower triangular scale."""
    rows = eps.transpose(0, 1)  # (N, S, d)
    z = torch.baddbmm(mean.unsqueeze(1), rows, scale.mT).transpose(0, 1)
    residual = torch.baddbmm(rows, joint.grad(z.contiguous()).transpose(0, 1), scale)
    slope = torch.bmm(residual.mT, rows) / eps.shape[0]
    return residual.mean(1), 0.5 * (slope + slope.mT)  # symmetric in expectation (Price): half the variance


def _within(slope: Tensor, steps: Tensor, most: float) -> Tensor:
    """slope (N, ...) / steps (1 or N), an image's shortened to length `most` where it is longer."""
    rows = slope.flatten(1)
    tiny = torch.finfo(rows.dtype).tiny
    largest = (
        rows.abs().amax(1, keepdim=True).clamp_min(tiny)
    )  # divided by it first: the norm of huge numbers overflows
    length = (rows / largest).norm(dim=1, keepdim=True) * largest
    return (rows * torch.minimum(1 / steps.view(-1, 1), most / length)).view_as(slope)
