"""A one-dimensional model in which everything about the ELBO can be drawn."""

from __future__ import annotations

import numpy as np
from common import APPROX, ENCODER, GREEN, GREY, plt, run
from matplotlib.figure import Figure

GRID = np.linspace(-6.0, 6.0, 4001)
STEP = GRID[1] - GRID[0]
X, NOISE = 1.4, 0.6


def log_normal(z: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return -0.5 * ((z - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


LOG_JOINT = log_normal(GRID, 0.0, 1.0) + log_normal(np.exp(GRID), X, NOISE)
LOG_EVIDENCE = float(np.log(np.sum(np.exp(LOG_JOINT)) * STEP))


def elbo(mean: float, sd: float) -> float:
    log_q = log_normal(GRID, mean, sd)
    return float(np.sum(np.exp(log_q) * (LOG_JOINT - log_q)) * STEP)


def best() -> tuple[float, float]:
    candidates = [(m, s) for m in np.linspace(-1, 1, 81) for s in np.linspace(0.2, 1.2, 51)]
    return max(candidates, key=lambda c: elbo(*c))


def draw() -> Figure:
    """Left: prior, posterior and the best Gaussian. Right: the ELBO under its ceiling."""
    mean, sd = best()
    shown = slice(None, None, 10)
    fig, (left, right) = plt.subplots(1, 2, figsize=(5.7, 3.1), width_ratios=(1, 1.15))
    left.plot(GRID[shown], np.exp(log_normal(GRID[shown], 0, 1)), color=GREEN, ls=":", label="prior $p(z)$")
    left.fill_between(
        GRID[shown], np.exp(LOG_JOINT[shown] - LOG_EVIDENCE), color=GREY, alpha=0.35, lw=0, label="posterior $p(z|x)$"
    )
    left.plot(GRID[shown], np.exp(log_normal(GRID[shown], mean, sd)), color=APPROX, label="best Gaussian $q^*$")
    left.set(xlim=(-3.2, 2.6), ylim=(0, 1.75), yticks=[], xlabel="$z$", ylabel="density")
    left.legend(loc="upper left")
    means = np.linspace(-1.5, 1.3, 141)
    for scale, style, color in ((1.0, "-", APPROX), (0.5, "--", ENCODER), (1.6, "-.", GREEN)):
        word = "$s = s^*$" if scale == 1 else f"$s = {scale}\\,s^*$"
        right.plot(means, [elbo(m, scale * sd) for m in means], color=color, ls=style, label=word)
    right.axhline(LOG_EVIDENCE, color=GREY, lw=1.4)
    right.annotate(r"$\log p(x)$", (-1.5, LOG_EVIDENCE), (0, 4), textcoords="offset points", va="bottom")
    at = -1.2
    right.annotate(
        "", (at, LOG_EVIDENCE), (at, elbo(at, sd)), arrowprops={"arrowstyle": "<->", "color": GREY, "lw": 1.2}
    )
    right.annotate("KL", (at, LOG_EVIDENCE - 0.8), (-4, 0), textcoords="offset points", va="center", ha="right")
    right.set(ylim=(LOG_EVIDENCE - 7, LOG_EVIDENCE + 0.9), xlabel="mean $m$ of $q$", ylabel="ELBO (nats)")
    right.legend(loc="lower left")
    return fig


if __name__ == "__main__":
    run("elbo", draw)
