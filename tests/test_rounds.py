"""Rounds of ascent: what a first one may not lose, and where the next begins."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import Any

import pytest
import torch
from oracles import FAMILY_NAMES, assert_bound

from vaegap import VAE, climbing, optimize_local, rounds
from vaegap.exact import linear_gaussian_vae
from vaegap.local import RECIPES
from vaegap.models import Model
from vaegap.natural import ascend_naturally
from vaegap.posteriors import Posterior, make_family
from vaegap.rounds import compare

GAUSSIANS = ("gaussian", "full_gaussian")


@pytest.mark.parametrize("family", GAUSSIANS)
@pytest.mark.parametrize("logvar", [-12.0, -16.0, -30.0])
def test_a_start_far_too_narrow_widens(family: str, logvar: float) -> None:
    """A leap widens so far only, and the last of them may still bring nats: that is no end."""
    vae = linear_gaussian_vae(data_dim=20, latent_dim=10, noise=5.0)
    x = vae.simulate(20, seed=1)
    exact = vae.exact_gaps(x)
    narrow = make_family("gaussian", 10).posterior(vae.encode(x).mean.detach(), torch.full((20, 10), logvar))
    fit = optimize_local(vae, x, family, start=narrow, num_eval=1000, seed=0)
    best = exact.best_gaussian if family == "gaussian" else exact.log_p
    lost = best - fit.bound.per_image
    assert (lost < 0.1 + 4 * fit.bound.mcse_per_image).all() and not fit.bound.flagged, lost.max()


def test_a_good_start_is_not_left_for_a_worse_end() -> None:
    """Leaps promise what their quadratic sees, which on such posteriors is not what is there."""
    vae = VAE(5, 20, decoder_hidden=(20,), encoder_hidden=(20,), seed=3)
    with torch.no_grad():
        for weight in vae.decoder.parameters():
            weight.mul_(20)
    x = vae.decode(vae.sample_prior(100, torch.Generator().manual_seed(1))).mean.round()
    good = optimize_local(vae, x, "full_gaussian", seed=0)
    again = optimize_local(vae, x, "full_gaussian", good.posterior, seed=1)
    gain, noise = compare(vae, x, good.posterior, again.posterior, 2000, seed=2)
    assert gain.mean() > -0.1 and (gain > -0.5 - 4 * noise).double().mean() > 0.95


def test_steps_that_diverge_leave_what_the_leaps_have_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear_gaussian_vae(encoder_error=2.0)
    x = vae.simulate(5, seed=1)
    calls: list[int] = []

    def diverges_once(*args: Any, **kwargs: Any) -> tuple[Posterior, torch.Tensor, torch.Tensor]:
        q, way, noise = ascend_naturally(*args, **kwargs)
        calls.append(len(q))
        lost = Posterior(q.family, {**q.params, "mean": q.mean * nan})
        return lost if len(calls) == 1 else q, way, noise

    monkeypatch.setattr(rounds, "ascend_naturally", diverges_once)
    fit = optimize_local(vae, x, "full_gaussian", vae.encode(x), num_eval=1000, seed=0)
    assert len(calls) > 1, "else nothing diverged"
    assert_bound(fit.bound, vae.exact_gaps(x).log_p, 0.1)
    assert not fit.bound.flagged


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_wide_posteriors_come_in_small_chunks(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    sizes: list[int] = []
    inner = climbing._climb_chunk

    def count(vae: Model, x: torch.Tensor, *args: Any) -> Any:
        sizes.append(len(x))
        return inner(vae, x, *args)

    vae = linear_gaussian_vae(data_dim=8, latent_dim=3)
    x = vae.simulate(10, seed=1)
    start = vae.encode(x)
    monkeypatch.setattr(climbing, "_climb_chunk", count)
    numbers = make_family(family, 3).local_variant().numbers_per_image()
    monkeypatch.setattr(climbing, "_NUMBERS", 4 * numbers)
    quick = None if "gaussian" in family else replace(RECIPES[family], steps=2, rounds=1, repeats=0)
    fit = optimize_local(vae, x, family, start, recipe=quick, seed=0)
    assert sorted(sizes) == [2, 4, 4]
    if family == "full_gaussian":
        assert_bound(fit.bound, vae.exact_gaps(x).log_p, 0.1)
