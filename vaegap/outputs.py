"""Reading what other people's encoders and decoders return, and finding the modules behind their functions."""

from __future__ import annotations

import functools
import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaegap.errors import InputError
from vaegap.posteriors import FullGaussian, Gaussian, Posterior

__all__ = [
    "ENCODER_SCALES",
    "checked_gaussian",
    "gaussian_of",
    "modules_behind",
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
        tril = base.scale_tril.to(dtype)
        scale = tril.diagonal(dim1=-2, dim2=-1)
        params = {"mean": base.loc.to(dtype), "logvar": 2 * scale.log(), "tril": (tril / scale.unsqueeze(-1)).tril(-1)}
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


def modules_behind(function: Any) -> list[nn.Module]:
    """Modules that a callable uses: itself, its object, its closure, its partial arguments, globals that it names.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> modules_behind(lambda z: layer(z)) == [layer]
        True
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    todo: list[Any] = [function]
    while todo:
        item = todo.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        elif isinstance(item, functools.partial):
            todo += [item.func, *item.args, *item.keywords.values()]
        elif inspect.ismethod(item):
            todo += [item.__self__, item.__func__]
        elif inspect.isfunction(item):
            todo += [v for v in _reached(item) if isinstance(v, nn.Module) or inspect.isroutine(v)]
        elif callable(item) or item is getattr(function, "__self__", None):
            todo += [v for v in getattr(item, "__dict__", {}).values() if isinstance(v, nn.Module)]
    return found


def _reached(function: Any) -> list[Any]:
    """Values in a function's closure, defaults, and globals that its code names."""
    values = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    codes, names = [function.__code__], set[str]()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    return values + [function.__globals__[name] for name in names if name in function.__globals__]
