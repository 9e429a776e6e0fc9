"""State dicts of plain MLPs: which layer is what, by name or by shape, and the VAE that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaegap.bounds import elbo
from vaegap.errors import InputError
from vaegap.likelihoods import Likelihood, make_likelihood
from vaegap.models import ACTIVATIONS, VAE

__all__ = ["Layers", "choose_activation", "fill", "from_state_dict", "guess_layers", "stripped"]


class Layers:
    """Which layers of a state dict make up the MLP, by name.

    Args:
        encoder: hidden layers of the encoder, and, unless `mean` and `logvar` are given, the layer with both at once.
        decoder: layers of the decoder; the last gives the likelihood's parameters.
        mean, logvar: the encoder's two output layers where they are apart.

    Example:
        >>> Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6"))
        Layers(encoder=fc1,fc2,fc3 decoder=fc4,fc5,fc6)
    """

    def __init__(
        self, encoder: Sequence[str], decoder: Sequence[str], mean: str | None = None, logvar: str | None = None
    ) -> None:
        if (mean is None) != (logvar is None):
            raise InputError("name both `mean` and `logvar`, or neither (one layer then gives both, means first)")
        self.encoder, self.decoder, self.mean, self.logvar = tuple(encoder), tuple(decoder), mean, logvar

    @property
    def names(self) -> tuple[str, ...]:
        """All layers."""
        heads = () if self.mean is None or self.logvar is None else (self.mean, self.logvar)
        return (*self.encoder, *heads, *self.decoder)

    def __repr__(self) -> str:
        heads = "" if self.mean is None else f" mean={self.mean} logvar={self.logvar}"
        return f"Layers(encoder={','.join(self.encoder)}{heads} decoder={','.join(self.decoder)})"


def from_state_dict(
    state: Mapping[str, Tensor],
    layers: Layers | None = None,
    activation: str = "relu",
    likelihood: str = "bernoulli",
    encoder_scale: str = "logvar",
    data_shape: Sequence[int] | None = None,
    **likelihood_options: Any,
) -> VAE:
    """Build a VAE from the weights of a plain MLP: linear layers with one activation between them.

    Args:
        state: the tensors; half precision is computed in float32.
        layers: which layers are what; None guesses from the shapes.
        activation: between the layers: "elu", "tanh" or "relu". A state dict does not say; see `choose_activation`.
        likelihood: "bernoulli" (the last layer gives logits; a sigmoid behind it is left out), "gaussian", ...
        encoder_scale: what the encoder's second output is: "logvar" or "log_sigma".
        data_shape: (channels, height, width), for pictures in the report.
        **likelihood_options: e.g. scale=0.1.

    Returns:
        a `VAE` in evaluation mode, on the weights' device.

    Raises:
        InputError: layers that are missing, left over, or do not fit together.

    Example:
        >>> sizes = {"fc1": (8, 20), "fc2": (4, 8), "fc3": (8, 2), "fc4": (20, 8)}
        >>> state = {f"{k}.weight": torch.zeros(v) for k, v in sizes.items()}
        >>> vae = from_state_dict(state, Layers(("fc1", "fc2"), ("fc3", "fc4")), activation="elu")
        >>> vae.latent_dim, vae.data_dim
        (2, 20)
    """
    state = stripped(state)
    chosen = layers or guess_layers(state)
    weights = {name: _linear(state, name) for name in chosen.names}
    left = sorted({k.rpartition(".")[0] for k in state} - set(chosen.names))
    if left:
        raise InputError(
            f"the state dict has layers that {chosen} does not use: {', '.join(left[:8])}. If they matter, this "
            "is no plain MLP: build the model in Python and audit `model.py:make_vae --checkpoint weights`"
        )
    made = make_likelihood(likelihood, **likelihood_options)
    if chosen.mean is not None and chosen.logvar is not None:
        trunk = [weights[n] for n in chosen.encoder]
        pair = (weights[chosen.mean], weights[chosen.logvar])
        head = (torch.cat([pair[0][0], pair[1][0]]), torch.cat([pair[0][1], pair[1][1]]))
    else:
        *trunk, head = [weights[n] for n in chosen.encoder]
    if encoder_scale not in ("logvar", "log_sigma"):
        raise InputError(
            f"encoder_scale={encoder_scale!r} cannot be read from weights alone: wrap the model in Python instead"
        )
    if encoder_scale == "log_sigma":
        factor = torch.ones_like(head[1])
        factor[len(factor) // 2 :] = 2.0
        head = (head[0] * factor[:, None], head[1] * factor)
    decoder = [weights[n] for n in chosen.decoder]
    _check_chain([*trunk, head], decoder, made, chosen)
    pixels = (trunk[0] if trunk else head)[0].shape[1]
    shape = tuple(data_shape) if data_shape is not None else (1, 1, pixels)
    vae = VAE(
        shape,
        len(head[1]) // 2,
        encoder_hidden=[len(b) for _, b in trunk],
        decoder_hidden=[len(b) for _, b in decoder[:-1]],
        activation=activation,
        likelihood=likelihood,
        likelihood_options=likelihood_options,
    )
    if vae.data_dim != pixels:
        raise InputError(f"data_shape={shape} has {vae.data_dim} pixels, the first layer takes {pixels}")
    fill([m for m in vae.features.modules() if isinstance(m, nn.Linear)], trunk)
    fill([vae.head.linear], [head])  # type: ignore[list-item]
    fill([m for m in vae.decoder.modules() if isinstance(m, nn.Linear)], decoder)
    return vae.to(decoder[0][0].device).eval()


def guess_layers(state: Mapping[str, Tensor]) -> Layers:
    """Find encoder and decoder of a plain MLP by the shapes of its layers.

    Raises:
        InputError: no reading fits, or more than one does; the layers are listed with their shapes.

    Example:
        >>> shapes = {"fc1": (8, 20), "fc21": (2, 8), "fc22": (2, 8), "fc3": (8, 2), "fc4": (20, 8)}
        >>> guess_layers({f"{k}.weight": torch.zeros(v) for k, v in shapes.items()})
        Layers(encoder=fc1 mean=fc21 logvar=fc22 decoder=fc3,fc4)
    """
    state = stripped(state)
    sizes = {
        k.removesuffix(".weight"): tuple(v.shape) for k, v in state.items() if k.endswith(".weight") and v.dim() == 2
    }
    natural = sorted(sizes, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])
    found: list[Layers] = []
    for order in ([*sizes], natural):
        for cut in range(1, len(order)):
            for encoder, decoder in ((order[:cut], order[cut:]), (order[cut:], order[:cut])):
                made = _fits(encoder, decoder, sizes)
                if made is not None and repr(made) not in map(repr, found):
                    found.append(made)
    pixels = [sizes[made.encoder[0]][1] for made in found]
    found = [made for made, size in zip(found, pixels, strict=True) if size == max(pixels)]  # a VAE compresses
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{n} {v[1]}->{v[0]}" for n, v in sizes.items()) or "no linear layer"
    why = "more than one way" if found else "no way"
    raise InputError(
        f"there is {why} to read these layers as a VAE: {listed}. Name them: Layers(encoder=..., decoder=..., "
        "mean=..., logvar=...), or on the command line --encoder-layers fc1,fc2,fc3 --decoder-layers fc4,fc5,fc6"
    )


def _fits(encoder: list[str], decoder: list[str], sizes: Mapping[str, tuple[int, ...]]) -> Layers | None:
    """The reading of these layers as encoder and decoder, if the sizes allow one."""

    def chained(names: Sequence[str]) -> bool:
        return all(sizes[a][0] == sizes[b][1] for a, b in zip(names, names[1:], strict=False))

    if not chained(decoder) or sizes[decoder[-1]][0] % sizes[encoder[0]][1]:
        return None
    latent = sizes[decoder[0]][1]
    if chained(encoder) and sizes[encoder[-1]][0] == 2 * latent:
        return Layers(encoder, decoder)
    if len(encoder) < 3 or not chained(encoder[:-1]) or not chained([*encoder[:-2], encoder[-1]]):
        return None
    first, second = encoder[-2:]
    if sizes[first][0] != latent or sizes[second][0] != latent:
        return None
    if re.search("var|sig|std|scale", first, re.IGNORECASE) and not re.search(
        "var|sig|std|scale", second, re.IGNORECASE
    ):
        first, second = second, first
    return Layers(encoder[:-2], decoder, first, second)


def stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what training wrappers put in front of every name."""
    out = dict(state)
    for prefix in ("_orig_mod.", "module.", "model.", "vae."):
        if out and all(k.startswith(prefix) for k in out):
            out = {k.removeprefix(prefix): v for k, v in out.items()}
    return out


