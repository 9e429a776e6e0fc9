"""Trains the small VAE of the page on audits, as anybody might, audits it, and writes the report that the page shows.

Two minutes on two cores: `python book/figures_src/audit.py [--out FOLDER]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import OUT, plt, save
from torch import Tensor, nn

from vaegap import Audit, audit, figures, load_images


# page-model-begin
class Digits(nn.Module):
    """A plain VAE: nothing in it knows of vaegap."""

    def __init__(self, latent_dim: int = 20) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(784, 200), nn.ReLU())
        self.mean, self.logvar = nn.Linear(200, latent_dim), nn.Linear(200, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 200), nn.ReLU(), nn.Linear(200, 784))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)  # logits


# page-model-end


def train(x: Tensor, epochs: int = 60) -> Digits:
    """The loop of a thousand repositories."""
    torch.manual_seed(0)
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(100):
            mean, logvar = model.encode(batch)
            logits = model.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
            reconstruction = nn.functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            optimizer.zero_grad()
            ((reconstruction + kl) / len(batch)).backward()
            optimizer.step()
    return model


def report() -> Audit:
    """The audit of the page."""
    images, heldout = (load_images("mnist-5k", split).x for split in ("train", "test"))
    model = train(images)
    return audit(model, images, heldout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the report and the figure")
    out = parser.parse_args().out
    result = report()
    (out / "audit.txt").write_text(f"{result!r}\n", encoding="utf-8")
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for ax, (name, part) in zip(axes, result.parts.items(), strict=True):
        figures.gap_ladder(part.summary, result.family, ax=ax)
        ax.set_title(name)
    print(save(fig, "audit", out))


if __name__ == "__main__":
    main()
