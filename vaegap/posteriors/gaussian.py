"""Gaussian posteriors: factorized (q_FFG) and with a full covariance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaegap.posteriors.base import LOGVAR_MAX, LOGVAR_MIN, Family, Params, normal_log_prob

__all__ = ["FullGaussian", "Gaussian", "GaussianHead"]

_MOST = 10.0  # of a predicted entry of T: an image unlike the training data must not explode


class GaussianHead(nn.Module):
    """Mean and bounded log-variance from an encoder's features."""

    def __init__(self, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, 2 * latent_dim)

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        mean, logvar = self.linear(h).chunk(2, dim=-1)
        return {"mean": mean, "logvar": logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)}


class Gaussian(Family):
    r"""Factorized Gaussian, q(z) = N(z; μ, diag σ²): the paper's q_FFG.

    Parameters: mean (N, d), logvar (N, d).

    Example:
        >>> q = Gaussian(2).posterior(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> q.kl().tolist()
        [0.0]
    """

    name = "gaussian"

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        log_scale = 0.5 * params["logvar"]
        return (params["mean"] + log_scale.exp() * eps,), normal_log_prob(eps) - log_scale.sum(-1)

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        log_scale = 0.5 * params["logvar"]
        return normal_log_prob((u[0] - params["mean"]) * torch.exp(-log_scale)) - log_scale.sum(-1)

    def kl(self, params: Params) -> Tensor:
        mean, logvar = params["mean"], params["logvar"]
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)

    def moments(self, params: Params) -> tuple[Tensor, Tensor]:
        return params["mean"], (0.5 * params["logvar"]).exp()

    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        return {"mean": mean.clone(), "logvar": logvar.clone()}

    def head(self, hidden_dim: int) -> nn.Module:
        return GaussianHead(hidden_dim, self.latent_dim)


class FullGaussian(Family):
    r"""Gaussian with a full covariance: z = μ + σ ⊙ (I + T) ε with T strictly lower triangular.

    The unit diagonal keeps scale and correlation apart, and makes the start from q_FFG exact: T = 0.
    Parameters: mean (N, d), logvar (N, d), tril (N, d, d), of which only the strictly lower part is used.

    Example:
        >>> family = FullGaussian(2)
        >>> family.posterior(torch.zeros(1, 2), torch.zeros(1, 2)).kl().tolist()
        [0.0]
    """

    name = "full_gaussian"

    def _unit_lower(self, params: Params) -> Tensor:
        tril = params["tril"].tril(-1).expand(len(params["mean"]), -1, -1)
        return tril + torch.eye(self.latent_dim, dtype=tril.dtype, device=tril.device)

    def scale_tril(self, params: Params) -> Tensor:
        """The Cholesky factor L (N, d, d) of the covariance L Lᵀ."""
        return (0.5 * params["logvar"]).exp().unsqueeze(-1) * self._unit_lower(params)

    @staticmethod
    def from_tril(mean: Tensor, lower: Tensor) -> dict[str, Tensor]:
        """The parameters of N(mean, lower lowerᵀ), from a mean (N, d) and a Cholesky factor (N, d, d)."""
        scale = lower.diagonal(dim1=-2, dim2=-1)
        return {"mean": mean, "logvar": 2 * scale.log(), "tril": (lower / scale.unsqueeze(-1)).tril(-1)}

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        log_scale = 0.5 * params["logvar"]
        white = torch.bmm(eps.transpose(0, 1), self._unit_lower(params).mT).transpose(0, 1)
        return (params["mean"] + log_scale.exp() * white,), normal_log_prob(eps) - log_scale.sum(-1)

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        log_scale = 0.5 * params["logvar"]
        white = (u[0] - params["mean"]) * torch.exp(-log_scale)
        columns = white.permute(1, 2, 0)  # (N, d, S)
        eps = torch.linalg.solve_triangular(self._unit_lower(params), columns, upper=False, unitriangular=True)
        return normal_log_prob(eps.permute(2, 0, 1)) - log_scale.sum(-1)

    def kl(self, params: Params) -> Tensor:
        mean, logvar = params["mean"], params["logvar"]
        trace = self.scale_tril(params).square().sum((-1, -2))
        return 0.5 * (mean.square().sum(-1) + trace - self.latent_dim - logvar.sum(-1))

    def moments(self, params: Params) -> tuple[Tensor, Tensor]:
        return params["mean"], self.scale_tril(params).square().sum(-1).sqrt()

    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        tril = mean.new_zeros(*mean.shape, mean.shape[-1])
        return {"mean": mean.clone(), "logvar": logvar.clone(), "tril": tril}

    def head(self, hidden_dim: int) -> nn.Module:
        return _FullGaussianHead(hidden_dim, self.latent_dim)


class _FullGaussianHead(GaussianHead):
    """Mean, log-variance and the strictly lower triangle: it starts at zero and is bounded, as the scales are."""

    def __init__(self, hidden_dim: int, latent_dim: int) -> None:
        super().__init__(hidden_dim, latent_dim)
        rows, cols = torch.tril_indices(latent_dim, latent_dim, -1)
        self.register_buffer("slot", rows * latent_dim + cols, persistent=False)
        self.tril = nn.Linear(hidden_dim, len(rows))
        nn.init.zeros_(self.tril.weight)
        nn.init.zeros_(self.tril.bias)
        self.latent_dim = latent_dim

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        d = self.latent_dim
        slot: Tensor = self.slot  # type: ignore[assignment]
        lower = _MOST * torch.tanh(self.tril(h) / _MOST)
        flat = h.new_zeros(h.shape[0], d * d).index_copy(1, slot, lower)
        return {**super().forward(h), "tril": flat.unflatten(-1, (d, d))}
