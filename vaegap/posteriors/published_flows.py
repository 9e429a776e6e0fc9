r"""The two flows of section 5.3 as the first author's code has them: nothing of the image enters but μ(x) and σ(x).

Both act on z_0 = μ(x) + σ(x) ⊙ ε itself, with weights that all images share and scales that are sigmoids. `flow` acts
on ε instead, and `aux_flow` sees the image. They are known by name after `vaegap.registering.register()`.

Source: Cremer et al. 2018, section 5.3; the first author's models/distributions.py ("Flow1" and "Flow").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaegap.posteriors.aux_flow import AuxFlow
from vaegap.posteriors.base import Params, normal_log_prob
from vaegap.posteriors.coupling import Flow, FlowHead, log_scale
from vaegap.posteriors.nets import ConditionedNets, mlp

__all__ = ["BlindAuxFlow", "FlowOnZ"]


class FlowOnZ(Flow):
    r"""Coupling flow on z itself, z = T(μ(x) + σ(x) ⊙ ε), with one T for all images.

    `local_variant()`, the form optimised per image, is whitened as that of `Flow` is.

    Args:
        latent_dim: d, at least 2.
        hidden: width of the one hidden layer (tanh).
        num_steps: coupling steps, each changing both halves.
        whiten: the local form.

    Example:
        >>> FlowOnZ(4).whiten, FlowOnZ(4).local_variant().whiten
        (False, True)
    """

    name = "flow_on_z"

    def __init__(self, latent_dim: int, hidden: int = 50, num_steps: int = 2, whiten: bool = False) -> None:
        super().__init__(latent_dim, hidden, num_steps, whiten)
        self.scale = "bounded" if whiten else "sigmoid"

    def element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = raw.chunk(2, -1)
        log_s = log_scale(scale, self.scale)
        return y * log_s.exp() + shift, log_s.sum(-1)

    def invert_element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = raw.chunk(2, -1)
        log_s = log_scale(scale, self.scale)
        return (y - shift) * torch.exp(-log_s), log_s.sum(-1)

    def head(self, hidden_dim: int) -> nn.Module:
        return FlowHead(hidden_dim, self.latent_dim, ConditionedNets(hidden_dim, 1, self._weights(1.0), []))


class BlindAuxFlow(AuxFlow):
    r"""Auxiliary flow that sees nothing of the image: v_0 ~ N(0, I), and T and r(v|z) are shared by all images.

    Nets have one hidden layer of tanh units, r has two. `local_variant()` is that of `AuxFlow` by another name.

    Args:
        latent_dim: d; v has the same size.
        hidden: width of the nets.
        num_steps: T.
        whiten: the local form.

    Example:
        >>> BlindAuxFlow(4).noise_dim
        8
    """

    name = "blind_aux_flow"

    def __init__(self, latent_dim: int, hidden: int = 50, num_steps: int = 2, whiten: bool = False) -> None:
        super().__init__(latent_dim, hidden, num_steps, whiten)
        self.activation = "tanh"

    def local_variant(self) -> BlindAuxFlow:
        if self.whiten and self.hidden >= self.latent_dim:
            return self
        return BlindAuxFlow(self.latent_dim, max(50, self.latent_dim), self.num_steps, whiten=True)

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if self.whiten:
            return super().transform(params, eps)
        log_sd = 0.5 * params["logvar"]
        z, v = eps.chunk(2, -1)
        z, log_q = params["mean"] + log_sd.exp() * z, normal_log_prob(eps) - log_sd.sum(-1)
        for k in range(self.num_steps):
            log_s, shift = self._couple(params, f"v{k}", z)
            v, log_q = v * log_s.exp() + shift, log_q - log_s.sum(-1)
            log_s, shift = self._couple(params, f"z{k}", v)
            z, log_q = z * log_s.exp() + shift, log_q - log_s.sum(-1)
        return (z, v), log_q

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        if self.whiten:
            return super().log_density(params, u)
        z, v = u
        log_q = -0.5 * params["logvar"].sum(-1)
        for k in reversed(range(self.num_steps)):
            log_s, shift = self._couple(params, f"z{k}", v)
            z, log_q = (z - shift) * torch.exp(-log_s), log_q - log_s.sum(-1)
            log_s, shift = self._couple(params, f"v{k}", z)
            v, log_q = (v - shift) * torch.exp(-log_s), log_q - log_s.sum(-1)
        return log_q + normal_log_prob(self._white(params, z)) + normal_log_prob(v)

    def reverse_log_prob(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        if self.whiten:
            return super().reverse_log_prob(params, u)
        mean, log_sd = self._normal(mlp(params, "reverse", u[0], "tanh"))
        return normal_log_prob((u[1] - mean) * torch.exp(-log_sd)) - log_sd.sum(-1)

    def _weights(self, last_scale: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        drawn = super()._weights(last_scale, generator)
        return {name: w for name, w in drawn.items() if not name.startswith("start")}  # v_0 needs no network

    def head(self, hidden_dim: int) -> nn.Module:
        return FlowHead(hidden_dim, self.latent_dim, ConditionedNets(hidden_dim, 1, self._weights(1.0), []))
