"""What is odd about a model and its images, found before and after an audit: each finding names its cure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vaegap.bounds import elbo, evaluating
from vaegap.errors import InputError
from vaegap.models import VAE, Model
from vaegap.outputs import read_scale, to_logits
from vaegap.posteriors import Gaussian, Posterior
from vaegap.wrapping import WrappedVAE

__all__ = ["Finding", "as_images", "examine", "scale_readings"]

_ENOUGH = 1.0  # nats: a wrong reading costs many; less is not worth a warning
_SAMPLES = 32
_MOST_IMAGES = 64


@dataclass(frozen=True)
class Finding:
    """Something odd about the model or the images.

    Args:
        kind: a word for programs: "training_mode", "random_encoder", "batch_dependent", "scale", "probabilities",
            "pixel_range", "sandwich", "khat", "missed_modes", "stuck", "unchecked_modes" or "own_half".
        message: what was seen, with numbers.
        cure: what to do about it.
        severity: "warning" if it may make numbers wrong, "note" otherwise.
    """

    kind: str
    message: str
    cure: str
    severity: str = "warning"


def as_images(x: object, what: str = "x") -> Tensor:
    """Images as a float matrix (N, D), from a tensor or an array of any shape (N, ...).

    Raises:
        InputError: no images, or not numbers.

    Example:
        >>> as_images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).shape
        torch.Size([3, 16])
    """
    try:
        tensor = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is no array of numbers ({error}); pass a tensor or array (N, ...)") from None
    if tensor.dim() < 2 or tensor.shape[0] == 0 or tensor.numel() == 0:
        raise InputError(f"{what} holds no images: its shape is {tuple(tensor.shape)}, expected (N, D) or (N, C, H, W)")
    if tensor.is_complex():
        raise InputError(f"{what} is complex; images are real numbers")
    tensor = tensor.flatten(1)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


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
    findings = _modes(vae)
    x = vae.check(x)[:_MOST_IMAGES]
    with evaluating(vae):
        q = vae.encode(x)
        vae.log_joint(x, q.rsample(2, torch.Generator(x.device).manual_seed(0)))  # sizes fit, or an error says why not
        findings += _steady(vae, x, q) + _decoder(vae, x, q.mean)
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


def _steady(vae: Model, x: Tensor, q: Posterior) -> list[Finding]:
    """The encoder's output for an image is the same twice, and does not depend on its neighbours."""
    findings = []
    size = q.mean.abs().max() + q.stddev.max()
    slack = (2e-2 if isinstance(vae, WrappedVAE) and vae.module_dtype.itemsize < 4 else 1e-3) * size
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


def _decoder(vae: Model, x: Tensor, z: Tensor) -> list[Finding]:
    z = z.unsqueeze(0).to(vae.dtype)
    if isinstance(vae, WrappedVAE):
        out = vae.raw_decode(z)
        base: Distribution | None = None
        if isinstance(out, Distribution):
            base = out.base_dist if isinstance(out, Independent) else out
        else:
            out = vae.decoder_params(z)
        if isinstance(base, Bernoulli):
            return _probabilities(base.logits.reshape(len(x), -1), x)
        if isinstance(base, Normal):
            return _range(base.loc, x)
    elif isinstance(vae, VAE):
        out = vae.decoder_params(z)
    else:
        return []
    if isinstance(out, Tensor) and vae.likelihood.name == "bernoulli":
        return _probabilities(out.reshape(len(x), -1), x)
    if isinstance(out, Tensor) and vae.likelihood.name == "gaussian":
        return _range(out.reshape(len(x), -1)[:, : x.shape[1]], x)
    return []


def _probabilities(logits: Tensor, x: Tensor) -> list[Finding]:
    """Outputs that are all in [0, 1] and explain the images better as probabilities than as logits."""
    if logits.min() < 0 or logits.max() > 1:
        return []
    as_read = Bernoulli(logits=logits).log_prob(x).sum(-1)
    other = Bernoulli(logits=to_logits(logits)).log_prob(x).sum(-1)
    gain = (other - as_read).double().mean().item()
    if gain < _ENOUGH:
        return []
    return [
        Finding(
            "probabilities",
            f"all decoder outputs lie between {logits.min().item():.3g} and {logits.max().item():.3g} and were read as "
            f"logits; read as probabilities, the images are {gain:.1f} nats more likely on average",
            "leave out the decoder's final sigmoid, or say wrap(probabilities=True); numbers of this report are for "
            "the model as it was passed",
        )
    ]


