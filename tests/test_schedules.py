"""Schedules of temperatures."""

from __future__ import annotations

import math

import pytest
import torch

from vaegap import InputError, ais
from vaegap.exact import linear_gaussian_vae
from vaegap.schedules import even_temperatures, temperatures


def test_temperatures() -> None:
    for schedule in ("linear", "sigmoid"):
        betas = temperatures(17, schedule)
        assert len(betas) == 18 and betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
        torch.testing.assert_close(betas + betas.flip(0), torch.ones(18, dtype=torch.float64))
    steps = temperatures(17, "sigmoid").diff()
    assert steps[0] < 0.2 * steps[8], "slow near both ends"
    t = torch.linspace(0, 1, 18, dtype=torch.float64)
    s = torch.sigmoid(4 * (2 * t - 1))
    torch.testing.assert_close(temperatures(17, "sigmoid"), (s - s[0]) / (s[-1] - s[0]))
    for bad in ((0, "linear"), (5, "cosine")):
        with pytest.raises(InputError, match="temperatures"):
            temperatures(*bad)


def test_adaptive_temperatures() -> None:
    betas = temperatures(10, "linear")
    torch.testing.assert_close(even_temperatures(betas, [2.0] * 10, 10), betas)
    early = even_temperatures(betas, [8.0, 8.0, *[1.0] * 8], 10)  # most of the way lies at the start
    assert early[0] == 0 and early[-1] == 1 and (early.diff() > 0).all() and len(early) == 11
    assert (early < 0.2).sum() > 5
    exact = even_temperatures(betas, [0.0] * 10, 10)  # a base that is the posterior: any path will do
    assert torch.isfinite(exact).all() and (exact.diff() >= 0).all()


def test_adaptive_schedule_is_better_than_linear_from_the_prior() -> None:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, noise=0.3)
    x = vae.simulate(200, seed=1)
    linear, adaptive = (ais(vae, x, 16, 12, "prior", s, num_leapfrog=10, seed=0) for s in ("linear", "adaptive"))
    assert adaptive.mean - linear.mean > 4 * math.hypot(linear.mcse, adaptive.mcse)
