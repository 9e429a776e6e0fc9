"""Two oracles: the linear-Gaussian model, whose gaps are formulas, and the trapezoid rule in two dimensions."""

from __future__ import annotations

import numpy as np
from common import APPROX, ENCODER, GREEN, GREY, plt, run
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse


def skewed(z: np.ndarray, spread: float = 0.25) -> np.ndarray:
    """log of an unnormalized, curved posterior on (..., 2)."""
    return -0.5 * (z**2).sum(-1) - 0.5 * ((1.0 - z[..., 0] ** 2 + z[..., 1]) / spread) ** 2


def grid_log_evidence(step: float, half: float = 6.0) -> float:
    axis = np.arange(-half, half + step / 2, step) + 0.37 * step
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    log_f = skewed(points)
    top = log_f.max()
    return float(top + np.log(np.exp(log_f - top).sum()) + 2 * np.log(step))


def draw() -> Figure:
    """A posterior and two factorized q, their gaps against correlation, and quadrature error."""
    fig, axes = plt.subplot_mosaic("lm;rr", figsize=(5.7, 5.2), height_ratios=(1.25, 1))
    left, middle, right = axes["l"], axes["m"], axes["r"]
    rho = 0.85
    cov = np.array([[1.0, rho], [rho, 1.0]])
    for radius in (1.0, 2.0):
        left.add_patch(
            Ellipse(
                (0, 0),
                2 * radius * np.sqrt(1 + rho),
                2 * radius * np.sqrt(1 - rho),
                angle=45,
                fc=GREY,
                alpha=0.22,
                lw=0,
            )
        )
    for var, color, style in ((1 - rho**2, APPROX, "-"), (np.diag(cov)[0], ENCODER, "--")):
        left.add_patch(Ellipse((0, 0), 2 * np.sqrt(var), 2 * np.sqrt(var), fill=False, ec=color, ls=style, lw=1.9))
    left.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[], xlabel="$z_1$", ylabel="$z_2$")

    rhos = np.linspace(0, 0.98, 99)
    middle.plot(rhos, -0.5 * np.log(1 - rhos**2), color=APPROX, label="$1/\\Lambda_{ii}$")
    middle.plot(
        rhos,
        0.5 * (2 / (1 - rhos**2) - 2 - np.log(1 / (1 - rhos**2))),
        color=ENCODER,
        ls="--",
        label="$(\\Lambda^{-1})_{ii}$",
    )
    middle.set(xlabel=r"correlation $\rho$", ylabel="KL$(q\\|p)$ (nats)", ylim=(0, 3))
    middle.legend(loc="upper left", title="variance of $q$", title_fontsize=9)

    exact = grid_log_evidence(0.02)
    steps = np.array([0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1])
    errors = np.array([abs(grid_log_evidence(s) - exact) for s in steps])
    right.plot(12 / steps, np.maximum(errors, 1e-15), color=GREEN, marker="o", ms=4)
    right.set(yscale="log", xlabel="grid points a side", ylabel=r"error of $\log p(x)$ (nats)")
    return fig


if __name__ == "__main__":
    run("oracles", draw)
