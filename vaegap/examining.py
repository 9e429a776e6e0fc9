"""What is wrong with a model, found by calling it: its mode, its randomness, its gradient, its neighbours."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.intake import Finding
from vaegap.models import Model
from vaegap.outputs import mean_of
from vaegap.posteriors import Posterior
from vaegap.readings import decoder_readings
from vaegap.wrapping import WrappedVAE

__all__ = ["examine"]

_MOST_IMAGES = 64


def examine(vae: Model, x: Tensor) -> list[Finding]:
    """Look for what makes numbers wrong without an error.

    Args:
        vae: the model, in the state in which it was handed over.
        x: images (N, D).

    Returns:
        findings, those that may make numbers wrong first.

    Raises:
        InputError: images or model cannot be used at all (wrong sizes, NaN, not binary, ...).

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae().eval()
        >>> examine(vae, vae.simulate(10))
        []
    """
    findings = _modes(vae) + _unreached(vae)
    x = vae.check(x)[:_MOST_IMAGES]
    with evaluating(vae):
        q = vae.encode(x)
        z = q.rsample(2, torch.Generator(x.device).manual_seed(0))
        _check_finite(vae.log_joint(x, z))  # sizes fit, or an error says why not
        unsteady = _steady(vae, x, q) + _steady_decoder(vae, q.mean)
        findings += (
            unsteady + _gradient(vae, x, z, q.stddev if not unsteady else None) + decoder_readings(vae, x, q.mean)
        )
    return sorted(findings, key=lambda f: f.severity, reverse=True)


def _modes(vae: Model) -> list[Finding]:
    """Batch norm and dropout that were left in training mode; `VAE`s of ours are built that way and know it."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    names = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Dropout", "Dropout2d", "Dropout3d", "AlphaDropout"}
    names_of = [getattr(m, "original_name", type(m).__name__) for m in vae.modules() if m.training]
    seen = [n for n, m in zip(names_of, (m for m in vae.modules() if m.training), strict=True)
            if isinstance(m, kinds) or n in names]  # fmt: skip
    if not seen:
        return []
    listed = ", ".join(f"{count} {name}" for name, count in Counter(seen).items())
    return [
        Finding(
            "training_mode",
            f"the model came in training mode with {listed}; it was audited in evaluation mode and put back",
            "call model.eval() before you compute numbers of your own: in training mode they depend on the batch",
            "note",
        )
    ]


def _unreached(vae: Model) -> list[Finding]:
    """Functions behind which no module was found: nobody can say in which mode their batch norm and dropout are."""
    inner = getattr(vae, "wrapped", vae)
    missing = inner.unreached if isinstance(inner, WrappedVAE) else ()
    if not missing:
        return []
    return [
        Finding(
            "no_module",
            f"no torch module was found behind {' and '.join(missing)}: batch norm or dropout, if there is any, "
            "stayed as it was and may be in training mode",
            "pass wrap(module=...) with the networks, or call eval() on them first",
            "note",
        )
    ]


def _check_finite(log_joint: Tensor) -> None:
    where = (~torch.isfinite(log_joint)).any(0).nonzero().flatten().tolist()
    if where:
        raise InputError(
            f"log p(x, z) is not finite for {len(where)} of {log_joint.shape[1]} images (first: image {where[0]}) at "
            "latents that the encoder proposes: the decoder or the prior gives NaN or infinity there. Look at its "
            "weights and outputs",
            where,
        )


def _slack(vae: Model) -> float:
    """Relative differences that rounding explains."""
    return 2e-2 if isinstance(vae, WrappedVAE) and vae.module_dtype.itemsize < 4 else 1e-3


def _steady(vae: Model, x: Tensor, q: Posterior) -> list[Finding]:
    """The encoder's output for an image is the same twice, and does not depend on its neighbours."""
    findings = []
    slack = _slack(vae) * (q.mean.abs().max() + q.stddev.max())
    if (vae.encode(x).mean - q.mean).abs().max() > slack:
        findings.append(
            Finding(
                "random_encoder",
                "the encoder gives another mean for the same images when called again, in evaluation mode",
                "is dropout or sampling on inside encode? Return q's parameters, and pass wrap(module=...) so that "
                "eval() reaches every layer",
            )
        )
    elif len(x) > 1 and (vae.encode(x[:1]).mean - q.mean[:1]).abs().max() > slack:
        findings.append(
            Finding(
                "batch_dependent",
                "the encoder's output for an image depends on the other images in the batch, in evaluation mode",
                "is a batch norm called with training=True, or out of reach of eval()? Pass wrap(module=...)",
            )
        )
    return findings


