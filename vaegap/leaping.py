r"""A Newton step for Gaussians: where latents are correlated, or far away, steps along the gradient crawl.

With z = μ + L ε, the whitened slope b = E[Lᵀ ∇_z log p(x, z)] and curvature A = −E[Lᵀ ∇_z log p(x, z) εᵀ] (by Stein's
lemma minus the expected Hessian, in units of q), the quadratic that has both has its best Gaussian at

    μ ← μ + L A⁻¹ b,     L Lᵀ ← L A⁻¹ Lᵀ,     or, factorized with L = diag s,     s ← s / √diag A.

The noise vectors are orthogonal, in antithetic pairs: for a Gaussian posterior A and the step are then exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaegap.energy import LogJoint
from vaegap.natural import scale_of
from vaegap.posteriors import FullGaussian, Posterior

__all__ = ["leap"]

_PAIRS = 32  # fewest noise vectors, before their antithetic twins, and how many are drawn at once
_FLOATS = 2**23  # numbers of all curvatures held at once: 32 MB in float32
_MOST = 2.0  # that a log-variance of a factorized Gaussian changes by
_WIDEST = 512  # latents: beyond them a curvature costs too much


@torch.no_grad()
def leap(joint: LogJoint, q: Posterior, generator: torch.Generator) -> tuple[Posterior, Tensor]:
    """Where the local quadratic has its best Gaussian, and what it promises.

    Args:
        joint: log p(x, z) of the images.
        q: factorized or full-covariance Gaussians (N).
        generator: of the noise.

    Returns:
        the Gaussians after the step, and the gain in nats (N,) that the quadratic predicts: NaN where it has
        no top, or there are too many latents for one.

    Source: Stein's lemma as in Opper & Archambeau 2009; damping: Levenberg 1944, Marquardt 1963.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae(latent_dim=20, noise=0.1)
        >>> x = vae.simulate(3)
        >>> q, promised = leap(LogJoint(vae, x), vae.encode(x).detach(), torch.Generator().manual_seed(0))
        >>> bool(((q.mean - vae.posterior_moments(x)[0]).abs() < 0.01 * q.stddev).all())
        True
    """
    if q.family.latent_dim > _WIDEST:
        return q, torch.full((len(q),), torch.nan, dtype=joint.x.dtype, device=joint.x.device)
    rows = max(1, _FLOATS // q.family.latent_dim**2)
    pieces = [
        _leap(joint.subset(part), q[part], generator) for part in torch.arange(len(q)).to(joint.x.device).split(rows)
    ]
    params = {k: torch.cat([there[k] for there, _ in pieces]) for k in q.params}
    return Posterior(q.family, params), torch.cat([promised for _, promised in pieces])


def _leap(joint: LogJoint, q: Posterior, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters and promised gain (n,) of some images."""
    mean = q.params["mean"]
    scale = scale_of(q)
    slope, curvature = _quadratic(joint, mean, scale, generator)
    doubt = 0.5 * (curvature - curvature.mT)  # noise alone: a Hessian is symmetric
    curvature = 0.5 * (curvature + curvature.mT)
    damping = 2 * doubt.flatten(1).norm(dim=1) / mean.shape[1] ** 0.5  # the noise's spectral norm (Wigner)
    factor, wrong = _cholesky(curvature, damping)
    step = torch.cholesky_solve(slope.unsqueeze(-1), factor)
    rise = (slope * step.squeeze(-1)).sum(1) - 0.5 * (step.mT @ curvature @ step).flatten()
    if isinstance(q.family, FullGaussian):
        there, widen = _full(mean, scale, step, curvature, factor)
    else:
        there, widen = _factorized(mean, scale, step.squeeze(-1), curvature.diagonal(dim1=-2, dim2=-1))
    good = ~wrong & torch.isfinite(rise + widen)
    kept = {k: torch.where(good.view(-1, *[1] * (v.dim() - 1)), there[k], v) for k, v in q.params.items()}
    return kept, (rise + widen).where(good, torch.nan)


def _factorized(mean: Tensor, scale: Tensor, step: Tensor, bent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters after the step, and what the new scales gain; `bent` is the curvature's diagonal (n, d)."""
    change = -bent.clamp(math.exp(-_MOST), math.exp(_MOST)).log()
    widen = 0.5 * (change + bent - bent * change.exp()).sum(1)
    return {"mean": mean + scale * step, "logvar": 2 * scale.log() + change}, widen


def _full(
    mean: Tensor, scale: Tensor, step: Tensor, curvature: Tensor, factor: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """The same for a lower triangular scale (n, d, d); `factor` C is of the damped curvature, C Cᵀ = A + damping."""
    eye = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device).expand_as(scale)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False).mT  # C⁻ᵀ
    root = scale @ inverse
    lower, failed = torch.linalg.cholesky_ex(root @ root.mT)
    before, after = curvature.diagonal(dim1=-2, dim2=-1).sum(1), (inverse * (curvature @ inverse)).sum((1, 2))
    widen = 0.5 * (before - after) - factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return FullGaussian.from_tril(mean + (scale @ step).squeeze(-1), lower), widen.where(failed == 0, torch.nan)


def _quadratic(joint: LogJoint, mean: Tensor, scale: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whitened slope (n, d) and curvature (n, d, d) of log p(x, z) under q, for a scale (n, d) or (n, d, d)."""
    dim = mean.shape[1]
    slope, curvature = torch.zeros_like(mean), mean.new_zeros((*mean.shape, dim))
    blocks = math.ceil(_PAIRS / dim)
    # where dimensions are few, lengths vary too, or the noise would see one shell alone; E|ε|² = d stays exact
    radii = torch.randn((blocks, dim), generator=generator, dtype=mean.dtype, device=mean.device).norm(dim=1)
    radii *= (dim * blocks) ** 0.5 / radii.norm()
    for radius in radii:
        noise = torch.randn((dim, dim), generator=generator, dtype=mean.dtype, device=mean.device)
        for rows in (torch.linalg.qr(noise)[0] * radius).split(_PAIRS):
            eps = torch.cat([rows, -rows])
            if scale.dim() == 2:
                force = joint.grad(mean + scale * eps.unsqueeze(1)).mul_(scale).movedim(0, 2)  # (n, d, 2 rows)
            else:
                z = mean + (eps @ scale.mT).transpose(0, 1)
                force = scale.mT @ joint.grad(z.contiguous()).movedim(0, 2)
            slope += force.sum(2)
            curvature -= force @ eps
    count = 2 * dim * blocks
    return slope / count, curvature / count


def _cholesky(curvature: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of curvature + damping, with more of it where the sum is not positive; and where nothing helped."""
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    damping = damping.clamp_min(10 * torch.finfo(curvature.dtype).eps)
    for _ in range(5):
        factor, info = torch.linalg.cholesky_ex(curvature + damping.view(-1, 1, 1) * eye)
        if not info.any():
            break
        damping = torch.where(info > 0, 4 * damping + 0.01, damping)
    return factor, info > 0
