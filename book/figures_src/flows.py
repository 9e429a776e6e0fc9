"""What an auxiliary variable buys: two affine steps on (z, v) make a two-humped q(z), and r decides what it costs."""

from __future__ import annotations

import numpy as np
from common import APPROX, ENCODER, GREEN, GREY, plt, run
from matplotlib.figure import Figure

Z = np.linspace(-5, 5, 401)
V = np.linspace(-5, 5, 401)
STEP = Z[1] - Z[0]
PUSH, SHARP, SCALE0, SQUEEZE = 1.6, 3.0, 0.75, 0.75


def log_normal(x: np.ndarray, mean: np.ndarray | float, sd: np.ndarray | float) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def log_q_joint(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    """log q(z1, v1) after one coupling step v' = v + 0.3 z, z' = SQUEEZE z + PUSH tanh(SHARP v')."""
    z0 = (z - PUSH * np.tanh(SHARP * v)) / SQUEEZE
    v0 = v - 0.3 * z0
    return log_normal(z0, 0, SCALE0) + log_normal(v0, 0, 1) - np.log(SQUEEZE)


def log_posterior(z: np.ndarray) -> np.ndarray:
    """A two-humped p(z|x), normalized."""
    return np.logaddexp(np.log(0.5) + log_normal(z, -1.6, 0.6), np.log(0.5) + log_normal(z, 1.6, 0.6))


def best_gaussian_kl() -> tuple[float, float, float]:
    """(KL, mean, sd) of the best Gaussian."""
    log_p = log_posterior(Z)

    def kl(mean: float, sd: float) -> float:
        log_q = log_normal(Z, mean, sd)
        return float(np.sum(np.exp(log_q) * (log_q - log_p)) * STEP)

    return min((kl(m, s), m, s) for m in np.linspace(0, 2, 41) for s in np.linspace(0.3, 2.2, 39))


def draw() -> Figure:
    """q(z, v) after one step, its marginal and the posterior, and where the nats go."""
    zz, vv = np.meshgrid(Z, V, indexing="ij")
    log_q = log_q_joint(zz, vv)
    q = np.exp(log_q)
    marginal = q.sum(1) * STEP
    log_marginal = np.log(np.maximum(marginal, 1e-300))
    loss = float((marginal * (log_marginal - log_posterior(Z))).sum() * STEP)
    conditional_entropy = float((q * (log_q - log_marginal[:, None])).sum() * STEP**2)

    def cost(log_r: np.ndarray) -> float:
        """E_q KL(q(v|z) || r(v|z))."""
        return conditional_entropy - float((q * log_r).sum() * STEP**2)

    moments = (q * vv).sum(1) / q.sum(1), (q * vv**2).sum(1) / q.sum(1)
    sd = np.sqrt(moments[1] - moments[0] ** 2)
    network = cost(log_normal(vv, moments[0][:, None], sd[:, None]))
    prior = cost(log_normal(vv, 0.0, np.sqrt((q * vv**2).sum() * STEP**2)))
    gaussian, mean, scale = best_gaussian_kl()

    fig, axes = plt.subplot_mosaic("jm;rr", figsize=(5.7, 5.4), height_ratios=(1.25, 1))
    joint, middle, right = axes["j"], axes["m"], axes["r"]
    levels = q.max() * np.array([0.02, 0.15, 0.4, 0.7, 1.0])
    joint.contourf(Z[::2], V[::2], q.T[::2, ::2], levels=levels, colors=[GREEN], alpha=0.25)
    joint.contour(Z[::2], V[::2], q.T[::2, ::2], levels=levels[:-1], colors=[GREEN], linewidths=1)
    joint.set(xlim=(-3.6, 3.6), ylim=(-3, 3), xlabel="$z_1$", ylabel="$v_1$", title="$q(z_1, v_1)$")
    middle.fill_between(Z, np.exp(log_posterior(Z)), color=GREY, alpha=0.35, lw=0, label="posterior")
    middle.plot(Z, marginal, color=GREEN, label="flow")
    middle.plot(Z, np.exp(log_normal(Z, mean, scale)), color=APPROX, ls="--", label="Gaussian")
    middle.set(xlim=(-3.6, 3.6), ylim=(0, 0.72), yticks=[], xlabel="$z$", title="its marginal $q(z)$")
    middle.legend(loc="upper left", borderpad=0)
    rows = (
        ("Gaussian", gaussian, 0.0),
        ("flow, exact $q(v|z)$", loss, 0.0),
        ("flow, $r(v|z)$ sees $z$", loss, network),
        ("flow, $r(v)$ blind", loss, prior),
    )
    for row, (_, family, reverse) in enumerate(rows):
        color = APPROX if row == 0 else GREEN
        right.barh(row, family, color=color, height=0.55, label="KL$(q\\|p)$" if row == 1 else None)
        if reverse == 0:
            continue
        right.barh(
            row,
            reverse,
            left=family,
            color="none",
            edgecolor=ENCODER,
            hatch="////",
            height=0.55,
            lw=1.2,
            label="cost of $r$" if row == 2 else None,
        )
    right.set_yticks(
        range(4),
        [r[0] for r in rows],
    )
    right.set(ylim=(3.5, -0.5), xlabel="nats below $\\log p(x)$")
    right.legend(loc="upper right", borderpad=0)
    return fig


if __name__ == "__main__":
    run("flows", draw)
