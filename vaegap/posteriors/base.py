r"""What every approximate posterior shares: a family is a function of its parameters.

A `Family` knows how to sample and to score; the numbers come in a dict of tensors whose leading axis is the image
(N) or 1 where all images share the tensor. Amortized, an encoder's head predicts the dict; local, an optimiser owns
one copy per image. The same class serves both, so L[q*] ≥ L[q] holds by starting the optimiser at the encoder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Family", "Params", "Posterior", "normal_log_prob"]

Params = Mapping[str, Tensor]

LOGVAR_MIN, LOGVAR_MAX = -16.0, 4.0
"""Bounds of a predicted log-variance: far outside any posterior under a N(0, I) prior, so that no image explodes."""

_LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(eps: Tensor) -> Tensor:
    """log N(eps; 0, I) over the last axis, in nats with its constant: (..., k) -> (...)."""
    return -0.5 * eps.square().sum(-1) - 0.5 * eps.shape[-1] * _LOG_2PI


class Family(ABC):
    """A family Q of approximate posteriors over R^d.

    Args:
        latent_dim: d.

    Attributes:
        name: the word by which it is found.
        noise_dim: standard normal numbers that one sample uses.
        tractable: whether log q(z) itself can be evaluated; False for auxiliary-variable families, whose
            log-weights are exact on an extended space only.
    """

    name: str
    tractable: bool = True

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim

    @property
    def noise_dim(self) -> int:
        return self.latent_dim

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that rebuild the family beside `latent_dim`."""
        return {}

    @abstractmethod
    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Map noise (S, N, noise_dim) to u = (z, auxiliaries...) and log q(u) (S, N)."""

    @abstractmethod
    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        """log q(u) (S, N) at given u, by inverting `transform`."""

    @abstractmethod
    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        """The member equal (or nearest) to N(mean, diag exp logvar), one copy of every parameter per image."""

    @abstractmethod
    def head(self, hidden_dim: int) -> nn.Module:
        """A module that maps an encoder's features (N, hidden_dim) to the parameter dict."""

    def reverse_log_prob(self, params: Params, u: tuple[Tensor, ...]) -> Tensor | float:
        """log r(auxiliaries | z), subtracted from log q(u); 0 where there are no auxiliaries."""
        return 0.0

    def posterior(self, mean: Tensor, logvar: Tensor) -> Posterior:
        """The members nearest to N(mean, diag exp logvar), each (N, d), one copy of every parameter per image."""
        return Posterior(self, self.from_gaussian(mean, logvar))

    def local_variant(self) -> Family:
        """The form of the family in which per-image optimisation works best; itself unless a subclass knows better."""
        return self

    def numbers_per_image(self) -> int:
        """How many numbers describe the posterior of one image, where each has all of its own (see `local_variant`)."""
        zeros = torch.zeros(1, self.latent_dim)
        return sum(v[0].numel() for v in self.posterior(zeros, zeros).params.values())

    def moments(self, params: Params) -> tuple[Tensor, Tensor] | None:
        """Exact mean and standard deviation of z (N, d), or None where only samples tell."""
        return None

    def kl(self, params: Params) -> Tensor | None:
        """KL(q || N(0, I)) per image in closed form (N,), or None."""
        return None

    def learning_rates(self) -> dict[str, float]:
        """Factors on the local optimiser's learning rate by parameter-name prefix; 1 where nothing is said."""
        return {}

    def rsample_and_log_prob(
        self,
        params: Params,
        num_samples: int,
        *,
        path: bool = False,
        antithetic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw z (S, N, d) with log q(z) (S, N), both differentiable.

        Args:
            params: the parameter dict.
            num_samples: S.
            path: evaluate log q at stopped parameters, so that its gradient flows through z alone: the path (or
                "sticking the landing") gradient, whose noise vanishes as q approaches the posterior
                (Roeder et al. 2017, eq. 8).
            antithetic: use each noise vector with both signs (S even).
            generator: source of randomness.

        Returns:
            z and log q(z); for auxiliary-variable families log q(u) − log r(v|z), the term that enters the bound.
        """
        some = params["mean"]
        half = num_samples // 2 if antithetic else num_samples
        shape = (half, some.shape[0], self.noise_dim)
        eps = torch.randn(shape, generator=generator, dtype=some.dtype, device=some.device)
        if antithetic:
            eps = torch.cat([eps, -eps])
        u, log_q = self.transform(params, eps)
        if path:
            log_q = self.log_density({k: v.detach() for k, v in params.items()}, u)
        return u[0], log_q - self.reverse_log_prob(params, u)


@dataclass(frozen=True)
class Posterior:
    """q(z|x) for N images: a family and its parameters.

    Args:
        family: the family.
        params: tensors with leading axis N, or 1 where shared.

    Example:
        >>> from vaegap.posteriors import make_family
        >>> q = make_family("gaussian", 2).posterior(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> q.rsample(5).shape
        torch.Size([5, 3, 2])
    """

    family: Family
    params: Params

    def __len__(self) -> int:
        return self.params["mean"].shape[0]

    def __getitem__(self, index: Any) -> Posterior:
        """The posteriors of some images; `index` is a slice, a list or a tensor."""
        return Posterior(
            self.family, {k: v if v.shape[0] == 1 < len(self) else v[index] for k, v in self.params.items()}
        )

    def rsample_and_log_prob(self, num_samples: int, **options: Any) -> tuple[Tensor, Tensor]:
        """See `Family.rsample_and_log_prob`."""
        return self.family.rsample_and_log_prob(self.params, num_samples, **options)

    def rsample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Samples z (S, N, d)."""
        return self.rsample_and_log_prob(num_samples, generator=generator)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) (S, N) in nats at z (S, N, d).

        Raises:
            NotImplementedError: the family has auxiliary variables, so log q(z) is an integral.
        """
        if not self.family.tractable:
            raise NotImplementedError(
                f"{self.family.name} has auxiliary variables: log q(z) is not tractable; use rsample_and_log_prob"
            )
        return self.family.log_density(self.params, (z,))

    def kl(self) -> Tensor | None:
        """KL(q(z|x) || N(0, I)) (N,) in nats, or None where there is no closed form."""
        return self.family.kl(self.params)

    def detach(self) -> Posterior:
        """The same q, through which no gradient flows."""
        return Posterior(self.family, {k: v.detach() for k, v in self.params.items()})

    def moments(self, num_samples: int = 256) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z per image, each (N, d): exact for Gaussians, else from seeded samples."""
        exact = self.family.moments(self.params)
        if exact is not None:
            return exact
        generator = torch.Generator(self.params["mean"].device).manual_seed(0)
        with torch.no_grad():
            z = self.rsample(num_samples, generator)
        return z.mean(0), z.std(0).clamp_min(1e-6)

    @property
    def mean(self) -> Tensor:
        """E_q[z] (N, d)."""
        return self.moments()[0]

    @property
    def stddev(self) -> Tensor:
        """Standard deviations under q (N, d)."""
        return self.moments()[1]
