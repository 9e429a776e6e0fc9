"""VAEs: encoder + posterior family + decoder + likelihood."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaegap.errors import InputError
from vaegap.fast import ELU, MLP
from vaegap.likelihoods import Categorical, Likelihood, make_likelihood
from vaegap.posteriors import Posterior, make_family
from vaegap.posteriors.base import normal_log_prob

__all__ = ["ACTIVATIONS", "VAE", "Model", "borrowed_rng"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": ELU, "tanh": nn.Tanh, "relu": nn.ReLU}


class Model(nn.Module):
    """What the bounds need of a latent-variable model; `VAE` and `wrap` fill it in.

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
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def standard_prior(self) -> bool:
        """Whether p(z) is N(0, I): there is no other distribution, and nobody has replaced `log_prior`."""
        return self.prior is None and type(self).log_prior is Model.log_prior and "log_prior" not in vars(self)

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
            if not self.standard_prior:
                raise InputError("log_prior is not that of N(0, I), so sample_prior must be replaced as well")
            return torch.randn(num, self.latent_dim, generator=generator, dtype=self.dtype, device=self.device)
        # torch.distributions draw from the global state: borrow it, and give it back
        with borrowed_rng(self.device, generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            return self.prior.sample(torch.Size([num]))

    def check(self, x: Tensor) -> Tensor:
        """Return x in the model's precision and place.

        Raises:
            InputError: no images, a wrong shape, NaN, or pixels the likelihood cannot have produced.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"images come as a torch tensor (N, D), not a {type(x).__name__}: use torch.as_tensor(x)")
        if x.dim() != 2:
            raise InputError(
                f"images come as a matrix (N, D), one flattened image a row; got shape {tuple(x.shape)}: "
                "use x.flatten(1)"
            )
        if len(x) == 0:
            raise InputError("there are no images: x has shape " + str(tuple(x.shape)))
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"the model computes in {self.dtype}, in which a log-likelihood of -90 has steps of 0.06 nat or more: "
                "call .float() on it first"
            )
        if x.is_complex():
            raise InputError("the images are complex; they must be real numbers")
        x = x.to(device=self.device, dtype=self.dtype)
        self.check_pixels(x)
        return x

    def check_pixels(self, x: Tensor) -> None:
        """Raise `InputError` for images (N, D) that p(x|z) cannot have produced."""
        self.likelihood.check(x)


def borrowed_rng(device: torch.device, enabled: bool = True) -> AbstractContextManager[None]:
    """Draw from torch's global state, of the CPU and of one device, and give it back afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=enabled)


class VAE(Model):
    """A variational autoencoder as in the paper.

    Args:
        data_shape: (channels, height, width), or the number of pixels.
        latent_dim: size of z.
        family: name of the amortized posterior family.
        encoder_hidden, decoder_hidden: widths of the hidden layers; () for a linear map. Three channels for "conv".
        activation: "elu", "tanh" or "relu".
        architecture: "mlp", or "conv" for 3x32x32 images (kernels of 4, stride 2, batch norm).
        likelihood, likelihood_options: name of p(x|z), and its options.
        family_options: keyword arguments of the family.
        seed: for the initial weights; None draws from the global state.

    Raises:
        InputError: an unknown name, or a shape that the architecture cannot take.

    Source: Kingma & Welling 2014, section 2; Cremer et al. 2018, section 4, supplement and official code (vae.py,
    cvae.py).

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
                outputs = shape[0] * self.likelihood.params_per_pixel
                flat = _LevelsLast(shape[0]) if isinstance(self.likelihood, Categorical) else nn.Flatten()
                self.decoder = _conv_decoder(latent_dim, decoder_hidden, outputs, flat)
            self.head = self.family.head(width)

    def encode(self, x: Tensor) -> Posterior:
        self._check_width(x)
        return Posterior(self.family, self.head(self.features(x)))

    def check_pixels(self, x: Tensor) -> None:
        self._check_width(x)
        super().check_pixels(x)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.data_dim:
            raise InputError(f"this VAE takes images of {self.data_dim} pixels; got {x.shape[-1]}")

    def decoder_params(self, z: Tensor) -> Tensor:
        """The decoder's raw output (..., D * params_per_pixel): logits for Bernoulli pixels."""
        if self.config["architecture"] == "mlp":
            return self.decoder(z)
        return self.decoder(z.reshape(-1, self.latent_dim)).reshape(*z.shape[:-1], -1)

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood.distribution(self.decoder_params(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        if type(self).decode is not VAE.decode or "decode" in vars(self):  # somebody's own p(x|z)
            return super().log_likelihood(x, z)
        params = self.decoder_params(z)
        self.likelihood.check_width(params, x.shape[-1])
        return self.likelihood.log_prob(params, x)


def _mlp_features(data_dim: int, hidden: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(data_dim, width), ACTIVATIONS[activation]()]
        data_dim = width
    return _sequence(layers, activation), data_dim


def _sequence(layers: Sequence[nn.Module], activation: str) -> nn.Sequential:
    return MLP(*layers) if activation == "elu" and layers else nn.Sequential(*layers)


def _mlp_decoder(latent_dim: int, hidden: Sequence[int], outputs: int, activation: str) -> nn.Module:
    features, width = _mlp_features(latent_dim, hidden, activation)
    return _sequence([*features, nn.Linear(width, outputs)], activation)


def _conv_features(shape: Sequence[int], channels: Sequence[int]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Unflatten(1, tuple(shape))]
    before = shape[0]
    for after in channels:
        layers += [nn.Conv2d(before, after, 4, 2), nn.BatchNorm2d(after), ELU()]
        before = after
    return nn.Sequential(*layers, nn.Flatten()), before * 4  # 32 -> 15 -> 6 -> 2


class _LevelsLast(nn.Module):
    """A picture (M, channels * levels, H, W) as rows (M, channels * H * W * levels): levels of a pixel side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, picture: Tensor) -> Tensor:
        return picture.unflatten(1, (self.channels, -1)).movedim(2, -1).flatten(1)


def _conv_decoder(latent_dim: int, channels: Sequence[int], outputs: int, flat: nn.Module) -> nn.Module:
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
        flat,
    )


def __getattr__(name: str) -> Any:
    """`wrap` lives in vaegap.wrapping, which needs this module; its old address stays good."""
    if name in ("WrappedVAE", "wrap"):
        from vaegap import wrapping

        return getattr(wrapping, name)
    raise AttributeError(f"module 'vaegap.models' has no attribute {name!r}")
