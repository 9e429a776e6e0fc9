"""The definition of the three gaps, drawn to scale from a two-dimensional Gaussian posterior."""

from __future__ import annotations

import numpy as np
from common import AMORT, APPROX, ENCODER, GREY, plt, run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

PRECISION = np.array([[2.0, -1.55], [-1.55, 2.0]])
MEAN = np.array([0.3, 0.2])
Q_MEAN, Q_VAR = np.array([0.72, -0.02]), np.array([0.33, 0.9])


def kl(mean: np.ndarray, var: np.ndarray) -> float:
    """KL(N(mean, diag var) || N(MEAN, PRECISION^-1)), nats."""
    away = mean - MEAN
    trace = float(np.diag(PRECISION) @ var)
    return 0.5 * (trace - 2 + away @ PRECISION @ away - np.log(var).sum() - np.linalg.slogdet(PRECISION)[1])


def ellipse(ax: Axes, mean: np.ndarray, cov: np.ndarray, radius: float, **style: object) -> None:
    values, vectors = np.linalg.eigh(cov)
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    width, height = 2 * radius * np.sqrt(values[1]), 2 * radius * np.sqrt(values[0])
    ax.add_patch(Ellipse(tuple(mean), width, height, angle=angle, **style))


def draw() -> Figure:
    """Left: contours of the posterior, q* and q. Right: the same as levels on an axis of nats."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(5.7, 3.3), width_ratios=(1, 1.6))
    cov = np.linalg.inv(PRECISION)
    best = 1 / np.diag(PRECISION)
    for radius in (0.6, 1.2, 1.8):
        ellipse(left, MEAN, cov, radius, facecolor=GREY, edgecolor="none", alpha=0.2)
    for radius in (0.6, 1.2):
        ellipse(left, MEAN, np.diag(best), radius, fill=False, edgecolor=APPROX, lw=1.9)
        ellipse(left, Q_MEAN, np.diag(Q_VAR), radius, fill=False, edgecolor=ENCODER, lw=1.9, ls="--")
    left.plot([], [], color=GREY, lw=7, alpha=0.4, label="$p(z|x)$")
    left.plot([], [], color=APPROX, label="$q^*$, best in the family")
    left.plot([], [], color=ENCODER, ls="--", label="$q$, from the encoder")
    left.set(xlim=(-2.2, 2.8), ylim=(-2.2, 4.0), aspect="equal", xticks=[], yticks=[], xlabel="$z_1$", ylabel="$z_2$")
    left.legend(loc="upper left", borderpad=0.1, fontsize=9)

    top, star, encoder = 0.0, -kl(MEAN, best), -kl(Q_MEAN, Q_VAR)
    for level, color, style in ((top, GREY, "-"), (star, APPROX, "-"), (encoder, ENCODER, "--")):
        right.hlines(level, 0.0, 1.2, color=color, lw=2.4, ls=style)
    for level, word in ((top, r"$\log p(x)$"), (star, r"$\mathcal{L}[q^*]$"), (encoder, r"$\mathcal{L}[q]$")):
        right.text(-0.05, level, word, ha="right", va="center", fontsize=12)
    for x, (high, low), color, word in (
        (0.06, (top, star), APPROX, "approximation gap"),
        (0.06, (star, encoder), AMORT, "amortization gap"),
        (1.12, (top, encoder), GREY, "inference\ngap"),
    ):
        right.annotate(
            "",
            (x, high),
            (x, low),
            arrowprops={"arrowstyle": "<|-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0},
        )
        right.text(x + 0.05 + 0.08 * (x > 1), (high + low) / 2, word, va="center", fontsize=10)
    right.fill_between([0, 1.2], star, top, color=APPROX, alpha=0.14, lw=0)
    right.fill_between([0, 1.2], encoder, star, color=AMORT, alpha=0.16, lw=0)
    right.set(xlim=(-0.4, 1.68), ylim=(encoder - 0.12, 0.12))
    right.axis("off")
    return fig


if __name__ == "__main__":
    run("decomposition", draw)
