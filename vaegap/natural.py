r"""Natural-gradient ascent of L[q] for Gaussians: steps in the coordinates in which q itself is white.

With z = μ + L ε and r = Lᵀ ∇_z log p(x, z) + ε, the path gradient in those coordinates, a step is

    μ ← μ + η L E[r],     L ← L exp(η S),     S the lower half of E[r εᵀ], its diagonal halved,

which no change of the latents' scales can slow down, nor for a full covariance one of their correlations, and whose
noise vanishes where q is the posterior.
"""

from __future__ import annotations

import math

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
    joint: LogJoint, q: Posterior, steps: int, samples: int, rate: float, generator: torch.Generator
) -> Posterior:
    """The Gaussians (N) after some steps from q.

    Args:
        joint: log p(x, z) of the images.
        q: factorized or full-covariance Gaussians.
        steps, samples: noise vectors an image and step, in antithetic pairs.
        rate: η at the beginning; it falls to 1 % by cosine.
        generator: of the noise.

    Source: natural gradients in whitened, exponential coordinates: Wierstra et al. 2014 (xNES), with gradients of
    log p in place of fitness values; path gradients: Roeder et al. 2017, eq. 8.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> x = vae.simulate(3)
        >>> q = ascend_naturally(LogJoint(vae, x), vae.encode(x), 300, 4, 0.2, torch.Generator().manual_seed(0))
        >>> bool(((q.mean - vae.posterior_moments(x)[0]).abs() < 0.1 * q.stddev).all())
        True
    """
    mean = q.params["mean"].clone()
    full = isinstance(q.family, FullGaussian)
    scale = scale_of(q)
    most = _REACH * mean.shape[1] ** 0.5
    for step in range(steps):
        now = rate * min(1.0, (step + 1) / 10) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        half = torch.randn((samples // 2, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)
        eps = torch.cat([half, -half])
        mean, scale = (_full_step if full else _step)(joint, mean, scale, eps, now, most)
    if not full:
        return Posterior(q.family, {"mean": mean, "logvar": 2 * scale.log()})
    return Posterior(q.family, FullGaussian.from_tril(mean, scale))


def _step(joint: LogJoint, mean: Tensor, scale: Tensor, eps: Tensor, rate: float, most: float) -> tuple[Tensor, Tensor]:
    """Mean (N, d) and scale (N, d) after one step with noise (S, N, d)."""
    residual = joint.grad(mean + scale * eps).mul_(scale).add_(eps)
    move = _within(rate * residual.mean(0), most)
    growth = _within(0.5 * rate * (residual * eps).mean(0), most)
    return mean + scale * move, scale * growth.exp()


def _full_step(
    joint: LogJoint, mean: Tensor, scale: Tensor, eps: Tensor, rate: float, most: float
) -> tuple[Tensor, Tensor]:
    """The same for a lower triangular scale (N, d, d)."""
    rows = eps.transpose(0, 1)  # (N, S, d)
    z = torch.baddbmm(mean.unsqueeze(1), rows, scale.mT).transpose(0, 1)
    residual = torch.baddbmm(rows, joint.grad(z.contiguous()).transpose(0, 1), scale)
    move = _within(rate * residual.mean(1), most)
    slope = torch.bmm(residual.mT, rows) / eps.shape[0]
    growth = _within(0.5 * rate * (slope + slope.mT), most)  # symmetric in expectation (Price): half the variance
    factor = growth.tril(-1) + torch.diag_embed((0.5 * growth.diagonal(dim1=-2, dim2=-1)).exp())
    moved = torch.baddbmm(mean.unsqueeze(-1), scale, move.unsqueeze(-1)).squeeze(-1)
    return moved, torch.bmm(scale, factor)


def _within(change: Tensor, most: float) -> Tensor:
    """Each image's change (N, ...), shortened to length `most` where it is longer."""
    rows = change.flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(most)  # first, or the norm of huge numbers overflows
    length = (rows / largest).norm(dim=1, keepdim=True) * largest
    return torch.where(length > most, rows / largest * (most / (length / largest)), rows).view_as(change)
