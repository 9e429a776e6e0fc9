"""Reading what other people's encoders and decoders return."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaegap.errors import InputError
from vaegap.posteriors import FullGaussian, Gaussian, Posterior

__all__ = [
    "ENCODER_SCALES",
    "Reshaped",
    "check_event",
    "checked_gaussian",
    "gaussian_of",
    "mean_of",
    "name_of",
    "read_scale",
    "to_logits",
    "two_outputs",
]

ENCODER_SCALES = ("logvar", "log_sigma", "sigma", "variance")
"""What the second output of an encoder may be."""

_LOGVAR_LIMIT = 60.0  # beyond it the scale is 1e13 or 1e-13: the encoder overflowed, or means something else


def name_of(out: Distribution) -> str:
    return name_of(out.base_dist) if isinstance(out, Independent) else type(out).__name__


def mean_of(out: Distribution) -> Tensor | None:
    """Its mean; None where it has none, or an infinite one."""
    try:
        mean = out.mean
    except NotImplementedError:
        return None
    return mean if torch.isfinite(mean).all() else None


def two_outputs(out: Any, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and second output from what an encoder returned."""
    if isinstance(out, Tensor):
        if out.dim() != 2 or out.shape[1] != 2 * latent_dim:
            raise InputError(
                f"the encoder returns one tensor of shape {tuple(out.shape)}; with latent_dim={latent_dim} it would be "
                f"(N, {2 * latent_dim}): means, then log-variances. Check latent_dim, or return (mean, logvar)"
            )
        return out[:, :latent_dim], out[:, latent_dim:]
    if isinstance(out, tuple | list) and len(out) == 2 and all(isinstance(v, Tensor) for v in out):
        return out[0], out[1]
    kind = f"{len(out)} values" if isinstance(out, tuple | list) else f"a {type(out).__name__}"
    raise InputError(f"the encoder returns {kind}; return (mean, logvar), a Normal, or one tensor (N, 2d)")


def gaussian_of(out: Distribution, num: int, latent_dim: int, dtype: torch.dtype) -> Posterior:
    """A normal distribution as a posterior of ours; a full covariance stays one."""
    base = out.base_dist if isinstance(out, Independent) else out
    if tuple(base.batch_shape + base.event_shape) != (num, latent_dim):
        raise InputError(
            f"the encoder's {name_of(out)} has shape {tuple(base.batch_shape + base.event_shape)}, expected "
            f"{(num, latent_dim)}: check latent_dim"
        )
    if isinstance(base, Normal):
        return checked_gaussian(base.loc.to(dtype), 2 * base.scale.to(dtype).log())
    if isinstance(base, MultivariateNormal):
        params = FullGaussian.from_tril(base.loc.to(dtype), base.scale_tril.to(dtype))
        return Posterior(FullGaussian(latent_dim), params)
    raise InputError(
        f"the encoder returns a {name_of(out)}; Normal and MultivariateNormal are understood. For another family "
        "return a vaegap.Posterior"
    )


def checked_gaussian(mean: Tensor, logvar: Tensor) -> Posterior:
    """The Gaussian with these parameters, unless they overflowed."""
    bad = ~(torch.isfinite(mean) & (logvar.abs() <= _LOGVAR_LIMIT)).all(1)
    if bad.any():
        where = bad.nonzero().flatten().tolist()
        raise InputError(
            f"the encoder's mean or log-variance is not usable for {len(where)} of {len(mean)} images (first: image "
            f"{where[0]}; log-variances from {logvar.min().item():g} to {logvar.max().item():g}). Is the second output "
            "a log-variance? If not, say wrap(encoder_scale='sigma') or 'variance'; are the images scaled as in "
            "training?",
            where,
        )
    return Gaussian(mean.shape[1]).posterior(mean, logvar)


def read_scale(second: Tensor, kind: str) -> Tensor:
    """Log-variances from an encoder's second output.

    Args:
        second: (N, d).
        kind: one of `ENCODER_SCALES`.

    Example:
        >>> read_scale(torch.tensor([4.0]), "variance").exp()
        tensor([4.])
    """
    if kind == "logvar":
        return second
    if kind == "log_sigma":
        return 2 * second
    if kind not in ENCODER_SCALES:
        raise InputError(f"unknown encoder_scale {kind!r}; choose from {', '.join(ENCODER_SCALES)}")
    if not bool((second > 0).all()):
        raise InputError(
            f"encoder_scale={kind!r} needs positive outputs; the encoder's fall to {second.min().item():g}"
        )
    return (2 if kind == "sigma" else 1) * second.log()


def to_logits(probabilities: Tensor) -> Tensor:
    low, high = probabilities.detach().aminmax()
    if low < 0 or high > 1:
        raise InputError(
            f"the decoder's outputs run from {low.item():g} to {high.item():g}, so they are logits and no "
            "probabilities: leave out probabilities=True"
        )
    p = probabilities.clamp(1e-12, 1 - torch.finfo(probabilities.dtype).eps)
    return p.log() - (-p).log1p()


def check_event(out: Distribution, pixels: int) -> None:
    """Raise `InputError` for a decoder's distribution over other images, or with impossible probabilities."""
    size = math.prod((*out.batch_shape[1:], *out.event_shape))
    if size != pixels:
        raise InputError(f"the decoder's {name_of(out)} is over {size} pixels, the images have {pixels}")
    base = out
    while isinstance(base, Independent):
        base = base.base_dist
    probs = vars(base).get("probs")  # torch checks this itself, unless validation is off (torch.export does that)
    if isinstance(probs, Tensor) and not ((probs >= 0) & (probs <= 1)).all():
        raise InputError(
            f"the decoder's {name_of(out)} has probabilities from {probs.min().item():g} to "
            f"{probs.max().item():g}. These look like logits given as probabilities: use Bernoulli(logits=...)."
        )


class Reshaped(Distribution):
    """A distribution over flat rows (S * N) shown with batch shape (S, N) and flat events."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Distribution, shape: torch.Size) -> None:
        super().__init__(shape, torch.Size([base.event_shape.numel()]), validate_args=False)
        self.base = base

    @property
    def mean(self) -> Tensor:
        return self.base.mean.reshape(*self.batch_shape, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape)).reshape(*sample_shape, *self.batch_shape, -1)

    def log_prob(self, x: Tensor) -> Tensor:
        rows = x.expand(*self.batch_shape, -1).reshape(-1, *self.base.event_shape)
        return self.base.log_prob(rows).reshape(self.batch_shape)
