"""Annealed importance sampling on a linear-Gaussian model: the sandwich closes, and no force can break it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from common import APPROX, ENCODER, GREEN, GREY, PURPLE, plt, run
from matplotlib.figure import Figure

DIM, PIXELS, NOISE = 8, 12, 0.5
LEAPFROG = 10
Force = Callable[[np.ndarray], np.ndarray]


class Model:
    """p(z) = N(0, I), p(x|z) = N(Wz, NOISE^2 I), and the best factorized q of every x."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weight = rng.standard_normal((PIXELS, DIM)) / np.sqrt(DIM) * 1.2
        self.precision = np.eye(DIM) + self.weight.T @ self.weight / NOISE**2
        self.cov_x = self.weight @ self.weight.T + NOISE**2 * np.eye(PIXELS)
        self.sd = 1 / np.sqrt(np.diag(self.precision))

    def simulate(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        z = rng.standard_normal((n, DIM))
        return z, z @ self.weight.T + NOISE * rng.standard_normal((n, PIXELS))

    def log_evidence(self, x: np.ndarray) -> np.ndarray:
        whitened = np.linalg.solve(self.cov_x, x[..., None])[..., 0]
        return -0.5 * ((x * whitened).sum(-1) + np.linalg.slogdet(2 * np.pi * self.cov_x)[1])

    def posterior_mean(self, x: np.ndarray) -> np.ndarray:
        return np.linalg.solve(self.precision, (x @ self.weight / NOISE**2)[..., None])[..., 0]

    def log_joint(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        error = x - z @ self.weight.T
        constant = DIM * np.log(2 * np.pi) + PIXELS * np.log(2 * np.pi * NOISE**2)
        return -0.5 * ((z**2).sum(-1) + (error**2).sum(-1) / NOISE**2 + constant)

    def grad_log_joint(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (x - z @ self.weight.T) @ self.weight / NOISE**2 - z


def log_gauss(z: np.ndarray, mean: np.ndarray | float, sd: np.ndarray | float) -> np.ndarray:
    sd = np.broadcast_to(sd, z.shape[-1:])
    return -0.5 * (((z - mean) / sd) ** 2).sum(-1) - np.log(sd).sum() - 0.5 * z.shape[-1] * np.log(2 * np.pi)


def schedule(steps: int, kind: str) -> np.ndarray:
    t = np.linspace(0, 1, steps + 1)
    if kind == "linear":
        return t
    curve = 1 / (1 + np.exp(-4 * (2 * t - 1)))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def coarse(force: np.ndarray) -> np.ndarray:
    """Round to 8 significant bits, as bfloat16 does."""
    mantissa, exponent = np.frexp(force)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def ais(
    model: Model,
    x: np.ndarray,
    rng: np.random.Generator,
    betas: np.ndarray,
    chains: int,
    base: str = "prior",
    step: float = 0.35,
    exact_z: np.ndarray | None = None,
    distort: Force = lambda f: f,
) -> np.ndarray:
    """Log weights (chains, N); backwards from exact posterior samples where `exact_z` is given.

    `distort` spoils the force but not the energy of the accept step.
    """
    mean, sd = (0.0, np.ones(DIM)) if base == "prior" else (model.posterior_mean(x), model.sd)

    def log_base(z: np.ndarray) -> np.ndarray:
        return log_gauss(z, mean, sd)

    def log_f(z: np.ndarray, beta: float) -> np.ndarray:
        return (1 - beta) * log_base(z) + beta * model.log_joint(z, x)

    def force(z: np.ndarray, beta: float) -> np.ndarray:
        return distort((1 - beta) * (mean - z) / sd**2 + beta * model.grad_log_joint(z, x))

    def transition(z: np.ndarray, beta: float) -> np.ndarray:
        momentum = rng.standard_normal(z.shape)
        new, p = z, momentum + 0.5 * step * force(z, beta) * sd
        for i in range(LEAPFROG):
            new = new + step * sd * p
            p = p + (1.0 if i < LEAPFROG - 1 else 0.5) * step * force(new, beta) * sd
        log_ratio = log_f(new, beta) - log_f(z, beta) + 0.5 * (momentum**2).sum(-1) - 0.5 * (p**2).sum(-1)
        accept = np.log(rng.random(log_ratio.shape)) < log_ratio
        return np.where(accept[..., None], new, z)

    shape = (chains, len(x), DIM)
    logw = np.zeros(shape[:2])
    if exact_z is None:
        z = mean + sd * rng.standard_normal(shape)
        for low, high in zip(betas[:-1], betas[1:], strict=True):
            logw += log_f(z, high) - log_f(z, low)
            if high < 1:
                z = transition(z, high)
        return logw
    z = np.broadcast_to(exact_z, shape)
    for low, high in zip(betas[-2::-1], betas[:0:-1], strict=True):
        if high < 1:
            z = transition(z, high)
        logw += log_f(z, high) - log_f(z, low)
    return logw


def log_mean_exp(a: np.ndarray) -> np.ndarray:
    top = a.max(0)
    return top + np.log(np.exp(a - top).mean(0))


def sandwich(axis: plt.Axes) -> None:
    rng = np.random.default_rng(0)
    model = Model(rng)
    z, x = model.simulate(rng, 100)
    truth = model.log_evidence(x)
    counts = (3, 6, 12, 25, 50, 100, 200)
    for base, kind, color, style in (("prior", "linear", ENCODER, "--"), ("q", "sigmoid", APPROX, "-")):
        lower, upper = [], []
        for count in counts:
            betas = schedule(count, kind)
            lower.append((log_mean_exp(ais(model, x, rng, betas, 8, base)) - truth).mean())
            upper.append((-log_mean_exp(-ais(model, x, rng, betas, 8, base, exact_z=z)) - truth).mean())
        axis.fill_between(counts, lower, upper, color=color, alpha=0.15, lw=0)
        word = "from the prior" if base == "prior" else "from $q$"
        axis.plot(counts, lower, color=color, ls=style, marker="^", label=word)
        axis.plot(counts, upper, color=color, ls=style, marker="v")
    axis.axhline(0, color=GREY, lw=1.4)
    axis.set(xscale="log", xlabel="temperatures", ylabel=r"bound $-\log p(x)$ (nats)")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_yticks([-10, -1, -0.1, 0, 0.1, 1, 10], ["−10", "−1", "−0.1", "0", "0.1", "1", "10"])
    axis.set_ylim(-14, 150)
    axis.legend(loc="upper right")


def forces(axis: plt.Axes) -> None:
    model = Model(np.random.default_rng(0))
    _, x = model.simulate(np.random.default_rng(5), 1)
    truth = model.log_evidence(x)[0]
    kinds = (
        ("exact", {}, GREY),
        ("8 bits", {"distort": coarse}, APPROX),
        ("30 % longer", {"distort": lambda f: 1.3 * f}, GREEN),
        ("none at all", {"distort": np.zeros_like}, PURPLE),
    )
    for row, (_, options, color) in enumerate(kinds):
        logw = ais(model, x, np.random.default_rng(7), schedule(12, "sigmoid"), 40_000, "q", **options)[:, 0] - truth
        ratio = np.exp(logw)
        error = ratio.std(ddof=1) / np.sqrt(ratio.size)
        axis.errorbar(
            ratio.mean(), row, xerr=3 * error, fmt="o", color=color, lw=2, label="mean weight" if row == 0 else None
        )
        axis.plot(
            np.exp(logw.mean()),
            row,
            marker="D",
            color=color,
            mfc="none",
            ls="",
            label=r"exp of mean $\log w$" if row == 0 else None,
        )
    axis.vlines(1, -0.5, len(kinds) - 0.4, color=GREY, lw=1.2)
    axis.set_yticks(range(len(kinds)), [k[0] for k in kinds])
    axis.set(xlabel=r"weight / $p(x)$", ylim=(len(kinds) - 0.4, -1.7), title="force in the leapfrog")
    axis.legend(loc="upper left", fontsize=9, borderpad=0.1)


def draw() -> Figure:
    """Left: lower and upper bounds against temperatures. Right: mean weight under spoiled forces."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(5.7, 3.3), width_ratios=(1.2, 1))
    sandwich(left)
    forces(right)
    return fig


if __name__ == "__main__":
    run("annealing", draw)
