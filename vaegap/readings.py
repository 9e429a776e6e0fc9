"""Are outputs what they are taken for: logits or probabilities, log-variances or sigmas, on the images' scale?"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, MixtureSameFamily, constraints

from vaegap.bounds import elbo
from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.intake import Finding
from vaegap.models import VAE, Model
from vaegap.outputs import mean_of, read_scale, to_logits
from vaegap.posteriors import Gaussian, Posterior
from vaegap.wrapping import WrappedVAE

__all__ = ["decoder_readings", "scale_readings"]

_ENOUGH = 1.0  # nats: a wrong reading costs many; less is not worth a warning
_SAMPLES = 32


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


def decoder_readings(vae: Model, x: Tensor, z: Tensor) -> list[Finding]:
    """Outputs that are read in the wrong way, or on another scale than the images."""
    z = z.unsqueeze(0).to(vae.dtype)
    if isinstance(vae, WrappedVAE):
        out = vae.raw_decode(z)
        if isinstance(out, Distribution):
            return _distribution(out, x)
        out = vae.decoder_params(z)
    elif isinstance(vae, VAE):
        out = vae.decoder_params(z)
    else:
        return []
    if vae.likelihood.name == "bernoulli":
        return _probabilities(out.reshape(len(x), -1), x)
    if vae.likelihood.name == "gaussian":
        return _range(out.reshape(len(x), -1)[:, : x.shape[1]], x)
    return []


def _distribution(out: Distribution, x: Tensor) -> list[Finding]:
    base = out.base_dist if isinstance(out, Independent) else out
    if isinstance(base, Bernoulli):
        return _probabilities(base.logits.reshape(len(x), -1), x)
    if isinstance(base, MixtureSameFamily):
        base = base.component_distribution
    support = base.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    mean = mean_of(out) if support is constraints.real else None
    return [] if mean is None else _range(mean.reshape(len(x), -1), x)


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
