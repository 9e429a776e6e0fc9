"""Anybody's torch model behind the interface of `Model`: functions or modules in, ELBO, AIS and gaps out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vaegap.behind import line_of, modules_behind
from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.likelihoods import Likelihood, make_likelihood
from vaegap.models import Model
from vaegap.outputs import (
    ENCODER_SCALES,
    Reshaped,
    check_event,
    checked_gaussian,
    gaussian_of,
    name_of,
    read_scale,
    to_logits,
    two_outputs,
)
from vaegap.posteriors import Posterior

__all__ = ["WrappedVAE", "wrap"]


class WrappedVAE(Model):
    """Anybody's model behind the interface of `Model`; made by `wrap`.

    Calls are computed in the module's own precision; samples, log-densities and sums in float32, or in float64 for a
    float64 module.

    Attributes:
        data_shape: shape in which the encoder takes one image, or None for a flat row.
        states_scale: whether the encoder's last output said its scale itself (a distribution), so that nothing had to
            be read as a log-variance.
        unreached: of "encode" and "decode", those behind which no module was found, so that eval() cannot reach it.
    """

    fixed: tuple[nn.Module, ...]
    encode_function: Callable[[Tensor], Any]
    decode_function: Callable[[Tensor], Any]
    unreached: tuple[str, ...] = ()

    def __init__(
        self,
        encode: Callable[[Tensor], Any],
        decode: Callable[[Tensor], Any],
        latent_dim: int,
        likelihood: Likelihood,
        prior: Distribution | None = None,
        data_shape: Sequence[int] | None = None,
        encoder_scale: str = "logvar",
        probabilities: bool = False,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        # modules are registered, so that parameters(), eval() and to() reach them; exported programs refuse eval()
        behind = list(modules)
        self.registered = nn.ModuleList(m for m in behind if "train" not in vars(m))
        self.__dict__["fixed"] = tuple(m for m in behind if "train" in vars(m))
        self.__dict__["encode_function"], self.__dict__["decode_function"] = encode, decode
        self.latent_dim, self.likelihood, self.prior = latent_dim, likelihood, prior
        self.data_shape = None if data_shape is None else tuple(data_shape)
        self.encoder_scale, self.probabilities = encoder_scale, probabilities
        self.states_scale = False

    @property
    def module_dtype(self) -> torch.dtype:
        """Precision of the wrapped module's weights, in which it is called."""
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.get_default_dtype())

    def _tensors(self) -> Iterator[Tensor]:
        for module in (self, *self.fixed):
            yield from module.parameters()
            yield from module.buffers()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of samples and log-densities: at least float32."""
        return torch.float64 if self.module_dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return next((t.device for t in self._tensors()), torch.device("cpu"))

    def encode(self, x: Tensor) -> Posterior:
        shaped = x if self.data_shape is None else x.reshape(len(x), *self.data_shape)
        out = self._call(self.encode_function, shaped, "encoder")
        self.states_scale = isinstance(out, Posterior | Distribution)
        if isinstance(out, Posterior):
            if out.family.latent_dim != self.latent_dim:
                raise InputError(
                    f"the encoder returns a posterior of {out.family.latent_dim} latents; latent_dim={self.latent_dim}"
                )
            if len(out) != len(x):
                raise InputError(f"the encoder returns a posterior for {len(out)} images; it was given {len(x)}")
            return Posterior(out.family, {k: v.to(self.dtype) for k, v in out.params.items()})
        if isinstance(out, Distribution):
            return gaussian_of(out, len(x), self.latent_dim, self.dtype)
        mean, second = two_outputs(out, self.latent_dim)
        want = (len(x), self.latent_dim)
        for what, value in (("mean", mean), ("log-variance", second)):
            if tuple(value.shape) != want:
                raise InputError(
                    f"the encoder's {what} has shape {tuple(value.shape)}, expected {want} for {len(x)} images and "
                    f"latent_dim={self.latent_dim}: give wrap(latent_dim={value.shape[-1] if value.dim() else 1}), or "
                    "mend the encoder"
                )
        logvar = read_scale(second.to(self.dtype), self.encoder_scale)
        return checked_gaussian(mean.to(self.dtype), logvar)

    def raw_decode(self, z: Tensor) -> Any:
        """What the wrapped decoder returns for latents z (..., d), as flat rows (M, d) in its own precision.

        Raises:
            InputError: it does not return one row for each of the M latents: broadcasting would hide it.
        """
        rows = z.reshape(-1, self.latent_dim)
        out = self._call(self.decode_function, rows, "decoder")
        shape = (*out.batch_shape, *out.event_shape) if isinstance(out, Distribution) else getattr(out, "shape", None)
        if shape is not None and tuple(shape[:1]) != (len(rows),):
            raise InputError(
                f"the decoder returns shape {tuple(shape)} for {len(rows)} latents: its first axis must count them, "
                f"({len(rows)}, ...). Is something transposed, or made for a single image?"
            )
        return out

    def decoder_params(self, z: Tensor) -> Tensor:
        """The likelihood's parameters (..., P) at latents z (..., d): logits for Bernoulli pixels.

        Raises:
            InputError: the decoder returns something else than a tensor, or logits where probabilities were promised.
        """
        return self._params(self.raw_decode(z), z)

    def _params(self, out: Any, z: Tensor) -> Tensor:
        if not isinstance(out, Tensor):
            raise InputError(
                f"the decoder returns a {type(out).__name__}; return the likelihood's parameters as one tensor (for "
                "Bernoulli pixels the logits), or a torch.distributions.Distribution"
            )
        if out.is_complex():
            raise InputError("the decoder returns complex numbers; the likelihood's parameters are real")
        params = self.likelihood.rows(out.to(self.dtype)).reshape(*z.shape[:-1], -1)
        return to_logits(params) if self.probabilities else params

    def decode(self, z: Tensor) -> Distribution:
        out = self.raw_decode(z)
        if isinstance(out, Distribution):
            extra = len(out.batch_shape) - 1
            return Reshaped(Independent(out, extra) if extra > 0 else out, z.shape[:-1])
        return self.likelihood.distribution(self._params(out, z))

    @property
    def standard_prior(self) -> bool:
        return self.prior is None and type(self).log_prior is WrappedVAE.log_prior and "log_prior" not in vars(self)

    def log_prior(self, z: Tensor) -> Tensor:
        if self.prior is None:
            return super().log_prior(z)
        # a trajectory of HMC may diverge: its end is to be rejected, but torch's distributions refuse to look at it
        fine = torch.isfinite(z).all(-1)
        try:
            log_p = self.prior.log_prob(torch.where(fine.unsqueeze(-1), z, 0.0))
        except RuntimeError as error:
            if "same device" not in str(error):
                raise
            raise InputError(
                f"the prior {name_of(self.prior)} and the latents ({z.device}) are on different devices; to() moves "
                "networks, but no distributions: build the prior from tensors on the model's device"
            ) from error
        return torch.where(fine, log_p, -torch.inf)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        fine = torch.isfinite(z).all(-1)
        return torch.where(fine, self._log_likelihood(x, torch.where(fine.unsqueeze(-1), z, 0.0)), -torch.inf)

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        out = self.raw_decode(z)
        if isinstance(out, Distribution):
            check_event(out, x.shape[-1])
            images = x.expand(*z.shape[:-1], -1).reshape(-1, *out.batch_shape[1:], *out.event_shape)
            return out.log_prob(images).to(self.dtype).reshape(*z.shape[:-1], -1).sum(-1)
        params = self._params(out, z)
        self.likelihood.check_width(params, x.shape[-1])
        return self.likelihood.log_prob(params, x)

    def check_pixels(self, x: Tensor) -> None:
        """Raise `InputError` for images that the decoder's distribution cannot have produced."""
        if self.data_shape is not None and math.prod(self.data_shape) != x.shape[-1]:
            raise InputError(
                f"the images have {x.shape[-1]} pixels; data_shape={self.data_shape} says {math.prod(self.data_shape)}"
            )
        with evaluating(self):
            zeros = torch.zeros(3, self.latent_dim, dtype=self.dtype, device=self.device)
            self.raw_decode(zeros)  # what goes wrong with the axes does not show in one latent
            out = self.raw_decode(zeros[:1])
        if not isinstance(out, Distribution):
            self.likelihood.check(x)
            return
        Likelihood.check(self.likelihood, x)  # NaN and infinity
        check_event(out, x.shape[-1])
        images = x.reshape(-1, *out.batch_shape[1:], *out.event_shape)
        support = out.support
        inside = torch.ones(len(x), 1) if support is None else support.check(images).reshape(len(x), -1)
        bad = (~inside.bool()).any(1).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"{len(bad)} of {len(x)} images lie outside the support of the decoder's {name_of(out)} (first: image "
                f"{bad[0]}; values from {x.min().item():g} to {x.max().item():g}): bring them to the values the model "
                "was trained on, e.g. x / 255 or (x >= 0.5).float(), or change the decoder's distribution",
                bad,
            )

    def _call(self, function: Callable[[Tensor], Any], given: Tensor, what: str) -> Any:
        """Call the user's code in its own precision; what goes wrong there is told with its cure."""
        try:
            return function(given.to(self.module_dtype))
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # whatever somebody's code can raise
            text = str(error).strip().splitlines() or [""]
            said = text[-1 if isinstance(error, RuntimeError) else 0][:300]  # TorchScript says it last
            kind = "" if isinstance(error, RuntimeError | ValueError) and said else f"{type(error).__name__}: "
            where = line_of(error)
            raise InputError(
                f"the {what} failed on input of shape {tuple(given.shape)}{where and f' ({where})'}: "
                f"{(kind + said).strip(': .')}. {self._cure(what, str(error))}"
            ) from error

    def _cure(self, what: str, text: str) -> str:
        if "not implemented for 'Half'" in text or "not implemented for 'BFloat16'" in text:
            return "This device cannot do that in half precision: call .float() on the model first."
        if "same device" in text:
            return (
                f"A tensor that it uses, or the prior that it gets samples of, is on another device than the model's "
                f"({self.device}): move it there; as a buffer of the module it moves along."
            )
        if "more than 1 value per channel" in text:
            return (
                "A batch norm is in training mode, out of reach of eval(): pass wrap(module=...) with the network, or "
                "call eval() on it."
            )
        if "Guard failed" in text and "size()[0]" in text:
            return (
                "It was exported for batches of one size: export it with dynamic_shapes, in which axis 0 of the input "
                "is torch.export.Dim.DYNAMIC."
            )
        if "constraint" in text and "nan" in text:
            return "Its network gives NaN: look at its weights and at the images."
        if "probs" in text and "constraint" in text:
            return "These look like logits given as probabilities: use Bernoulli(logits=...)."
        if what == "encoder":
            return "It gets images (N, D), or (N, *data_shape) where wrap(data_shape=(C, H, W)) is given."
        return f"It gets latents (M, {self.latent_dim}): does latent_dim={self.latent_dim} match the decoder?"