def _linears(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the linear layers."""
    return [k.removesuffix(".weight") for k, v in state.items() if k.endswith(".weight") and v.dim() == 2]


def _linear(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    weight = state.get(f"{name}.weight")
    if weight is None or weight.dim() != 2:
        known = ", ".join(_linears(state)) or "none"
        raise InputError(f"there is no linear layer {name!r} in the state dict; it has: {known}")
    bias = state.get(f"{name}.bias")
    weight = weight.detach().float()
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float()


def _check_chain(
    encoder: list[tuple[Tensor, Tensor]], decoder: list[tuple[Tensor, Tensor]], made: Likelihood, layers: Layers
) -> None:
    for part in (encoder, decoder):
        for (a, _), (b, _) in zip(part, part[1:], strict=False):
            if a.shape[0] != b.shape[1]:
                raise InputError(
                    f"{layers}: a layer with {a.shape[0]} outputs is followed by one with {b.shape[1]} inputs"
                )
    both, latent = encoder[-1][0].shape[0], decoder[0][0].shape[1]
    if both != 2 * latent:
        raise InputError(
            f"{layers}: the encoder ends with {both} outputs, mean and log-variance of {both // 2} latents, but the "
            f"decoder starts from {latent}: the latent sizes do not match"
        )
    outputs, pixels = decoder[-1][0].shape[0], encoder[0][0].shape[1]
    if outputs != pixels * made.params_per_pixel:
        raise InputError(
            f"{layers}: the decoder ends with {outputs} outputs; {made.name} pixels need "
            f"{pixels * made.params_per_pixel} for images of {pixels}"
        )


@torch.no_grad()
def fill(linears: Sequence[nn.Linear], values: Sequence[tuple[Tensor, Tensor]]) -> None:
    for layer, (weight, bias) in zip(linears, values, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def choose_activation(
    state: Mapping[str, Tensor], x: Tensor, layers: Layers | None = None, **options: Any
) -> tuple[str, dict[str, float]]:
    """The activation under which weights explain images best, which a state dict itself does not say.

    Args:
        state: the tensors.
        x: some of the images that the model was trained on (N, D).
        layers, **options: as in `from_state_dict`.

    Returns:
        its name, and the mean ELBO (nats) under each that gives a finite one.

    Raises:
        InputError: none does.
    """
    values, problem = {}, "nothing was tried"
    for name in ACTIVATIONS:
        vae = from_state_dict(state, layers, name, **options)
        try:
            values[name] = elbo(vae, x[:100], 16, seed=0).mean
        except InputError as error:
            problem = str(error)
    if not values:
        raise InputError(problem)
    return max(values, key=lambda n: values[n]), values
