"""Four of the explorer's digits: posterior, encoder's q, q*, and the bar of gaps, from the numbers in `model.js`."""

from __future__ import annotations

import sys

import numpy as np
import torch
from common import AMORT, APPROX, ENCODER, ROOT, plt, run
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

sys.path.append(str(ROOT / "workflow"))
from export_explorer import read  # noqa: E402

CHOSEN = (8, 14, 9, 19)  # two typical digits, two difficult ones
HALF = {50: 1.1774, 95: 2.4477}  # radii, in standard deviations, of the ellipses that hold so many per cent


def density(vae: torch.nn.Module, x: torch.Tensor, centre: np.ndarray, half: float, side: int = 90) -> np.ndarray:
    """p(z|x) up to a factor on a square around `centre`, first axis z2 from below."""
    unit = torch.linspace(-half, half, side)
    z = torch.stack(torch.meshgrid(unit + float(centre[0]), unit + float(centre[1]), indexing="xy"), -1).reshape(
        -1, 1, 2
    )
    with torch.no_grad():
        log_joint = vae.log_joint(x[None], z).reshape(side, side)
    return (log_joint - log_joint.max()).exp().numpy()


def draw() -> Figure:
    """One column a digit: the digit, its plane, its bar."""
    vae, images, data = read()
    ref = {name: np.asarray(value) for name, value in data["reference"].items()}
    fig, axes = plt.subplots(3, 4, figsize=(6.4, 3.9), height_ratios=(1, 1.35, 0.4))
    widest = max(ref["log_p"][i] - ref["elbo"][i] for i in CHOSEN)
    for (picture, plane, bar), i in zip(axes.T, CHOSEN, strict=True):
        picture.imshow(images[i].view(28, 28), cmap="gray_r")
        picture.set(xticks=[], yticks=[])
        picture.spines[:].set_visible(True)
        ends = np.stack([ref["q_mean"][i], ref["best_mean"][i]])
        centre = ends.mean(0)
        half = float(np.abs(ends - centre).max() + 3.2 * max(ref["q_sd"][i].max(), ref["best_sd"][i].max()))
        extent = (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)
        value = density(vae, images[i], centre, half)
        shade = np.zeros((*value.shape, 4))
        shade[..., :3], shade[..., 3] = 0.48, 0.85 * value**0.6
        plane.imshow(shade, origin="lower", extent=extent, interpolation="bilinear")
        for mean, sd, color, style in (("q_mean", "q_sd", ENCODER, "--"), ("best_mean", "best_sd", APPROX, "-")):
            for radius in HALF.values():
                width, height = 2 * radius * ref[sd][i]
                plane.add_patch(Ellipse(ref[mean][i], width, height, fill=False, ec=color, ls=style, lw=1.9))
        plane.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", xlabel="$z_1$")
        plane.locator_params(nbins=3, steps=[1, 2, 5, 10])
        approximation = ref["log_p"][i] - ref["best"][i]
        amortization = ref["best"][i] - ref["elbo"][i]
        bar.barh(0, approximation, color=APPROX, lw=0)
        bar.barh(0, amortization, left=approximation, color=AMORT, hatch="///", edgecolor="white", lw=0)
        bar.set(xlim=(0, 1.05 * widest), yticks=[], xlabel="nats")
        bar.spines["left"].set_visible(False)
    axes[1, 0].set_ylabel("$z_2$")
    return fig


if __name__ == "__main__":
    run("explorer", draw)
