"""Coupling flows without auxiliary variables: affine (the paper's section 5.3) and spline (through zuko)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaegap.errors import InputError
from vaegap.posteriors.base import Family, Params, normal_log_prob
from vaegap.posteriors.gaussian import GaussianHead
from vaegap.posteriors.nets import ConditionedNets, init_mlp, mlp

__all__ = ["Coupling", "Flow", "FlowHead", "Spline", "log_scale"]

_LEAST = -4.0  # logit of the smallest sigmoid scale of one step; trained models stay above −2


def log_scale(raw: Tensor, kind: str) -> Tensor:
    """Log of a scale in bounds: "sigmoid" as in the paper (contracts, to e^−4 at most), or exp(2 tanh(raw/2)).

    Without its floor a sigmoid can shrink one coordinate by any factor on an image unlike the training data.
    """
    return F.logsigmoid(raw.clamp_min(_LEAST)) if kind == "sigmoid" else 2 * torch.tanh(raw / 2)


class FlowHead(nn.Module):
    """Mean and log-variance from the encoder, plus flow weights that all images share."""

    def __init__(self, hidden_dim: int, latent_dim: int, nets: ConditionedNets) -> None:
        super().__init__()
        self.gaussian = GaussianHead(hidden_dim, latent_dim)
        self.nets = nets

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        return {**self.gaussian(h), **self.nets(h)}


class Coupling(Family):
    r"""z split in two halves; each step changes the second given the first, then the first given the second.

    With `whiten` the flow acts on standardized noise and z = μ + σ ⊙ T(ε); without it on z itself, z = T(μ + σ ⊙ ε),
    as in the paper. Parameters: mean, logvar (N, d) and the nets "ab0", "ba0", "ab1", ...

    Args:
        latent_dim: d, at least 2.
        hidden: width of the one hidden layer (tanh).
        num_steps: coupling steps, each changing both halves.
        whiten: see above.
    """

    def __init__(self, latent_dim: int, hidden: int = 50, num_steps: int = 2, whiten: bool = True) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise InputError("a coupling flow splits z in two halves and needs latent_dim >= 2; use 'gaussian'")
        self.hidden, self.num_steps, self.whiten = hidden, num_steps, whiten
        self.split = latent_dim // 2

    @property
    def options(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "num_steps": self.num_steps, "whiten": self.whiten}

    @property
    @abstractmethod
    def outputs_per_coordinate(self) -> int:
        """Numbers that a conditioner predicts for one changed coordinate."""

    @abstractmethod
    def element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise map of y (S, N, m) given raw (S, N, m * outputs): new y and log-determinant (S, N)."""

    @abstractmethod
    def invert_element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `element`, with the log-determinant of the *forward* map."""

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        log_sd = 0.5 * params["logvar"]
        y = eps if self.whiten else params["mean"] + log_sd.exp() * eps
        a, b = y[..., : self.split], y[..., self.split :]
        log_q = normal_log_prob(eps) - log_sd.sum(-1)
        for k in range(self.num_steps):
            b, up = self.element(mlp(params, f"ab{k}", a, "tanh"), b)
            a, down = self.element(mlp(params, f"ba{k}", b, "tanh"), a)
            log_q = log_q - up - down
        y = torch.cat([a, b], -1)
        return ((params["mean"] + log_sd.exp() * y) if self.whiten else y,), log_q

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        log_sd = 0.5 * params["logvar"]
        y = (u[0] - params["mean"]) * torch.exp(-log_sd) if self.whiten else u[0]
        a, b = y[..., : self.split], y[..., self.split :]
        log_q = -log_sd.sum(-1)
        for k in reversed(range(self.num_steps)):
            a, down = self.invert_element(mlp(params, f"ba{k}", b, "tanh"), a)
            b, up = self.invert_element(mlp(params, f"ab{k}", a, "tanh"), b)
            log_q = log_q - up - down
        y = torch.cat([a, b], -1)
        eps = y if self.whiten else (y - params["mean"]) * torch.exp(-log_sd)
        return log_q + normal_log_prob(eps)

    def _weights(self, last_scale: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        first, second = self.split, self.latent_dim - self.split
        out: dict[str, Tensor] = {}
        for k in range(self.num_steps):
            for name, given, changed in ((f"ab{k}", first, second), (f"ba{k}", second, first)):
                sizes = [given, self.hidden, changed * self.outputs_per_coordinate]
                out |= init_mlp(name, sizes, last_scale, generator)
        return out

    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        if not self.whiten:
            raise InputError("only the whitened flow contains the identity; call local_variant() first")
        # the start is part of the method, not of the caller's randomness; last layers at zero make it the identity
        nets = self._weights(0.0, torch.Generator().manual_seed(0))
        spread = {k: v.to(mean).repeat(mean.shape[0], *[1] * (v.dim() - 1)) for k, v in nets.items()}
        return {"mean": mean.clone(), "logvar": logvar.clone(), **spread}

    def local_variant(self) -> Coupling:
        return self if self.whiten else type(self)(self.latent_dim, **{**self.options, "whiten": True})

    def head(self, hidden_dim: int) -> nn.Module:
        return FlowHead(hidden_dim, self.latent_dim, ConditionedNets(hidden_dim, 1, self._weights(0.1), []))

    def learning_rates(self) -> dict[str, float]:
        return {"mean": 3.0, "logvar": 3.0}


class Flow(Coupling):
    r"""Affine coupling flow without auxiliary variables, log-scales bounded by ±2 (paper eq. 9-10; "Flow1" of 5.3).

    Example:
        >>> q = Flow(4).posterior(torch.zeros(1, 4), torch.zeros(1, 4))
        >>> z, log_q = q.rsample_and_log_prob(3)
        >>> torch.allclose(q.log_prob(z), log_q, atol=1e-4)
        True
    """

    name = "flow"

    @property
    def outputs_per_coordinate(self) -> int:
        return 2

    def element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = raw.chunk(2, -1)
        log_s = log_scale(scale, "bounded")
        return y * log_s.exp() + shift, log_s.sum(-1)

    def invert_element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = raw.chunk(2, -1)
        log_s = log_scale(scale, "bounded")
        return (y - shift) * torch.exp(-log_s), log_s.sum(-1)


class Spline(Coupling):
    """Coupling flow with monotonic rational-quadratic splines from zuko (Durkan et al. 2019, neural spline flows).

    Args:
        latent_dim: d, at least 2.
        hidden: width of the conditioners.
        num_steps: coupling steps.
        whiten: see `Coupling`; splines act on [-5, 5] and are the identity outside, so whitening suits them.
        bins: pieces of each spline; six fit no better, and their weights take half as much memory again.

    Raises:
        ImportError: zuko is missing.
    """

    name = "spline"

    def __init__(
        self, latent_dim: int, hidden: int = 32, num_steps: int = 2, whiten: bool = True, bins: int = 4
    ) -> None:
        super().__init__(latent_dim, hidden, num_steps, whiten)
        try:
            from zuko.transforms import MonotonicRQSTransform
        except ImportError:
            raise ImportError("family='spline' needs zuko: pip install 'vaegap[spline]'") from None
        self.bins = bins
        self._spline = MonotonicRQSTransform

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "bins": self.bins}

    @property
    def outputs_per_coordinate(self) -> int:
        return 3 * self.bins - 1

    def _build(self, raw: Tensor) -> Any:
        pieces = raw.unflatten(-1, (-1, self.outputs_per_coordinate))
        widths, heights, slopes = pieces.split([self.bins, self.bins, self.bins - 1], -1)
        return self._spline(widths, heights, slopes)

    def element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        new, ladj = self._build(raw).call_and_ladj(y)
        return new, ladj.sum(-1)

    def invert_element(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        old, ladj = self._build(raw).inv.call_and_ladj(y)
        return old, -ladj.sum(-1)