def _range(mean: Tensor, x: Tensor) -> list[Finding]:
    """Images on another scale than the decoder's means."""
    mine, theirs = mean.double().abs().max().item(), x.double().abs().max().item()
    if max(mine, theirs) < 20 * max(min(mine, theirs), 0.05):
        return []
    return [
        Finding(
            "pixel_range",
            f"the images run to {theirs:g}, the decoder's means only to {mine:.3g}"
            if theirs > mine
            else f"the decoder's means run to {mine:.3g}, the images only to {theirs:g}",
            "scale the images as in training, e.g. x / 255" if theirs > mine else "scale the images as in training",
        )
    ]


def scale_readings(vae: Model, x: Tensor, best: Posterior, seed: int = 0) -> list[Finding]:
    """Is the encoder's second output what it is taken for? The right reading gives clearly the best ELBO.

    Args:
        vae: the model.
        x: images (N, D).
        best: q* of these images in the factorized family.
        seed: of the samples; all readings share them.

    Returns:
        a finding where another reading gains more than 1 nat, more than four standard errors, and comes twice as near
        to the scales of q*: then the reading is wrong, and not only the encoder weak.

    Example:
        >>> from vaegap import optimize_local
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> x = vae.simulate(10)
        >>> scale_readings(vae, x, optimize_local(vae, x, seed=0).posterior)
        []
    """
    x = vae.check(x)
    with evaluating(vae):
        q = vae.encode(x).detach()
    inner = getattr(vae, "wrapped", vae)
    own = inner.encoder_scale if isinstance(inner, WrappedVAE) else "logvar"
    if not isinstance(q.family, Gaussian) or (isinstance(inner, WrappedVAE) and inner.states_scale):
        return []
    taken = elbo(vae, x, _SAMPLES, q, seed=seed).per_image.double()
    mean, logvar = q.params["mean"], q.params["logvar"]
    aim = 2 * best.stddev.log()
    off = (logvar - aim).abs().mean()
    second = _unread(logvar, own)
    gains: dict[str, float] = {}
    for name in ("logvar", "log_sigma", "sigma", "variance", "swapped"):
        loc, other = (second, mean) if name == "swapped" else (mean, second)
        try:
            read = read_scale(other, "logvar" if name == "swapped" else name).clamp(-30, 30)
            value = elbo(vae, x, _SAMPLES, q.family.posterior(loc, read), seed=seed).per_image.double()
        except InputError:  # this reading is not possible: outputs that are not positive, or a bound that overflows
            continue
        gain = value - taken
        error = gain.std().item() / len(x) ** 0.5 if len(x) > 1 else 0.0
        if gain.mean().item() > max(_ENOUGH, 4 * error) and (read - aim).abs().mean() < off / 2:
            gains[name] = gain.mean().item()
    if not gains:
        return []
    name = max(gains, key=lambda n: gains[n])
    words = {"logvar": "log-variance", "log_sigma": "log-sigma", "sigma": "sigma", "variance": "variance"}
    if name == "swapped":
        seen, cure = "as (log-variance, mean), in this order", "return (mean, logvar) from the encoder"
    else:
        seen = f"as {words[name]}"
        whole = "2 * log_sigma" if name == "log_sigma" else "the log-variance"
        cure = f"say wrap(encoder_scale={name!r}), or return {whole} from the encoder"
    return [
        Finding(
            "scale",
            f"the encoder's second output was read as {words[own]}; read {seen}, the ELBO is {gains[name]:.1f} nats "
            f"higher ({taken.mean().item() + gains[name]:.1f} instead of {taken.mean().item():.1f})",
            cure + "; numbers of this report are for the model as it was passed",
        )
    ]


def _unread(logvar: Tensor, kind: str) -> Tensor:
    """Inverse of `read_scale`."""
    if kind == "logvar":
        return logvar
    if kind == "log_sigma":
        return logvar / 2
    return logvar.exp() if kind == "variance" else (logvar / 2).exp()
