"""log p(x, z) and its gradient in z, fast: what AIS and local optimisation spend their time on.

For MLP decoders the gradient is written out by hand (two matrix products a layer, no graph), in blocks of images
that stay in cache, in bfloat16 where asked. Values are always computed in the model's own precision: leapfrog is
reversible and volume-preserving under *any* deterministic force, so a rounded force leaves HMC exact as long as
the accept/reject step uses exact energies (Neal 2011, section 5.3.2).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vaegap.errors import InputError
from vaegap.fast import ELU, MLP, elu_
from vaegap.likelihoods import Likelihood
from vaegap.models import VAE, Model

__all__ = ["LogJoint", "cpu_flags", "quickest_forces"]

_ROWS = 2048  # samples of a block, and
_FLOATS = 2**21  # numbers of its widest activation: what fits the cache of one core


def cpu_flags() -> str:
    """What the processor can do, in Linux's words; "" where the system does not tell."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def quickest_forces() -> torch.dtype | None:
    """bfloat16 where the processor multiplies bfloat16 matrices faster; None, the model's own precision, elsewhere."""
    flags = cpu_flags()
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None


class LogJoint:
    """log p(x, z) of some images, as a function of z.

    Args:
        model: the VAE; its parameters are read once.
        x: images (N, D).
        force_dtype: precision of the gradient, e.g. torch.bfloat16; None for the model's own.

    Example:
        >>> vae = VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0)
        >>> joint = LogJoint(vae, torch.ones(3, 6))
        >>> joint.value(torch.zeros(5, 3, 2)).shape, joint.grad(torch.zeros(5, 3, 2)).shape
        (torch.Size([5, 3]), torch.Size([5, 3, 2]))
    """

    def __init__(self, model: Model, x: Tensor, force_dtype: torch.dtype | None = None) -> None:
        self.model, self.x = model, x
        if force_dtype is not None and not force_dtype.is_floating_point:
            raise InputError(f"force_dtype={force_dtype} is not a floating-point type; take torch.bfloat16, or None")
        self.joint_is_own = _replaced(model, Model, "log_joint")
        self.layers = _mlp_layers(model)
        if self.layers is not None:
            linear, self.activation = self.layers
            dtype = force_dtype or model.dtype
            self.dtype = dtype
            self.w = [layer.weight.detach().to(dtype) for layer in linear]  # (out, in)
            self.wt = [w.t().contiguous() for w in self.w]
            self.b = [layer.bias.detach().to(dtype) for layer in linear]
            self.x_force = x.to(dtype)

    @torch.no_grad()
    def value(self, z: Tensor, rejecting: bool = False) -> Tensor:
        """log p(x, z) (S, N) at z (S, N, d), in nats, in the model's precision.

        Args:
            z: latents.
            rejecting: whether log p is -inf where the decoder raises, and the error is not passed on. For the ends of
                trajectories: one that diverges reaches latents at which torch's distributions refuse their parameters.
        """
        out = z.new_empty(z.shape[:2])
        for part in self._blocks(z):
            out[:, part] = self.model.log_prior(z[:, part]) + self._likelihood(self.x[part], z[:, part], rejecting)
        return out

    def _likelihood(self, x: Tensor, z: Tensor, rejecting: bool) -> Tensor:
        """log p(x|z); in halves where the decoder raises, until the latents at which it does are alone."""
        try:
            if self.joint_is_own:
                return self.model.log_joint(x, z) - self.model.log_prior(z)
            return self.model.log_likelihood(x, z)
        except ValueError:
            if not rejecting:
                raise
        axis = 1 if z.shape[1] > 1 else 0
        if z.shape[axis] == 1:
            return z[..., 0] * 0 - torch.inf  # no force but the prior's
        half = z.shape[axis] // 2
        sizes = [half, z.shape[axis] - half]
        images = x.split(sizes) if axis == 1 else (x, x)
        pieces = zip(images, z.split(sizes, axis), strict=True)
        return torch.cat([self._likelihood(a, b, rejecting) for a, b in pieces], axis)

    def grad(self, z: Tensor, rejecting: bool = False) -> Tensor:
        """d log p(x, z) / dz (S, N, d) at z (S, N, d); `rejecting` as in `value`, with the prior's gradient there."""
        out = torch.empty_like(z)
        for part in self._blocks(z):
            if self.layers is not None:
                out[:, part] = self._likelihood_grad(z[:, part], part)
                out[:, part] -= z[:, part]
            else:
                with torch.enable_grad():
                    leaf = z[:, part].detach().requires_grad_(True)
                    likelihood = self._likelihood(self.x[part], leaf, rejecting)
                    if not likelihood.requires_grad:
                        raise InputError(
                            "log p(x|z) has no gradient in z: the decoder runs under torch.no_grad, detaches, or "
                            "leaves torch. AIS and local optimisation need decode(z) to be differentiable"
                        )
                    value = likelihood + self.model.log_prior(leaf)
                    (out[:, part],) = torch.autograd.grad(value.sum(), leaf)
        return out

    def subset(self, index: Tensor) -> LogJoint:
        """The same for some of the images."""
        other = object.__new__(LogJoint)
        other.__dict__.update(self.__dict__)
        other.x = self.x[index]
        if self.layers is not None:
            other.x_force = self.x_force[index]
        return other

    def _blocks(self, z: Tensor) -> list[slice]:
        rows = min(_ROWS, _FLOATS // (self.x.shape[-1] * self.model.likelihood.params_per_pixel))
        step = max(1, rows // z.shape[0])
        return [slice(i, min(i + step, z.shape[1])) for i in range(0, z.shape[1], step)]

    @torch.no_grad()
    def _likelihood_grad(self, z: Tensor, part: slice) -> Tensor:
        samples, images, d = z.shape
        h = z.reshape(-1, d).to(self.dtype)
        slopes: list[Tensor] = []
        for wt, b in zip(self.wt[:-1], self.b[:-1], strict=True):
            h = torch.addmm(b, h, wt)
            if self.activation == "elu":
                h = elu_(h)
                slopes.append(h.clamp(max=0).add_(1))  # elu'(a) = 1 + min(elu(a), 0)
            elif self.activation == "tanh":
                h = h.tanh_()
                slopes.append(1 - h * h)
            else:
                h = h.relu_()
                slopes.append((h > 0).to(h.dtype))
        params = torch.addmm(self.b[-1], h, self.wt[-1]).view(samples, images, -1)
        g = self.model.likelihood.grad(params, self.x_force[part]).view(samples * images, -1)  # type: ignore[union-attr]
        for w, slope in zip(self.w[:0:-1], reversed(slopes), strict=True):
            g = (g @ w).mul_(slope)
        return (g @ self.w[0]).view(samples, images, d).to(z.dtype)


_OWN = ("log_joint", "log_likelihood", "decoder_params", "decode", "log_prior")  # what somebody may have replaced
_SLOPES = {ELU: "elu", nn.Tanh: "tanh", nn.ReLU: "relu"}


def _replaced(thing: object, usual: type, name: str) -> bool:
    """Whether a subclass, or somebody who has patched the object, has a method of their own."""
    return getattr(type(thing), name) is not getattr(usual, name) or name in vars(thing)


def _knows_its_gradient(likelihood: Likelihood) -> bool:
    """Whether `grad` belongs to `log_prob`: a subclass may have replaced the latter alone."""
    owners = [next(c for c in type(likelihood).__mro__ if name in vars(c)) for name in ("grad", "log_prob")]
    return issubclass(*owners) and not {"grad", "log_prob"} & set(vars(likelihood))


def _mlp_layers(model: Model) -> tuple[list[nn.Linear], str] | None:
    """The decoder's linear layers and its activation where the hand-written gradient applies, else None.

    It does where the decoder is what `VAE` makes: linear layers with biases and one activation by turns. Replaced
    decoders, and models that compute log p(x, z) in their own way, go through autograd.
    """
    if not isinstance(model, VAE) or model.prior is not None:
        return None
    decoder = model.decoder
    if not isinstance(decoder, nn.Sequential) or type(decoder) not in (nn.Sequential, MLP):
        return None
    if any(_replaced(model, VAE, name) for name in _OWN) or not _knows_its_gradient(model.likelihood):
        return None
    layers = list(decoder)
    linear = [m for m in layers[::2] if type(m) is nn.Linear and m.bias is not None]
    kinds = {_SLOPES.get(type(m), "") for m in layers[1::2]} or {"elu"}
    hooked = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in (decoder, *layers))
    if len(layers) % 2 == 0 or len(linear) != len(layers[::2]) or len(kinds) > 1 or "" in kinds or hooked:
        return None
    probe = torch.zeros(1, model.data_dim * model.likelihood.params_per_pixel)
    if model.likelihood.grad(probe, torch.zeros(1, model.data_dim)) is None:
        return None
    return linear, kinds.pop()
