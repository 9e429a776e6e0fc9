"""Small networks whose weights carry a leading image axis: 1 where shared, N where every image has its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vaegap.fast import elu
from vaegap.posteriors.base import Params

__all__ = ["ACTIVATIONS", "ConditionedNets", "init_mlp", "linear", "mlp"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu, "tanh": torch.tanh}


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (S, N, i) times weight (1 or N, i, o) plus bias (1 or N, o) -> (S, N, o)."""
    if weight.shape[0] == 1:
        return x @ weight[0] + bias
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight).transpose(0, 1)


def mlp(params: Params, name: str, x: Tensor, activation: str) -> Tensor:
    """Run the layers `name`_w0, `name`_b0, `name`_w1, ... on x (S, N, i); no activation after the last one."""
    layer = 0
    while True:
        x = linear(x, params[f"{name}_w{layer}"], params[f"{name}_b{layer}"])
        layer += 1
        if f"{name}_w{layer}" not in params:
            return x
        x = ACTIVATIONS[activation](x)


def init_mlp(
    name: str, sizes: Sequence[int], last_scale: float = 1.0, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Weights as `nn.Linear` draws them, with a leading axis of 1; the last layer times `last_scale`."""
    out: dict[str, Tensor] = {}
    last = len(sizes) - 2
    device = None if generator is None else generator.device
    for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        bound = (last_scale if i == last else 1.0) / math.sqrt(fan_in)
        out[f"{name}_w{i}"] = torch.empty(1, fan_in, fan_out, device=device).uniform_(
            -bound, bound, generator=generator
        )
        out[f"{name}_b{i}"] = torch.empty(1, fan_out, device=device).uniform_(-bound, bound, generator=generator)
    return out


class ConditionedNets(nn.Module):
    """Shared network weights; where asked, an embedding of the image shifts the first layer's biases.

    Feeding [z; e(x)] to a first layer is the same as giving every image its own bias b + e(x) U: that is how
    an amortized flow becomes a point in the space of per-image flows.

    Args:
        hidden_dim: width of the encoder's features.
        embed_dim: width of the embedding e(x) = ELU(linear(features)).
        weights: shared tensors from `init_mlp`.
        conditioned: names of the nets that see the image.
    """

    def __init__(self, hidden_dim: int, embed_dim: int, weights: dict[str, Tensor], conditioned: Sequence[str]) -> None:
        super().__init__()
        self.shared = nn.ParameterDict(weights)
        self.embed = nn.Linear(hidden_dim, embed_dim) if conditioned else None
        self.shift = nn.ModuleDict(
            {name: nn.Linear(embed_dim, weights[f"{name}_b0"].shape[-1], bias=False) for name in conditioned}
        )

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        out = dict(self.shared.items())
        if self.embed is not None:
            embedding = elu(self.embed(h))
            for name, shift in self.shift.items():
                out[f"{name}_b0"] = out[f"{name}_b0"] + shift(embedding)
        return out
