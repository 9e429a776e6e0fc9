"""Importance-weighted bounds on a Gaussian posterior whose evidence is known, and the tail of their weights."""

from __future__ import annotations

import numpy as np
from common import APPROX, ENCODER, GREEN, GREY, plt, run
from matplotlib.figure import Figure

DIM = 10
COUNTS = 2 ** np.arange(13)


def log_weights(rng: np.random.Generator, shape: tuple[int, ...], scale: float, dim: int) -> np.ndarray:
    """log p(z)/q(z) for p = N(0, I), q = N(0, scale^2 I), z ~ q; log Z = 0."""
    eps = rng.standard_normal((*shape, dim))
    return 0.5 * (1 - scale**2) * (eps**2).sum(-1) + dim * np.log(scale)


def bound(logw: np.ndarray, k: int) -> tuple[float, float]:
    """Mean and standard error of log (1/k) sum w over disjoint groups of k weights."""
    groups = logw[: logw.size // k * k].reshape(-1, k)
    top = groups.max(1, keepdims=True)
    values = top[:, 0] + np.log(np.exp(groups - top).mean(1))
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def khat(logw: np.ndarray) -> float:
    """Shape of the generalized Pareto distribution fitted to the largest weights, as PSIS does."""
    n = logw.size
    tail = int(np.ceil(min(0.2 * n, 3 * np.sqrt(n))))
    weights = np.sort(np.exp(logw - logw.max()))
    excess = weights[-tail:] - weights[-tail - 1]
    m = 30 + int(np.sqrt(tail))
    quartile = excess[int(tail / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * excess).mean(1)
    loglik = tail * (np.log(-theta / shape) - shape - 1)
    posterior = np.exp(loglik - loglik.max())
    mean_theta = float(theta @ posterior / posterior.sum())
    raw = float(np.log1p(-mean_theta * excess).mean())
    return (raw * tail + 0.5 * 10) / (tail + 10)


def draw() -> Figure:
    """Left: the bound against the number of samples. Right: tail shape against the proposal's width."""
    rng = np.random.default_rng(1)
    fig, (left, right) = plt.subplots(1, 2, figsize=(5.7, 3.1))
    for scale, color, style in ((1.3, GREEN, "-."), (0.8, APPROX, "-"), (0.55, ENCODER, "--")):
        logw = log_weights(rng, (2**19,), scale, DIM)
        mean, error = np.array([bound(logw, int(k)) for k in COUNTS]).T
        left.plot(COUNTS, mean, color=color, ls=style, label=f"$s = {scale}$")
        left.fill_between(COUNTS, mean - 2 * error, mean + 2 * error, color=color, alpha=0.25, lw=0)
    left.axhline(0, color=GREY, lw=1.4)
    left.annotate(r"$\log p(x)$", (1, 0), (0, 3), textcoords="offset points", va="bottom")
    left.set(xscale="log", xlabel="samples $k$", ylabel=r"$\mathcal{L}_k - \log p(x)$ (nats)", ylim=(-3.2, 0.35))
    left.legend(loc="lower right")

    scales = np.linspace(0.3, 0.96, 12)
    fits = np.array([[khat(log_weights(rng, (4000,), s, 1)) for _ in range(20)] for s in scales])
    right.plot(scales, 1 - scales**2, color=GREY, label=r"exact, $1 - s^2$")
    right.errorbar(
        scales, fits.mean(1), fits.std(1, ddof=1), fmt="o", color=APPROX, ms=4, lw=1.2, label=r"$\hat k$, 4,000 weights"
    )
    for level, word, style in ((0.5, "variance infinite", ":"), (0.7, "unreliable", "--")):
        right.axhline(level, color=ENCODER, lw=1.2, ls=style)
        right.annotate(word, (0.86, level), (0, 3), textcoords="offset points", va="bottom", fontsize=9)
    right.set(xlabel="width $s$ of the proposal", ylabel=r"tail shape $\kappa$", ylim=(-0.35, 1.15), xlim=(0.26, 1.5))
    right.legend(loc="lower left")
    return fig


if __name__ == "__main__":
    run("importance", draw)
