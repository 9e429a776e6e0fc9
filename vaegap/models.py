"""VAEs: encoder + posterior family + decoder + likelihood, and `wrap` for anybody's model."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaegap.errors import InputError
from vaegap.fast import ELU
from vaegap.likelihoods import Likelihood, make_likelihood
from vaegap.posteriors import Posterior, make_family
from vaegap.posteriors.base import LOGVAR_MAX, normal_log_prob
from vaegap.posteriors.gaussian import Gaussian

__all__ = ["ACTIVATIONS", "VAE", "Model", "WrappedVAE", "wrap"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": ELU, "tanh": nn.Tanh, "relu": nn.ReLU}


class Model(nn.Module):
    """What the bounds need of a latent-variable model; `VAE` and `WrappedVAE` fill it in.

    Attributes:
        latent_dim: d.
        likelihood: the family of p(x|z).
        prior: p(z) as a distribution over R^d, or None for N(0, I).
    """

    latent_dim: int
    likelihood: Likelihood
    prior: Distribution | None = None

    @abstractmethod
    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for images x (N, D)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for latents z (..., d), with batch shape (...)."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (..., d) -> (...)."""
        return normal_log_prob(z) if self.prior is None else self.prior.log_prob(z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats: x (N, D), z (S, N, d) -> (S, N)."""
        return self.decode(z).log_prob(x)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) in nats: x (N, D), z (S, N, d) -> (S, N)."""
        return self.log_prior(z) + self.log_likelihood(x, z)

    def sample_prior(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents from the prior (num, d)."""
        if self.prior is None:
            return torch.randn(num, self.latent_dim, generator=generator, dtype=self.dtype, device=self.device)
        return self.prior.sample(torch.Size([num]))

    def check(self, x: Tensor) -> Tensor:
        """Return x in the model's precision and place.

        Raises:
            InputError: no images, a wrong shape, NaN, or pixels the likelihood cannot have produced.
        """
        if x.dim() != 2:
            raise InputError(
                f"images come as a matrix (N, D), one flattened image a row; got shape {tuple(x.shape)}: "
                "use x.flatten(1)"
            )
        if len(x) == 0:
            raise InputError("there are no images: x has shape " + str(tuple(x.shape)))
        x = x.to(device=self.device, dtype=self.dtype)
        self.likelihood.check(x)
        return x


class VAE(Model):
    """A variational autoencoder as in the paper (section 4 and supplement; official code vae.py, cvae.py).

    Args:
        data_shape: (channels, height, width), or the number of pixels.
        latent_dim: size of z.
        family: name of the amortized posterior family.
        encoder_hidden, decoder_hidden: widths of the hidden layers; () for a linear map. Three channels for "conv".
        activation: "elu", "tanh" or "relu".
        architecture: "mlp", or "conv" for 3x32x32 images (kernels of 4, stride 2, batch norm).
        likelihood: name of p(x|z); options in `likelihood_options`.
        family_options: keyword arguments of the family.
        seed: for the initial weights; None draws from the global state.

    Raises:
        InputError: an unknown name, or a shape that the architecture cannot take.

    Example:
        >>> vae = VAE((1, 28, 28), latent_dim=2, encoder_hidden=(10,), decoder_hidden=(10,), seed=0)
        >>> vae.log_joint(torch.zeros(3, 784), vae.encode(torch.zeros(3, 784)).rsample(5)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        data_shape: Sequence[int] | int = (1, 28, 28),
        latent_dim: int = 50,
        family: str = "gaussian",
        encoder_hidden: Sequence[int] = (200, 200),
        decoder_hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        architecture: str = "mlp",
        likelihood: str = "bernoulli",
        family_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        shape = (1, 1, data_shape) if isinstance(data_shape, int) else tuple(data_shape)
        if activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
        if architecture not in ("mlp", "conv"):
            raise InputError(f"unknown architecture {architecture!r}; choose 'mlp' or 'conv'")
        if architecture == "conv" and (shape[-2:] != (32, 32) or len(encoder_hidden) != 3 or len(decoder_hidden) != 3):
            raise InputError("architecture='conv' takes 32x32 images and three channel counts, e.g. (64, 128, 256)")
        self.config: dict[str, Any] = {
            "data_shape": list(shape),
            "latent_dim": latent_dim,
            "family": family,
            "encoder_hidden": list(encoder_hidden),
            "decoder_hidden": list(decoder_hidden),
            "activation": activation,
            "architecture": architecture,
            "likelihood": likelihood,
            "family_options": dict(family_options or {}),
            "likelihood_options": dict(likelihood_options or {}),
        }
        self.data_shape, self.data_dim, self.latent_dim = shape, math.prod(shape), latent_dim
        self.likelihood = make_likelihood(likelihood, **self.config["likelihood_options"])
        self.family = make_family(family, latent_dim, **self.config["family_options"])
        self.features: nn.Module
        self.decoder: nn.Module
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if architecture == "mlp":
                self.features, width = _mlp_features(self.data_dim, encoder_hidden, activation)
                outputs = self.data_dim * self.likelihood.params_per_pixel
                self.decoder = _mlp_decoder(latent_dim, decoder_hidden, outputs, activation)
            else:
                self.features, width = _conv_features(shape, encoder_hidden)
                self.decoder = _conv_decoder(latent_dim, decoder_hidden, shape[0] * self.likelihood.params_per_pixel)
            self.head = self.family.head(width)

    def encode(self, x: Tensor) -> Posterior:
        if x.shape[-1] != self.data_dim:
            raise InputError(f"this VAE takes images of {self.data_dim} pixels; got {x.shape[-1]}")
        return Posterior(self.family, self.head(self.features(x)))

    def decoder_params(self, z: Tensor) -> Tensor:
        """The decoder's raw output (..., D * params_per_pixel): logits for Bernoulli pixels."""
        if self.config["architecture"] == "mlp":
            return self.decoder(z)
        return self.decoder(z.reshape(-1, self.latent_dim)).reshape(*z.shape[:-1], -1)

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood.distribution(self.decoder_params(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return self.likelihood.log_prob(self.decoder_params(z), x)


def _mlp_features(data_dim: int, hidden: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(data_dim, width), ACTIVATIONS[activation]()]
        data_dim = width
    return nn.Sequential(*layers), data_dim


def _mlp_decoder(latent_dim: int, hidden: Sequence[int], outputs: int, activation: str) -> nn.Module:
    features, width = _mlp_features(latent_dim, hidden, activation)
    return nn.Sequential(*features, nn.Linear(width, outputs))


def _conv_features(shape: Sequence[int], channels: Sequence[int]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Unflatten(1, tuple(shape))]
    before = shape[0]
    for after in channels:
        layers += [nn.Conv2d(before, after, 4, 2), nn.BatchNorm2d(after), ELU()]
        before = after
    return nn.Sequential(*layers, nn.Flatten()), before * 4  # 32 -> 15 -> 6 -> 2


def _conv_decoder(latent_dim: int, channels: Sequence[int], outputs: int) -> nn.Module:
    first, second, third = channels[::-1]
    return nn.Sequential(
        nn.Linear(latent_dim, first * 4),
        ELU(),
        nn.Unflatten(1, (first, 2, 2)),
        nn.ConvTranspose2d(first, second, 4, 2),
        nn.BatchNorm2d(second),
        ELU(),
        nn.ConvTranspose2d(second, third, 4, 2, output_padding=1),
        nn.BatchNorm2d(third),
        ELU(),
        nn.ConvTranspose2d(third, outputs, 4, 2),
        nn.Flatten(),
    )


class WrappedVAE(Model):
    """Anybody's model behind the interface of `Model`; made by `wrap`."""

    def __init__(
        self,
        encode: Callable[[Tensor], Any],
        decode: Callable[[Tensor], Any],
        latent_dim: int,
        likelihood: Likelihood,
        prior: Distribution | None,
    ) -> None:
        super().__init__()
        # modules are registered, so that parameters(), eval() and to() reach them; functions are only called
        self.encode_function, self.decode_function = encode, decode
        self.latent_dim, self.likelihood, self.prior = latent_dim, likelihood, prior

    def encode(self, x: Tensor) -> Posterior:
        out = self.encode_function(x)
        if isinstance(out, Posterior):
            return out
        mean, logvar = (out.mean, 2 * out.stddev.log()) if isinstance(out, Distribution) else out
        want = (len(x), self.latent_dim)
        for what, value in (("mean", mean), ("log-variance", logvar)):
            if tuple(value.shape) != want:
                raise InputError(
                    f"the encoder's {what} has shape {tuple(value.shape)}, expected {want}: check latent_dim"
                )
        return Gaussian(self.latent_dim).posterior(mean.float(), logvar.float().clamp_max(2 * LOGVAR_MAX))

    def decode(self, z: Tensor) -> Distribution:
        out = self.decode_function(z.reshape(-1, self.latent_dim).to(self.dtype))
        if isinstance(out, Distribution):
            extra = len(out.batch_shape) - 1
            flat = torch.distributions.Independent(out, extra) if extra > 0 else out
            return _Reshaped(flat, z.shape[:-1])
        return self.likelihood.distribution(out.float().reshape(*z.shape[:-1], -1))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        out = self.decode_function(z.reshape(-1, self.latent_dim).to(self.dtype))
        if isinstance(out, Distribution):
            images = x.expand(*z.shape[:-1], -1).reshape(-1, *out.batch_shape[1:], *out.event_shape)
            return out.log_prob(images).reshape(*z.shape[:-1], -1).sum(-1)
        params = out.float().reshape(*z.shape[:-1], -1)
        want = x.shape[-1] * self.likelihood.params_per_pixel
        if params.shape[-1] != want:
            raise InputError(
                f"the decoder gives {params.shape[-1]} numbers an image; {self.likelihood.name} pixels need {want} "
                f"for images of {x.shape[-1]}"
            )
        return self.likelihood.log_prob(params, x)


class _Reshaped(Distribution):
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


def wrap(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    latent_dim: int,
    likelihood: str | Likelihood = "bernoulli",
    prior: Distribution | None = None,
    **likelihood_options: Any,
) -> WrappedVAE:
    """Give any torch model the interface that the bounds need.

    Args:
        encode: x (N, D) -> (mean, log-variance), each (N, d), or a Normal, or a `Posterior`.
        decode: z (M, d) -> the likelihood's parameters (M, D, ...), logits for Bernoulli pixels, or a Distribution.
        latent_dim: d.
        likelihood: name or object; unused where `decode` returns a Distribution.
        prior: p(z) with event shape (d,); None for N(0, I).
        **likelihood_options: e.g. scale=0.1 for "gaussian".

    Returns:
        a `Model`. Modules passed as encode or decode are registered in it, so eval() and to() reach them.

    Raises:
        InputError: an unknown likelihood, or a prior of another size.

    Example:
        >>> enc, dec = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> vae = wrap(encode=lambda x: enc(x).chunk(2, -1), decode=dec, latent_dim=2)
        >>> vae.encode(torch.zeros(3, 6)).rsample(5).shape
        torch.Size([5, 3, 2])
    """
    if prior is not None and tuple(prior.event_shape) != (latent_dim,):
        raise InputError(
            f"the prior has event shape {tuple(prior.event_shape)}, expected ({latent_dim},): "
            "wrap it in Independent(prior, 1)"
        )
    return WrappedVAE(encode, decode, latent_dim, make_likelihood(likelihood, **likelihood_options), prior)
