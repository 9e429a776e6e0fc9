"""Where AIS starts: Gaussians, the prior, or a defensive mixture, each in coordinates where it is (nearly) white."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.evaluation import encode
from vaegap.models import Model
from vaegap.posteriors import FullGaussian, Gaussian, Posterior
from vaegap.posteriors.base import normal_log_prob

__all__ = ["Base", "Mixture", "PriorBase", "make_base"]


class Base:
    """N(loc, L Lᵀ) per image, seen in the coordinates u with z = loc + L u, where it is N(0, I).

    Args:
        loc: (N, d).
        scale: L as a diagonal (N, d) or a lower triangle (N, d, d).
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        self.diagonal = scale.dim() == 2
        entries = scale if self.diagonal else scale.diagonal(dim1=-2, dim2=-1)
        self.log_det = entries.log().sum(-1)  # (N,)

    @property
    def num_images(self) -> int:
        return self.loc.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.loc.dtype

    @property
    def device(self) -> torch.device:
        return self.loc.device

    def to_z(self, u: Tensor) -> Tensor:
        """(C, N, d) -> (C, N, d)."""
        if self.diagonal:
            return torch.addcmul(self.loc, self.scale, u)
        return torch.baddbmm(self.loc.unsqueeze(1), u.transpose(0, 1), self.scale.mT).transpose(0, 1)

    def to_u(self, z: Tensor) -> Tensor:
        """Inverse of `to_z`, for z (N, d)."""
        if self.diagonal:
            return (z - self.loc) / self.scale
        return torch.linalg.solve_triangular(self.scale, (z - self.loc).unsqueeze(-1), upper=False).squeeze(-1)

    def pull(self, grad_z: Tensor) -> Tensor:
        """Lᵀ g: a gradient in z, seen in u. May overwrite its input."""
        if self.diagonal:
            return grad_z.mul_(self.scale)
        return torch.bmm(grad_z.transpose(0, 1), self.scale).transpose(0, 1)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """u (num, N, d)."""
        return torch.randn((num, *self.loc.shape), generator=generator, dtype=self.dtype, device=self.device)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density in u (C, N)."""
        return normal_log_prob(u)

    def grad(self, u: Tensor) -> Tensor:
        """Gradient of `log_prob` (C, N, d)."""
        return -u


class PriorBase(Base):
    """A prior that is not N(0, I), in its own coordinates."""

    def __init__(self, vae: Model, num: int) -> None:
        zeros = torch.zeros(num, vae.latent_dim, dtype=vae.dtype, device=vae.device)
        super().__init__(zeros, torch.ones_like(zeros))
        self.vae = vae

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        return self.vae.sample_prior(num * self.num_images, generator).view(num, self.num_images, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        return self.vae.log_prior(u)

    def grad(self, u: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_(True)
            return torch.autograd.grad(self.vae.log_prior(leaf).sum(), leaf)[0]


class Mixture(Base):
    """Half the Gaussian of `Base`, half N(0, I) in z: it covers whatever the prior covers."""

    def _parts(self, u: Tensor) -> Tensor:
        prior = normal_log_prob(self.to_z(u)) + self.log_det
        return torch.stack([normal_log_prob(u), prior])

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        u = super().sample(num, generator)
        other = (u - self.loc) / self.scale if self.diagonal else self._white(u)
        pick = torch.rand(u.shape[:2], generator=generator, dtype=self.dtype, device=self.device) < 0.5
        return torch.where(pick.unsqueeze(-1), u, other)

    def _white(self, z: Tensor) -> Tensor:
        columns = (z - self.loc).permute(1, 2, 0)
        return torch.linalg.solve_triangular(self.scale, columns, upper=False).permute(2, 0, 1)

    def log_prob(self, u: Tensor) -> Tensor:
        return torch.logsumexp(self._parts(u), 0) - math.log(2)

    def grad(self, u: Tensor) -> Tensor:
        share = torch.softmax(self._parts(u), 0).unsqueeze(-1)
        return -share[0] * u + share[1] * self.pull(-self.to_z(u))


def make_base(vae: Model, x: Tensor, base: str | Posterior) -> Base:
    """Build the base of AIS for some images.

    Args:
        vae: the model.
        x: images (N, D).
        base: "posterior", "prior", "mixture", or a `Posterior` for these images. Gaussians are used as they are,
            other families through a Gaussian with the moments of 1,024 samples.

    Raises:
        InputError: an unknown name, or a mixture with a prior that is not N(0, I).
    """
    if isinstance(base, str) and base not in ("posterior", "prior", "mixture"):
        raise InputError(f"unknown base {base!r}; choose 'posterior', 'prior', 'mixture', or pass a Posterior")
    if base == "prior":
        zeros = torch.zeros(len(x), vae.latent_dim, dtype=vae.dtype, device=vae.device)
        return Base(zeros, torch.ones_like(zeros)) if vae.prior is None else PriorBase(vae, len(x))
    if base == "mixture" and vae.prior is not None:
        raise InputError("base='mixture' needs the N(0, I) prior; use 'prior' or 'posterior'")
    q = (base if isinstance(base, Posterior) else encode(vae, x)).detach()
    kind = Mixture if base == "mixture" else Base
    if isinstance(q.family, Gaussian):
        return kind(*q.moments())
    if isinstance(q.family, FullGaussian):
        return kind(q.params["mean"], q.family.scale_tril(q.params))
    generator = torch.Generator(vae.device).manual_seed(0)
    z = q.rsample(1024, generator)
    mean = z.mean(0)
    centred = (z - mean).transpose(0, 1)
    cov = torch.bmm(centred.mT, centred) / (len(z) - 1)
    ridge = (
        1e-4
        * cov.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        * torch.eye(vae.latent_dim, dtype=cov.dtype, device=cov.device)
    )
    total = cov + ridge
    bad = ~torch.isfinite(total).flatten(1).all(1)  # left as NaN, so that the weights of these images tell it
    total = torch.where(bad[:, None, None], torch.eye(vae.latent_dim, dtype=cov.dtype, device=cov.device), total)
    return kind(torch.where(bad[:, None], torch.nan, mean), torch.linalg.cholesky(total))
