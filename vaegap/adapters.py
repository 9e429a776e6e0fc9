"""Models that others trained: state dicts, pythae, TorchScript, torch.export, modules with encode and decode.

Plain MLPs become a `VAE` of ours, whose gradients are written out by hand (several times faster than autograd).
Nothing here opens a file; `vaegap.lab.weights` does, without unpickling.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.layouts import Layers, choose_activation, fill, from_state_dict, guess_layers
from vaegap.likelihoods import Likelihood, make_likelihood
from vaegap.models import VAE, Model
from vaegap.outputs import two_outputs
from vaegap.posteriors import Posterior
from vaegap.wrapping import WrappedVAE, wrap

__all__ = [
    "Layers",
    "accelerate",
    "as_model",
    "choose_activation",
    "from_functions",
    "from_pythae",
    "from_state_dict",
    "guess_layers",
    "is_pythae",
]

_ACTIVATIONS: dict[str, str] = {"ELU": "elu", "Tanh": "tanh", "ReLU": "relu"}

# pythae models whose q(z|x) is the encoder's factorized Gaussian and whose prior is N(0, I)
_PYTHAE = {"VAE", "BetaVAE", "IWAE", "MIWAE", "PIWAE", "CIWAE", "BetaTCVAE", "DisentangledBetaVAE", "FactorVAE"}
_PYTHAE |= {"INFOVAE_MMD", "MSSSIM_VAE", "VAEGAN"}


def is_pythae(thing: Any) -> bool:
    """Whether something looks like a model of pythae's, which says its own likelihood and shapes."""
    return hasattr(thing, "model_config") and hasattr(thing, "encoder")


def from_pythae(model: Any, likelihood: str | Likelihood | None = None, **likelihood_options: Any) -> Model:
    """A model trained with pythae (Chadebec et al. 2022), whose q(z|x) is a Gaussian under a N(0, I) prior.

    Args:
        model: e.g. a `pythae.models.VAE`.
        likelihood: None takes the model's reconstruction loss: "bce" is Bernoulli, "mse" a Gaussian of scale 1.
        **likelihood_options: e.g. scale=0.1; none of `wrap`'s, which the model answers itself.

    Returns:
        a `Model`; a `VAE`-like one with fast gradients for the default MLP decoder.

    Raises:
        InputError: not a pythae model, one with another posterior or prior, or an option that it does not take.
    """
    config = getattr(model, "model_config", None)
    kind = next((c.__name__ for c in type(model).__mro__ if c.__name__ in _PYTHAE), None)
    if config is None or kind is None or not hasattr(model, "encoder"):
        raise InputError(
            f"{type(model).__name__} is no pythae model with a Gaussian q(z|x) and a N(0, I) prior "
            f"(known: {', '.join(sorted(_PYTHAE))}); use vaegap.wrap(encode=..., decode=..., latent_dim=...)"
        )
    extra = [o for o in likelihood_options if o in inspect.signature(wrap).parameters]
    if extra:
        raise InputError(
            f"a pythae model says itself what goes in and comes out: leave out {', '.join(extra)}, or wrap its parts "
            "yourself with vaegap.wrap(encode=..., decode=..., latent_dim=...)"
        )
    loss = getattr(config, "reconstruction_loss", "mse")
    if likelihood is None:
        likelihood = "bernoulli" if loss == "bce" else "gaussian"
    made = make_likelihood(likelihood, **likelihood_options)
    bernoulli = made.name == "bernoulli"
    body = model.decoder
    layers = _sequence(body.layers) if type(body).__name__ == "Decoder_AE_MLP" else None

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        out = model.encoder(x)
        return out["embedding"], out["log_covariance"]

    def decode(z: Tensor) -> Tensor:
        return body(z)["reconstruction"]

    # without the sigmoid, logits are exact and gradients fast
    strip = layers is not None and bernoulli and isinstance(layers[-1], nn.Sigmoid)
    wrapped = wrap(
        encode,
        nn.Sequential(*layers[:-1]) if strip and layers is not None else decode,
        int(config.latent_dim),
        made,
        data_shape=tuple(config.input_dim),
        probabilities=bernoulli and not strip,
        module=model,
    )
    return accelerate(wrapped)


def _sequence(parts: Any) -> list[nn.Module]:
    return [m for m in nn.Sequential(*parts).modules() if not isinstance(m, nn.Sequential | nn.ModuleList)]