def wrap(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    latent_dim: int,
    likelihood: str | Likelihood = "bernoulli",
    prior: Distribution | None = None,
    *,
    data_shape: Sequence[int] | None = None,
    encoder_scale: str = "logvar",
    probabilities: bool = False,
    module: nn.Module | Sequence[nn.Module] | None = None,
    **likelihood_options: Any,
) -> WrappedVAE:
    """Give any torch model the interface that the bounds need.

    Args:
        encode: x (N, D) -> (mean, log-variance), each (N, d); or one tensor (N, 2d), means first; or a Normal or
            MultivariateNormal; or a `Posterior`.
        decode: z (M, d) -> the likelihood's parameters (M, ...), logits for Bernoulli pixels, or a Distribution.
        latent_dim: d.
        likelihood: "bernoulli", "gaussian", "discretized_logistic", "categorical" or an object; unused where `decode`
            returns a Distribution.
        prior: p(z) with event shape (d,); None for N(0, I).
        data_shape: shape in which `encode` takes one image, e.g. (3, 32, 32); None for a flat row.
        encoder_scale: what the encoder's second output is: "logvar", "log_sigma", "sigma" or "variance".
        probabilities: whether `decode` returns Bernoulli probabilities, e.g. from a final sigmoid, and no logits.
        module: the torch modules behind `encode` and `decode`. None finds them: modules, bound methods, partial
            functions and what a function's closure or globals name, also inside lists, dicts and plain objects.
        **likelihood_options: e.g. scale=0.1 for "gaussian", scale=None for a learned one.

    Returns:
        a `Model`. The modules are registered in it, so eval(), to() and .dtype reach them.

    Raises:
        InputError: an unknown likelihood or option, or a prior of another size or with a bounded support.

    Source: the model it stands for: Kingma & Welling 2014, section 2.1; what each form of output
    means: book, "Audit your own VAE".

    Example:
        >>> enc, dec = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> vae = wrap(encode=lambda x: enc(x).chunk(2, -1), decode=dec, latent_dim=2)
        >>> vae.encode(torch.zeros(3, 6)).rsample(5).shape
        torch.Size([5, 3, 2])
    """
    if prior is not None and tuple(prior.event_shape) != (latent_dim,):
        raise InputError(
            f"the prior has event shape {tuple(prior.event_shape)}, expected ({latent_dim},): "
            f"e.g. Independent(Normal(torch.zeros({latent_dim}), torch.ones({latent_dim})), 1)"
        )
    if prior is not None:
        _check_support(prior)
    if encoder_scale not in ENCODER_SCALES:
        raise InputError(f"unknown encoder_scale {encoder_scale!r}; choose from {', '.join(ENCODER_SCALES)}")
    made = make_likelihood(likelihood, **likelihood_options)
    if probabilities and made.name != "bernoulli":
        raise InputError(f"probabilities=True is for Bernoulli pixels; the likelihood is {made.name}")
    if module is None:
        behind = {"encode": modules_behind(encode), "decode": modules_behind(decode)}
    else:
        behind = {"module": [module] if isinstance(module, nn.Module) else list(module)}
    modules = list(dict.fromkeys(m for found in behind.values() for m in found))
    vae = WrappedVAE(encode, decode, latent_dim, made, prior, data_shape, encoder_scale, probabilities, modules)
    vae.unreached = tuple(name for name, found in behind.items() if not found and name != "module")
    return vae


def _check_support(prior: Distribution) -> None:
    """Raise `InputError` for a prior that is 0 somewhere: there any Gaussian q has an ELBO of minus infinity."""
    try:
        support = prior.support
    except NotImplementedError:
        return
    with torch.random.fork_rng():
        place = prior.sample()
    if support is not None and not all(bool(support.check(torch.full_like(place, far)).all()) for far in (-1e4, 1e4)):
        raise InputError(
            f"the prior {name_of(prior)} has no density on a part of R^d, where every Gaussian q has some mass, so its "
            "ELBO is minus infinity: give the model in unbounded latents, with the change of variables in decode"
        )
