"""Trains the small VAE of the page on audits, as anybody might, audits it, and writes the report that the page shows.

Minutes: `python book/figures_src/audit.py [--out FOLDER]`. The figure is drawn from the printed report, with `--figure`
from the one that is there.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd
import torch
from common import OUT, plt, save
from matplotlib.figure import Figure
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


ROW = re.compile(r"^ *(.+?) {2,}(-?[\d.]+) +\[(.+?), (.+?)\] +(-?[\d.]+) +\[(.+?), (.+?)\]$", flags=re.M)
NAMES = {
    "log p̂(x)": "log_p",
    "L[q*] full-covariance Gaussian": "L_star_full_gaussian",
    "L[q*] factorized (own)": "L_star_gaussian",
    "L[q] (the ELBO)": "L_q",
    "approximation gap": "approximation_gaussian",
    "amortization gap": "amortization_gaussian",
}


def draw(text: str) -> Figure:
    """The ladders of a printed report, one above the other, so that they can be read on a narrow screen."""
    rows = {NAMES[name]: [float(number) for number in numbers] for name, *numbers in ROW.findall(text) if name in NAMES}
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 7.2), layout="constrained")
    for ax, name, columns in zip(axes, ("training", "held-out"), (slice(0, 3), slice(3, 6)), strict=True):
        values = {row: numbers[columns] for row, numbers in rows.items()}
        summary = pd.DataFrame(values, index=["mean", "ci_low", "ci_high"]).T
        figures.gap_ladder(summary, "gaussian", ax=ax, decimals=1)  # as printed
        ax.set_title(name)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the report and the figure")
    parser.add_argument("--figure", action="store_true", help="only draw the report that lies there")
    options = parser.parse_args()
    printed, about = options.out / "audit.txt", options.out / "audit.json"
    made = {}  # where the report was made, if that was in an earlier run
    if options.figure:
        before = json.loads(about.read_text())
        made = {"report": before.get("report", before)}
    else:
        printed.write_text(f"{report()!r}\n", encoding="utf-8")
    print(save(draw(printed.read_text(encoding="utf-8")), "audit", options.out))
    about.write_text(json.dumps(json.loads(about.read_text()) | made, indent=1) + "\n")


if __name__ == "__main__":
    main()