def from_functions(
    encode: Callable[[Tensor], Any], decode: Callable[[Tensor], Any], x: Tensor, **options: Any
) -> Model:
    """Wrap an encoder and a decoder, e.g. two TorchScript or exported programs, whose latent size the encoder tells.

    Args:
        encode, decode: as in `wrap`; an exported program is given as `program.module()`.
        x: an image (1, D), to ask the encoder.
        **options: as in `wrap`; latent_dim too, where the encoder need not be asked.

    Returns:
        a `Model`, the fast kind where the decoder is a plain MLP.

    Example:
        >>> from_functions(nn.Linear(6, 4), nn.Linear(2, 6), torch.zeros(1, 6)).latent_dim
        2
    """
    if "latent_dim" in options:
        return accelerate(wrap(encode, decode, **options))
    # the probe has no prior: the latent size that a prior must have is what is asked for
    probe = wrap(encode, decode, 1, **{k: v for k, v in options.items() if k != "prior"})
    if probe.data_shape is not None and math.prod(probe.data_shape) != x.shape[1]:
        raise InputError(f"the images have {x.shape[1]} pixels; data_shape={probe.data_shape} does not")
    with evaluating(probe):
        shaped = x[:1] if probe.data_shape is None else x[:1].reshape(1, *probe.data_shape)
        out = probe._call(encode, shaped.to(probe.device), "encoder")
    if isinstance(out, Posterior):
        size = out.family.latent_dim
    elif isinstance(out, Distribution):
        size = math.prod((*out.batch_shape, *out.event_shape)[1:])
    else:
        half = out.shape[-1] // 2 if isinstance(out, Tensor) and out.dim() else 1
        size = two_outputs(out, half)[0].shape[-1]
    return accelerate(wrap(encode, decode, int(size), **options))


def accelerate(vae: WrappedVAE) -> Model:
    """The same model with a fast decoder, where the decoder is an `nn.Sequential` of linear layers and one activation.

    Example:
        >>> decoder = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 6))
        >>> type(accelerate(wrap(nn.Linear(6, 4), decoder, 2))).__name__
        'FastDecoderVAE'
    """
    decoder = vae.decode_function
    if not isinstance(decoder, nn.Sequential) or vae.prior is not None or vae.module_dtype != torch.float32:
        return vae
    layers = _sequence(decoder)
    if vae.probabilities:
        if not isinstance(layers[-1], nn.Sigmoid):
            return vae
        layers = layers[:-1]
    linears, between = layers[::2], layers[1::2]
    names = {type(m).__name__ for m in between}
    plain = len(layers) % 2 == 1 and all(isinstance(m, nn.Linear) and m.bias is not None for m in linears)
    if not plain or len(names) > 1 or not names <= set(_ACTIVATIONS):
        return vae
    if any(getattr(m, "alpha", 1.0) != 1.0 for m in between):
        return vae
    maps = [m for m in linears if isinstance(m, nn.Linear)]
    if maps[0].in_features != vae.latent_dim or maps[-1].out_features % vae.likelihood.params_per_pixel:
        return vae  # which says what does not fit
    activation = _ACTIVATIONS[names.pop()] if names else "elu"
    return FastDecoderVAE(vae, maps, activation)


class FastDecoderVAE(VAE):
    """Somebody's encoder with a copy of somebody's MLP decoder; made by `accelerate`."""

    def __init__(self, wrapped: WrappedVAE, linears: Sequence[nn.Linear], activation: str) -> None:
        pixels = linears[-1].out_features // wrapped.likelihood.params_per_pixel
        shape = wrapped.data_shape if wrapped.data_shape and len(wrapped.data_shape) == 3 else (1, 1, pixels)
        hidden = [layer.out_features for layer in linears[:-1]]
        super().__init__(shape, wrapped.latent_dim, encoder_hidden=(), decoder_hidden=hidden, activation=activation,
                         likelihood=wrapped.likelihood)  # type: ignore[arg-type] # fmt: skip
        if self.data_dim != pixels:
            raise InputError(f"data_shape={shape} has {self.data_dim} pixels, the decoder gives {pixels}")
        del self.features, self.head
        self.wrapped = wrapped
        own = [m for m in self.decoder.modules() if isinstance(m, nn.Linear)]
        fill(own, [(m.weight, m.bias) for m in linears])
        self.to(wrapped.device)

    def encode(self, x: Tensor) -> Posterior:
        return self.wrapped.encode(x)


def as_model(thing: Any, x: Tensor, **options: Any) -> Model:
    """Whatever somebody calls their VAE, as a `Model`.

    Args:
        thing: a `Model`; a pythae model; a module (TorchScript too) with methods `encode` and `decode`; or a pair
            (encoder, decoder).
        x: an image (1, D), to ask the encoder for its latent size.
        **options: of `wrap`, e.g. likelihood="gaussian".

    Raises:
        InputError: none of these, or options for a thing that needs none.
    """
    if isinstance(thing, Model):
        if options:
            raise InputError(
                f"the model is a {type(thing).__name__} and has its options: leave out {', '.join(options)}, "
                "or give them to vaegap.wrap when you make it"
            )
        if isinstance(thing, VAE) and thing.dtype in (torch.float16, torch.bfloat16):
            return copy.deepcopy(thing).float()
        return accelerate(thing) if isinstance(thing, WrappedVAE) else thing
    if is_pythae(thing):
        return from_pythae(thing, **options)
    if isinstance(thing, tuple | list) and len(thing) == 2:
        return from_functions(thing[0], thing[1], x, **options)
    if isinstance(thing, nn.Module) and hasattr(thing, "encode") and hasattr(thing, "decode"):
        encode: Any = thing.encode
        decode: Any = thing.decode
        return from_functions(encode, decode, x, **{"module": thing, **options})
    raise InputError(
        f"a {type(thing).__name__} cannot be audited as it is: give vaegap.wrap(encode=..., decode=..., "
        "latent_dim=...), a module with methods encode and decode, or a pair (encoder, decoder)"
    )
