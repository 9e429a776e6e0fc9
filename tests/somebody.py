"""Models of somebody who knows nothing of this package, for the tests of audits and adapters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaegap import elbo

D, LATENT = 12, 3


class Dense(nn.Module):
    """A user's own VAE: encode and decode, no interface of ours."""

    def __init__(self, outputs: int = D) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, outputs))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h[:, :3], h[:, 3:]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


def same_elbo(one, two, x: Tensor, tolerance: float = 1e-5) -> None:
    first, second = elbo(one, x, 20, seed=0).per_image, elbo(two, x, 20, seed=0).per_image
    assert torch.allclose(first, second, atol=tolerance), (first - second).abs().max()


def fc(sizes: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in sizes.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=g) / math.sqrt(inputs)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=g)
    return state


SIX = {"fc1": (D, 8), "fc2": (8, 9), "fc3": (9, 6), "fc4": (3, 9), "fc5": (9, 8), "fc6": (8, D)}
HEADS = {"fc1": (D, 8), "fc21": (8, 3), "fc22": (8, 3), "fc3": (3, 8), "fc4": (8, D)}


def binary(num: int = 20, pixels: int = 20) -> Tensor:
    return (torch.rand(num, pixels, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def pair(pixels: int = 20, latent: int = 3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(pixels, 2 * latent), nn.Linear(latent, pixels)