def _steady_decoder(vae: Model, z: Tensor) -> list[Finding]:
    """The decoder's output for a latent is the same twice, and does not depend on the other latents."""
    z = z.to(vae.dtype)
    first, again, alone = (_outputs(vae, part) for part in (z, z, z[:1]))
    if first is None or again is None or alone is None:
        return []
    slack = _slack(vae) * first.abs().max()
    if (again - first).abs().max() > slack:
        return [
            Finding(
                "random_decoder",
                "the decoder gives other outputs for the same latents when called again, in evaluation mode: "
                "log p(x|z) is random, and all numbers here are wrong",
                "is dropout or sampling on inside decode? Switch it off, and pass wrap(module=...) so that eval() "
                "reaches every layer",
            )
        ]
    if (alone - first[:1]).abs().max() > slack:
        return [
            Finding(
                "batch_dependent",
                "the decoder's output for a latent depends on the other latents in the batch, in evaluation mode: "
                "log p(x|z) is no function of x and z, and all numbers here are wrong",
                "is a batch norm in training mode, out of reach of eval()? Pass wrap(module=...) with the network",
            )
        ]
    return []


def _outputs(vae: Model, z: Tensor) -> Tensor | None:
    """What the decoder gives for latents (N, d), as rows; None for a distribution without a mean."""
    out = vae.raw_decode(z) if isinstance(vae, WrappedVAE) else vae.decode(z)
    if isinstance(out, Distribution):
        out = mean_of(out)
    return None if out is None else out.to(vae.dtype).reshape(len(z), -1)


_NO_GRADIENT = (
    "decode must be differentiable in z: annealing and q* follow the gradient of log p(x|z), and without it any "
    "encoder looks perfect and its family poor. Leave out torch.no_grad(), inference_mode, detach and numpy in decode"
)


def _gradient(vae: Model, x: Tensor, z: Tensor, scale: Tensor | None) -> list[Finding]:
    """log p(x|z) has a gradient in z; with a `scale` (N, d) of steps, it is also compared with finite differences."""
    leaf = z.detach().to(vae.dtype).requires_grad_(True)
    with torch.enable_grad():
        value = vae.log_likelihood(x, leaf)
        if not value.requires_grad:
            raise InputError(f"log p(x|z) has no gradient in z. {_NO_GRADIENT}")
        try:
            (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        except RuntimeError as error:
            raise InputError(f"log p(x|z) has no gradient in z ({str(error)[:200]}). {_NO_GRADIENT}") from error
    if grad is None:
        raise InputError(f"log p(x|z) has no gradient in z. {_NO_GRADIENT}")
    bad = (~torch.isfinite(grad)).any(-1).any(0).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"the gradient of log p(x|z) in z is NaN or infinite for {len(bad)} of {len(x)} images (first: image "
            f"{bad[0]}), though the value is finite: look for sqrt, log, norm or division at 0 inside decode",
            bad,
        )
    if not grad.any():
        return _ignored(vae, x, z, value)
    if scale is None or _slack(vae) > 1e-2:
        return []
    step = 0.1 * scale * torch.randn(z.shape, generator=torch.Generator(x.device).manual_seed(1), device=x.device)
    up, down = (vae.log_likelihood(x, (z + sign * step / 2).to(vae.dtype)) for sign in (1, -1))
    real, said = up - down, (grad * step).sum(-1)
    if (real - said).abs().median() < 0.25 * real.abs().median() + 1e3 * torch.finfo(
        vae.dtype
    ).eps * value.abs().median():
        return []
    return [
        Finding(
            "wrong_gradient",
            "the gradient of log p(x|z) in z is not its slope: annealing and q* are led astray, and the approximation "
            "gap looks too large",
            "is a part of decode detached, rounded, or run without gradients? Every path from z needs its gradient",
        )
    ]


def _ignored(vae: Model, x: Tensor, z: Tensor, value: Tensor) -> list[Finding]:
    """A gradient of zero: the decoder looks away from z, or hides how it looks."""
    if not torch.equal(vae.log_likelihood(x, z.to(vae.dtype) + 1), value):
        raise InputError(
            f"the gradient of log p(x|z) in z is zero everywhere, though the value changes. {_NO_GRADIENT}"
        )
    return [
        Finding(
            "ignored_latents",
            "the decoder's output does not depend on z at all: log p(x) is log p(x|z), and only q = p(z) loses nothing",
            "is z used inside decode? If so, the posterior has collapsed: anneal the KL term, or lower its weight",
        )
    ]
