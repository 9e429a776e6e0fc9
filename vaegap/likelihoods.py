r"""Likelihoods p(x|z): log-densities of images given a decoder's output.

A decoder maps latents to `params`, a tensor whose last axis holds all parameters of all pixels. Every likelihood
turns them into log p(x|z) in nats, with the constants kept: absolute values are right, not only differences.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Bernoulli as TorchBernoulli,
)
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
)

from vaegap.errors import InputError
from vaegap.fast import bernoulli_log_prob

__all__ = ["Bernoulli", "Categorical", "DiscretizedLogistic", "Gaussian", "Likelihood", "make_likelihood"]

_LOG_2PI = math.log(2 * math.pi)


class Likelihood(ABC):
    """One family of p(x|z), factorized over pixels.

    Attributes:
        name: the word by which `VAE(likelihood=...)` finds it.
        params_per_pixel: decoder outputs that one pixel needs.
    """

    name: str
    params_per_pixel: int = 1

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x|z), nats: params (..., P), x (..., D) broadcast against them -> (...)."""

    @abstractmethod
    def distribution(self, params: Tensor) -> Distribution:
        """The same as a `torch.distributions.Distribution` with event shape (D,)."""

    def grad(self, params: Tensor, x: Tensor) -> Tensor | None:
        """d log p(x|z) / d params (..., P), or None where only autograd knows it."""
        return None

    def check_width(self, params: Tensor, pixels: int) -> None:
        """Raise `InputError` for a decoder's output (..., P) that does not go with so many pixels.

        Broadcasting would hide it.
        """
        want = pixels * self.params_per_pixel
        if params.shape[-1] != want:
            raise InputError(
                f"the decoder gives {params.shape[-1]} numbers an image; {self.name} pixels need {want} for images of "
                f"{pixels}: check the images' shape and the likelihood"
            )

    def rows(self, out: Tensor) -> Tensor:
        """A decoder's output (M, ...) as `params` (M, P), in the order that `log_prob` reads."""
        return out.flatten(1) if out.dim() > 2 else out

    def check(self, x: Tensor) -> None:
        """Raise `InputError` for images this likelihood cannot have produced."""
        _check_finite(x)


