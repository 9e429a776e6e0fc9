"""Why the path gradient finds the optimum and the usual one circles round it."""

from __future__ import annotations

import numpy as np
from common import APPROX, ENCODER, plt, run
from matplotlib.figure import Figure

DIM, SAMPLES, STEPS, RATE = 20, 4, 600, 0.02
RHO = 0.6


def target() -> tuple[np.ndarray, np.ndarray]:
    """Precision and Cholesky factor of the covariance of a correlated Gaussian posterior."""
    index = np.arange(DIM)
    cov = RHO ** np.abs(index[:, None] - index[None, :])
    return np.linalg.inv(cov), np.linalg.cholesky(cov)


PRECISION, BEST = target()


def gradient(factor: np.ndarray, mean: np.ndarray, eps: np.ndarray, path: bool) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the ELBO for every sample: mean (S, d), lower triangular factor (S, d, d)."""
    z = mean + eps @ factor.T
    slope = -z @ PRECISION
    if path:
        slope = slope + np.linalg.solve(factor.T, eps.T).T
        return slope, np.tril(slope[:, :, None] * eps[:, None, :])
    entropy = np.diag(1 / np.diag(factor))
    return slope, np.tril(slope[:, :, None] * eps[:, None, :]) + entropy


def kl(factor: np.ndarray, mean: np.ndarray) -> float:
    trace = float(np.sum(PRECISION * (factor @ factor.T)))
    logdet = 2 * np.log(np.abs(np.diag(factor))).sum() + np.linalg.slogdet(PRECISION)[1]
    return 0.5 * (trace + mean @ PRECISION @ mean - DIM - float(logdet))


def noise(distance: float, path: bool) -> tuple[float, float]:
    """KL at a fraction `distance` of the way from the optimum to N(1, I), and the gradient's noise there."""
    rng = np.random.default_rng(2)
    factor = BEST + distance * (np.eye(DIM) - BEST)
    mean = distance * np.ones(DIM)
    g_mean, g_factor = gradient(factor, mean, rng.standard_normal((2000, DIM)), path)
    return kl(factor, mean), float(np.sqrt(g_mean.var(0).sum() + g_factor.var(0).sum()))


def fit(path: bool) -> np.ndarray:
    rng = np.random.default_rng(3)
    mean, factor = np.ones(DIM), np.eye(DIM)
    moments = [np.zeros((2, DIM)), np.zeros((2, DIM, DIM))]
    trace = np.empty(STEPS)
    for step in range(STEPS):
        trace[step] = kl(factor, mean)
        rate = RATE * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / STEPS)))
        grads = [g.mean(0) for g in gradient(factor, mean, rng.standard_normal((SAMPLES, DIM)), path)]
        for moment, grad, values in zip(moments, grads, (mean, factor), strict=True):
            moment[0] = 0.9 * moment[0] + 0.1 * grad
            moment[1] = 0.99 * moment[1] + 0.01 * grad**2
            first = moment[0] / (1 - 0.9 ** (step + 1))
            second = moment[1] / (1 - 0.99 ** (step + 1))
            values += rate * first / (np.sqrt(second) + 1e-8)
    return trace


def draw() -> Figure:
    """Left: gradient noise against the distance to the optimum. Right: the same optimiser with either gradient."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(5.7, 3.0), sharey=False)
    for path, color, style, word in ((False, ENCODER, "--", "usual gradient"), (True, APPROX, "-", "path gradient")):
        values = np.array([noise(d, path) for d in np.geomspace(1e-3, 1, 25)])
        left.plot(*values.T, color=color, ls=style, label=word)
        right.plot(fit(path), color=color, ls=style, label=word)
    left.set(xscale="log", yscale="log", xlabel="KL$(q\\,\\|\\,p)$ (nats)", ylabel="gradient noise, one sample")
    right.set(yscale="log", xlabel="step of Adam", ylabel="KL$(q\\,\\|\\,p)$ (nats)")
    left.legend(loc="lower right")
    right.legend(loc="lower left")
    return fig


if __name__ == "__main__":
    run("path_gradient", draw)
