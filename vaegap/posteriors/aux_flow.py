r"""The paper's auxiliary flow q_AF: a coupling flow on (z, v) with a reverse model r(v|z).

Its bound on the extended space is exact (the paper's eq. 11 with the subscripts and determinants corrected):

    L[q_AF] = E[ log p(x, z_T) + log r(v_T|z_T) − log q(z_0) − log q(v_0|z_0) + Σ_t log|det D_t| ].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaegap.errors import InputError
from vaegap.posteriors.base import LOGVAR_MAX, LOGVAR_MIN, Family, Params, normal_log_prob
from vaegap.posteriors.coupling import FlowHead, log_scale
from vaegap.posteriors.nets import ConditionedNets, init_mlp, mlp

__all__ = ["AuxFlow"]

_LINEAR = 0.1  # tanh(0.1 x) / 0.1 is close to x; see `from_full_gaussian`
_AUX_LOGVAR_MIN = -6.0  # of v_0 and r(v|z) where an encoder predicts them; trained models stay above −1
_SHIFT = 6.0  # ELU(x + 6) - 6 is x for x > -6


class AuxFlow(Family):
    r"""Auxiliary flow: v ← v ⊙ s(z) + t(z), then z ← z ⊙ s'(v) + t'(v), `num_steps` times (paper eq. 9-11).

    Amortized, it is the official code's: z_0 ~ q_FFG, v_0 ~ N(m(z_0, x), diag s²(z_0, x)), ELU nets that see x,
    sigmoid scales (both shifts enter with a plus sign). `local_variant()` is the form optimised per image: whitened
    coordinates, tanh nets, log-scales in ±2, v_0 ~ N(0, I); it contains the full-covariance Gaussian to within the
    curvature of tanh, so it starts there. An `AuxFlow` with `whiten` is in that form and stays as it is; others become
    one with 50 hidden units, or d where that is more. Both forms have `num_steps` steps on (z, v).

    Args:
        latent_dim: d; v has the same size.
        hidden: width of the nets.
        num_steps: T.
        whiten: flow on standardized noise, z = μ + σ ⊙ y_T; else on z itself.

    Example:
        >>> family = AuxFlow(2).local_variant()
        >>> z, log_w = family.posterior(torch.zeros(3, 2), torch.zeros(3, 2)).rsample_and_log_prob(4)
        >>> z.shape, log_w.shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3]))
    """

    name = "aux_flow"
    tractable = False

    def __init__(self, latent_dim: int, hidden: int = 200, num_steps: int = 2, whiten: bool = False) -> None:
        super().__init__(latent_dim)
        self.hidden, self.num_steps, self.whiten = hidden, num_steps, whiten
        self.activation = "tanh" if whiten else "elu"
        self.scale = "bounded" if whiten else "sigmoid"

    @property
    def noise_dim(self) -> int:
        return 2 * self.latent_dim

    @property
    def options(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "num_steps": self.num_steps, "whiten": self.whiten}

    def local_variant(self) -> AuxFlow:
        if self.whiten and self.hidden >= self.latent_dim:
            return self
        return AuxFlow(self.latent_dim, max(50, self.latent_dim), self.num_steps, whiten=True)

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        log_sd = 0.5 * params["logvar"]
        eps_z, v = eps.chunk(2, -1)
        z = eps_z if self.whiten else params["mean"] + log_sd.exp() * eps_z
        log_q = normal_log_prob(eps) - log_sd.sum(-1)
        if not self.whiten:
            mean, log_sd_v = self._normal(mlp(params, "start", z, "elu"))
            v = mean + log_sd_v.exp() * v
            log_q = log_q - log_sd_v.sum(-1)
        for k in range(self.num_steps):
            log_s, shift = self._couple(params, f"v{k}", z)
            v, log_q = v * log_s.exp() + shift, log_q - log_s.sum(-1)
            log_s, shift = self._couple(params, f"z{k}", v)
            z, log_q = z * log_s.exp() + shift, log_q - log_s.sum(-1)
        return ((params["mean"] + log_sd.exp() * z) if self.whiten else z, v), log_q

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        log_sd = 0.5 * params["logvar"]
        z, v = (self._white(params, u[0]) if self.whiten else u[0]), u[1]
        log_q = -log_sd.sum(-1)
        for k in reversed(range(self.num_steps)):
            log_s, shift = self._couple(params, f"z{k}", v)
            z, log_q = (z - shift) * torch.exp(-log_s), log_q - log_s.sum(-1)
            log_s, shift = self._couple(params, f"v{k}", z)
            v, log_q = (v - shift) * torch.exp(-log_s), log_q - log_s.sum(-1)
        if not self.whiten:
            mean, log_sd_v = self._normal(mlp(params, "start", z, "elu"))
            v, log_q = (v - mean) * torch.exp(-log_sd_v), log_q - log_sd_v.sum(-1)
            z = self._white(params, z)
        return log_q + normal_log_prob(z) + normal_log_prob(v)

    def reverse_log_prob(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        z = self._white(params, u[0]) if self.whiten else u[0]
        mean, log_sd = self._normal(mlp(params, "reverse", z, "elu"))
        return normal_log_prob((u[1] - mean) * torch.exp(-log_sd)) - log_sd.sum(-1)

    def _white(self, params: Params, z: Tensor) -> Tensor:
        return (z - params["mean"]) * torch.exp(-0.5 * params["logvar"])

    def _couple(self, params: Params, name: str, given: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = mlp(params, name, given, self.activation).chunk(2, -1)
        return log_scale(raw, self.scale), shift

    def _normal(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = raw.chunk(2, -1)
        # the whitened form needs r(v|z) with variance 1/λ where the correlation matrix has an eigenvalue λ << 1
        low, high = (LOGVAR_MIN, -LOGVAR_MIN) if self.whiten else (_AUX_LOGVAR_MIN, LOGVAR_MAX)
        return mean, 0.5 * logvar.clamp(low, high)

    def _weights(self, last_scale: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        d, h = self.latent_dim, self.hidden
        sizes = {"reverse": [d, h, h, 2 * d]} | ({} if self.whiten else {"start": [d, h, h, 2 * d]})
        sizes |= {f"{half}{k}": [d, h, 2 * d] for k in range(self.num_steps) for half in "vz"}
        nets: dict[str, Tensor] = {}
        for name, widths in sizes.items():
            nets |= init_mlp(name, widths, last_scale, generator)
        return nets

    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        return self.from_full_gaussian(mean, logvar, mean.new_zeros(*mean.shape, mean.shape[-1]))

    def from_full_gaussian(self, mean: Tensor, logvar: Tensor, tril: Tensor) -> dict[str, Tensor]:
        r"""The member that equals `FullGaussian` with these parameters, up to the curvature of tanh.

        Whiten by the marginal standard deviations and rotate by the correlation matrix C = U diag(λ) Uᵀ. Per rotated
        coordinate w, the step v = v_0 + a w_0, w = w_0 + b v has variance (1 + ab)² + b², which is λ for
        b = (−a + √(a² − (a² + 1)(1 − λ))) / (a² + 1) and any a² ≥ 1/λ − 1. (v, w) are jointly Gaussian, so the best
        r(v|w) is N(k w, s) with k = c/λ, s = a² + 1 − c²/λ, c = a(1 + ab) + b: nothing is lost.

        Args:
            mean, logvar: (N, d); tril: (N, d, d), as in `FullGaussian`.

        Returns:
            per-image parameters (N, ...).

        Raises:
            InputError: not the whitened form, or fewer hidden units than latents.
        """
        n, d = mean.shape
        if not self.whiten or self.hidden < d:
            raise InputError(
                "the closed-form start needs whiten=True and hidden >= latent_dim; call local_variant() first"
            )
        lower = (0.5 * logvar).exp().unsqueeze(-1) * (
            tril.tril(-1) + torch.eye(d, dtype=mean.dtype, device=mean.device)
        )
        sd = lower.square().sum(-1).sqrt()
        corr = (lower / sd.unsqueeze(-1)).double()
        lam, u = torch.linalg.eigh(corr @ corr.mT)  # double: the small eigenvalues matter
        lam = lam.clamp_min(1e-6)
        a = (1.3 * (1 / lam - 1).clamp_min(0) + 0.1).sqrt()
        b = (-a + (a**2 - (a**2 + 1) * (1 - lam)).clamp_min(0).sqrt()) / (a**2 + 1)
        c = a * (1 + a * b) + b
        k, s = c / lam, (a**2 + 1 - c**2 / lam).clamp_min(1e-7)
        shared = self._weights(0.0, torch.Generator().manual_seed(0))
        p = {name: w.to(mean).repeat(n, *[1] * (w.dim() - 1)) for name, w in shared.items()}
        # the curvature of tanh must stay small against the conditional scale, about 1/a: smaller arguments for large a
        gain = _LINEAR / (a / 3).clamp_min(1).sqrt()
        gain_v = gain / (a**2 + 1).sqrt()  # v has variance a² + 1
        p["v0_w0"][:, :, :d] = (u * gain.unsqueeze(-2)).to(mean)
        p["v0_b0"][:, :d] = 0
        p["v0_w1"][:, :d, d:] = torch.diag_embed(a / gain).to(mean)
        p["z0_w0"][:, :, :d] = torch.diag_embed(gain_v).to(mean)
        p["z0_b0"][:, :d] = 0
        p["z0_w1"][:, :d, d:] = ((u * b.unsqueeze(-2)) / gain_v.unsqueeze(-2)).mT.to(mean)
        p["reverse_w0"][:, :, :d] = u.to(mean)
        p["reverse_b0"][:, :d] = _SHIFT
        p["reverse_w1"][:, :, :d] = 0
        p["reverse_w1"][:, :d, :d] = torch.eye(d, dtype=mean.dtype, device=mean.device)
        p["reverse_b1"][:, :d] = 0
        p["reverse_w2"][:, :d, :d] = torch.diag_embed(k).to(mean)
        p["reverse_b2"][:, :d] = (-_SHIFT * k).to(mean)
        p["reverse_b2"][:, d:] = s.log().to(mean)
        return {"mean": mean.clone(), "logvar": 2 * sd.log(), **p}

    def head(self, hidden_dim: int) -> nn.Module:
        nets = self._weights(1.0)
        names = ["reverse", "start", *[f"{half}{k}" for k in range(self.num_steps) for half in "vz"]]
        seen = [name for name in names if f"{name}_b0" in nets]
        return FlowHead(hidden_dim, self.latent_dim, ConditionedNets(hidden_dim, self.latent_dim, nets, seen))

    def learning_rates(self) -> dict[str, float]:
        # r's score noise does not vanish under path gradients, so it moves more slowly; the Gaussian part faster
        return {"mean": 6.0, "logvar": 6.0, "reverse": 0.1}