class Bernoulli(Likelihood):
    r"""Binary pixels: log p(x|z) = Σ_d x_d l_d − softplus(l_d) for logits l.

    Example:
        >>> round(Bernoulli().log_prob(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, 0.0])).item(), 4)
        -2.7726
    """

    name = "bernoulli"

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return bernoulli_log_prob(params, x)

    def distribution(self, params: Tensor) -> Distribution:
        return Independent(TorchBernoulli(logits=params), 1)

    def grad(self, params: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(params).neg_().add_(x)

    def check(self, x: Tensor) -> None:
        _check_finite(x)
        where = _offenders((x != 0) & (x != 1))
        if where:
            low, high = x.min().item(), x.max().item()
            raise InputError(
                f"{len(where)} of {len(x)} images are not binary (first: image {where[0]}; values from {low:g} to "
                f"{high:g}), but the likelihood is Bernoulli. Binarize them, e.g. x = (x >= {high / 2:g}).float(), "
                "or choose likelihood='gaussian' or 'categorical'.",
                where,
            )


class Gaussian(Likelihood):
    """Real-valued pixels with a fixed scale, or one that the decoder predicts.

    Args:
        scale: standard deviation of every pixel; None if the decoder's output is [mean, log-scale], each (..., D).

    Example:
        >>> Gaussian(scale=1.0).log_prob(torch.zeros(2), torch.zeros(2)).item()
        -1.837877...
    """

    name = "gaussian"

    def __init__(self, scale: float | None = 1.0) -> None:
        if scale is not None and not scale > 0:
            raise InputError(f"the Gaussian likelihood needs a positive scale, not {scale!r}")
        self.scale = scale
        self.params_per_pixel = 1 if scale is not None else 2

    def _mean_and_log_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            mean, log_scale = params.chunk(2, dim=-1)
            return mean, log_scale
        return params, torch.full((), math.log(self.scale), dtype=params.dtype, device=params.device)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self._mean_and_log_scale(params)
        return (-0.5 * ((x - mean) * torch.exp(-log_scale)) ** 2 - log_scale - 0.5 * _LOG_2PI).sum(-1)

    def distribution(self, params: Tensor) -> Distribution:
        mean, log_scale = self._mean_and_log_scale(params)
        return Independent(Normal(mean, log_scale.exp().expand_as(mean)), 1)

    def grad(self, params: Tensor, x: Tensor) -> Tensor | None:
        return (x - params) / self.scale**2 if self.scale is not None else None


class DiscretizedLogistic(Likelihood):
    """Pixels in {0, 1/255, ..., 1}: a logistic density integrated over one grey level.

    The decoder's output is [mean, log-scale]; the two outer levels take the whole tails (Kingma et al. 2016, app. B).

    Args:
        levels: number of grey levels.
    """

    name = "discretized_logistic"
    params_per_pixel = 2

    def __init__(self, levels: int = 256) -> None:
        self.levels = levels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = params.chunk(2, dim=-1)
        inverse = torch.exp(-log_scale.clamp(min=-7.0))
        half = 0.5 / (self.levels - 1)
        upper = torch.where(x > 1 - half, torch.inf, (x - mean + half) * inverse)
        lower = torch.where(x < half, -torch.inf, (x - mean - half) * inverse)
        # log(sigmoid(u) - sigmoid(l)) = logsigmoid(u) + logsigmoid(-l) + log(1 - exp(l - u)), stable in both tails
        width = (2 * half * inverse).expand_as(upper)
        inner = torch.where(torch.isinf(upper) | torch.isinf(lower), 0.0, torch.log(-torch.expm1(-width)))
        return (F.logsigmoid(upper) + F.logsigmoid(-lower) + inner).sum(-1)

    def distribution(self, params: Tensor) -> Distribution:
        grid = torch.arange(self.levels, dtype=params.dtype, device=params.device) / (self.levels - 1)
        mean, log_scale = params.chunk(2, dim=-1)
        pixel = torch.stack([mean, log_scale], -1).unsqueeze(-2)  # (..., D, 1, 2)
        return Independent(_Levels(self.log_prob(pixel, grid.unsqueeze(-1)), self.levels), 1)

    def check(self, x: Tensor) -> None:
        _check_finite(x)
        where = _offenders((x < 0) | (x > 1))
        if where:
            raise InputError(
                f"pixels run from {x.min().item():g} to {x.max().item():g}, but the discretized logistic wants [0, 1] "
                f"(first offender: image {where[0]}); divide by {self.levels - 1}",
                where,
            )
        level = x * (self.levels - 1)
        where = _offenders((level - level.round()).abs() > 0.01)
        if where:
            raise InputError(
                f"pixels of {len(where)} of {len(x)} images lie between the {self.levels} levels 0, "
                f"1/{self.levels - 1}, ..., 1 (first: image {where[0]}), where the discretized logistic has no mass: "
                f"undo the dequantization, x = (x * {self.levels - 1}).round() / {self.levels - 1}, or say "
                "likelihood='gaussian'",
                where,
            )


class Categorical(Likelihood):
    """Pixels in {0, ..., levels - 1}, each with its own softmax over the levels.

    The decoder's output is (M, D * levels), the levels of one pixel next to each other; or a picture whose last axis
    or, as convolutions give it and `cross_entropy` takes it, axis 1 holds the levels.

    Args:
        levels: number of values a pixel can take.

    Example:
        >>> Categorical(4).rows(torch.zeros(7, 4, 5, 5)).shape
        torch.Size([7, 100])
    """

    name = "categorical"

    def __init__(self, levels: int = 256) -> None:
        self.levels = levels
        self.params_per_pixel = levels

    def rows(self, out: Tensor) -> Tensor:
        sizes = tuple(out.shape[1:])
        if sum(n != 1 for n in sizes) <= 1:  # one axis with everything on it
            return out.flatten(1)
        first, last = sizes[0] == self.levels, sizes[-1] == self.levels
        if first != last:
            return (out.movedim(1, -1) if first else out).flatten(1)
        why = "both its first and its last axis could be" if first else "neither its first nor its last axis is"
        raise InputError(
            f"the decoder's output has shape {tuple(out.shape)}: {why} the {self.levels} levels of a categorical "
            "pixel. Return (M, D * levels) with the levels of a pixel side by side; from (M, levels, H, W) that is "
            "out.movedim(1, -1).flatten(1)"
        )

    def _logits(self, params: Tensor) -> Tensor:
        return params.unflatten(-1, (-1, self.levels))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_p = self._logits(params).log_softmax(-1)
        index = x.long().unsqueeze(-1).expand(*log_p.shape[:-1], 1)
        return log_p.gather(-1, index).squeeze(-1).sum(-1)

    def distribution(self, params: Tensor) -> Distribution:
        return Independent(TorchCategorical(logits=self._logits(params)), 1)

    def check(self, x: Tensor) -> None:
        _check_finite(x)
        where = _offenders((x != x.round()) | (x < 0) | (x >= self.levels))
        if where:
            raise InputError(
                f"the categorical likelihood wants whole numbers 0 to {self.levels - 1} (first offender: image "
                f"{where[0]}); these pixels run from {x.min().item():g} to {x.max().item():g}",
                where,
            )


class _Levels(TorchCategorical):
    """A categorical over grey levels whose samples are the levels' values in [0, 1]."""

    def __init__(self, logits: Tensor, levels: int) -> None:
        super().__init__(logits=logits)
        self.levels = levels

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob((value * (self.levels - 1)).round())


def _offenders(bad: Tensor) -> list[int]:
    """Indices of the images with a bad pixel, from a mask (N, D)."""
    return bad.flatten(1).any(1).nonzero().flatten().tolist()


def _check_finite(x: Tensor) -> None:
    where = _offenders(~torch.isfinite(x))
    if where:
        raise InputError(
            f"{len(where)} of {len(x)} images hold NaN or infinity (first: image {where[0]}); drop or mend them", where
        )


def make_likelihood(name: str | Likelihood, **options: Any) -> Likelihood:
    """Find a likelihood by name.

    Args:
        name: "bernoulli", "gaussian", "discretized_logistic" or "categorical", or a `Likelihood`, returned as it is.
        **options: passed to its class, e.g. `scale=0.1`.

    Raises:
        InputError: an unknown name, or an option that this likelihood does not have.

    Example:
        >>> make_likelihood("gaussian", scale=0.5).scale
        0.5
    """
    if isinstance(name, Likelihood):
        if options:
            raise InputError(f"a {type(name).__name__} object has its options already: leave out {', '.join(options)}")
        return name
    known: dict[str, type[Likelihood]] = {c.name: c for c in (Bernoulli, Gaussian, DiscretizedLogistic, Categorical)}
    if name not in known:
        raise InputError(f"unknown likelihood {name!r}; choose from {', '.join(sorted(known))}")
    possible = inspect.signature(known[name]).parameters
    wrong = [option for option in options if option not in possible]
    if wrong:
        raise InputError(
            f"the {name} likelihood has no option {', '.join(map(repr, wrong))} (it has: "
            f"{', '.join(possible) or 'none'}): leave it out, or say which likelihood it belongs to"
        )
    return known[name](**options)
