"""The decomposition: both gaps against their closed forms, the identity, the intervals, the columns."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from oracles import FAMILY_NAMES, HOLD_GAUSSIANS
from torch import Tensor

from vaegap import VAE, Gaps, InputError, LocalFit, decomposition, gaps, paired
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.local import RECIPES, Recipe
from vaegap.models import Model
from vaegap.paired import bootstrap_interval, complete_gaps, summarize
from vaegap.posteriors import Posterior, make_family


@pytest.fixture(scope="module")
def oracle() -> tuple[LinearGaussianVAE, Tensor]:
    vae = linear_gaussian_vae(data_dim=10, latent_dim=4, noise=0.7, encoder_error=0.2)
    return vae, vae.simulate(40, seed=1)


@pytest.fixture(scope="module")
def result(oracle: tuple[LinearGaussianVAE, Tensor]) -> Gaps:
    return gaps(*oracle, num_samples=2000, certify=20, seed=0)


def test_both_gaps_are_the_exact_ones(oracle: tuple[LinearGaussianVAE, Tensor], result: Gaps) -> None:
    exact = oracle[0].exact_gaps(oracle[1])
    mean = result.summary["mean"]
    assert abs(mean["approximation_gaussian"] - exact.approximation.mean().item()) < 0.02
    assert abs(mean["amortization_gaussian"] - exact.amortization.mean().item()) < 0.02
    assert abs(mean["approximation_full_gaussian"]) < 0.02
    total = (exact.log_p - exact.elbo).mean().item()
    assert abs(mean["amortization_full_gaussian"] - total) < 0.02
    assert abs(mean["inference"] - total) < 0.02
    assert exact.approximation.mean() > 0.1 and exact.amortization.mean() > 0.1


@pytest.mark.parametrize("family", [name for name in HOLD_GAUSSIANS if name not in ("gaussian", "full_gaussian")])
def test_gaps_of_flows_are_the_exact_ones(family: str) -> None:
    """A flow contains the full-covariance Gaussian, or comes as near as makes no difference: no approximation gap."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=3, noise=0.5, encoder_error=0.2)
    x = vae.simulate(6, seed=1)
    exact = vae.exact_gaps(x)
    assert exact.approximation.mean() > 0.2, "there is a gap to close"
    result = gaps(vae, x, (family,), num_samples=2000, certify=0, seed=0)
    assert list(result.bounds) == ["gaussian", "full_gaussian", family] and not result.flagged
    approximation, amortization = (result.summary.loc[f"{kind}_{family}"] for kind in ("approximation", "amortization"))
    assert abs(approximation["mean"]) < 0.02
    total = (exact.log_p - exact.elbo).mean().item()
    assert abs(amortization["mean"] - total) < 0.02 + 4 * amortization["mcse"]


def test_every_value_within_its_error(oracle: tuple[LinearGaussianVAE, Tensor], result: Gaps) -> None:
    exact = oracle[0].exact_gaps(oracle[1])
    truth = {
        "log_p": exact.log_p,
        "L_q": exact.elbo,
        "L_star_gaussian": exact.best_gaussian,
        "L_star_full_gaussian": exact.log_p,
        "approximation_gaussian": exact.approximation,
        "amortization_gaussian": exact.amortization,
        "inference": exact.log_p - exact.elbo,
    }
    for name, value in truth.items():
        off = torch.tensor(result.table[name].to_numpy(copy=True)) - value
        error = torch.tensor(result.errors[name].to_numpy(copy=True))
        assert (off.abs() < 4.5 * error + 5e-3).all(), name
        row = result.summary.loc[name]
        assert abs(off.mean().item()) < 4 * row["mcse"] + 2e-3, name
        assert row["mcse"] == pytest.approx(error.square().sum().sqrt().item() / 40)


def test_identity(result: Gaps) -> None:
    table = result.table
    for family in ("gaussian", "full_gaussian"):
        parts = table[f"approximation_{family}"] + table[f"amortization_{family}"]
        assert (table["inference"] - parts).abs().max() < 1e-12
        assert (table["log_p"] - table[f"L_star_{family}"] - table[f"approximation_{family}"]).abs().max() < 1e-12
        assert (table[f"L_star_{family}"] - table["L_q"] - table[f"amortization_{family}"]).abs().max() < 1e-12
    assert result.identity_error < 1e-9
    broken = table.copy()
    broken.loc[3, "amortization_gaussian"] += 0.5
    assert replace(result, table=broken).identity_error == pytest.approx(0.5)


def test_columns_are_the_documented_ones(result: Gaps) -> None:
    rows = ["log_p", "L_q", "L_star_gaussian", "L_star_full_gaussian"]
    rows += ["approximation_gaussian", "approximation_full_gaussian"]
    rows += ["amortization_gaussian", "amortization_full_gaussian", "inference"]
    assert list(result.summary.index) == rows
    assert list(result.summary.columns) == ["mean", "mcse", "ci_low", "ci_high", "num_images"]
    assert (result.summary["num_images"] == 40).all()
    assert list(result.per_image.columns) == [*rows, *[f"{r}_mcse" for r in rows]]
    assert result.per_image.index.name == "image" and list(result.per_image.index) == list(range(40))
    assert not result.per_image.isna().any().any()
    assert (result.summary["ci_low"] <= result.summary["mean"]).all()
    assert (result.summary["ci_high"] >= result.summary["mean"]).all()
    for word in rows[:2] + ["L_star_", "_mcse"]:
        assert word in (Gaps.per_image.__doc__ or "")
    for word in result.summary.columns:
        assert word in (Gaps.summary.__doc__ or "")


def test_certificate_and_display(result: Gaps) -> None:
    evidence = result.evidence
    assert evidence.sandwich is not None and abs(evidence.sandwich.width) < 0.05
    assert len(evidence.sandwich.lower.per_image) == 20
    assert evidence.bound is (evidence.ais if evidence.ais.mean >= evidence.iwae.mean else evidence.iwae)
    assert "width" in repr(result) and "inference" in repr(result)
    assert set(result.bounds) == set(result.posteriors) == {"gaussian", "full_gaussian"} and result.family == "gaussian"
    axes = result.plot()
    assert axes.figure is not None
    import matplotlib.pyplot as plt

    plt.close("all")


def test_the_encoders_own_family_is_always_there() -> None:
    vae = VAE(6, 2, "full_gaussian", (5,), (5,), seed=0)
    x = (torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    out = gaps(vae, x, families=("gaussian",), num_samples=50, certify=0, seed=0)
    assert out.family == "full_gaussian"
    assert [c for c in out.table if c.startswith("L_star_")] == ["L_star_gaussian", "L_star_full_gaussian"]
    assert out.evidence.sandwich is None
    only = gaps(VAE(6, 2, "gaussian", (5,), (5,), seed=0), x, families=(), num_samples=50, certify=0, seed=0)
    assert [c for c in only.table if c.startswith("L_star_")] == ["L_star_gaussian"]


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Tensor, Posterior | None, int]]:
    """Calls of the optimiser: family, images, start and seed; parts of two images, quick flows, a flag in each part."""
    calls: list[tuple[str, Tensor, Posterior | None, int]] = []
    original = decomposition.optimize_local

    def spy(vae: Model, x: Tensor, family: str, start: Posterior | None, *, seed: int, **options: Any) -> LocalFit:
        calls.append((family, x, start, seed))
        if family == "flow" and len(x) == 1 and torch.equal(x[0], torch.full_like(x[0], 9.0)):
            raise InputError("no number (first: image 0)", [0])
        fit = original(vae, x, family, start, seed=seed, **options)
        return replace(fit, bound=replace(fit.bound, flagged={len(x) - 1: f"{family} of {len(x)}"}))

    monkeypatch.setattr(decomposition, "optimize_local", spy)
    monkeypatch.setitem(RECIPES, "flow", Recipe(3, 2, 1e-3, chunk=64, start="gaussian"))
    monkeypatch.setattr(decomposition, "_NUMBERS", 2 * make_family("flow", 2).local_variant().numbers_per_image())
    return calls


@pytest.mark.parametrize("keep", [False, True])
def test_flows_are_held_in_parts(keep: bool, spied: list[tuple[str, Tensor, Posterior | None, int]]) -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(5, seed=1)
    result = gaps(vae, x, ("flow",), num_samples=400, certify=0, seed=0, keep_flows=keep)
    assert list(result.posteriors) == ["gaussian", "full_gaussian", *(["flow"] if keep else [])]
    flows = [call for call in spied if call[0] == "flow"]
    assert [len(images) for _, images, _, _ in flows] == ([5] if keep else [2, 2, 1])
    assert torch.equal(torch.cat([images for _, images, _, _ in flows]), x)
    starts = [start.params["mean"] for _, _, start, _ in flows if start is not None]
    assert torch.equal(torch.cat(starts), result.posteriors["gaussian"].params["mean"]), "each from its own optimum"
    assert len({seed for _, _, _, seed in flows}) == len(flows), "parts draw noise of their own"
    flags = {4: "flow of 5"} if keep else {1: "flow of 2", 3: "flow of 2", 4: "flow of 1"}
    assert result.bounds["flow"].flagged == flags
    assert {i: f"q* flow: {why}" for i, why in flags.items()}.items() <= {
        i: why for i, notes in result.flagged.items() for why in notes if "flow" in why
    }.items()
    # as the Gaussian below it, image by image: bounds in another order would be off by nats
    off = (result.bounds["flow"].per_image - result.bounds["gaussian"].per_image).abs()
    error = sum(result.bounds[name].mcse_per_image for name in ("flow", "gaussian"))
    assert (off < 5 * error + 0.02).all()


def test_flags_of_families_on_the_way_are_kept(spied: list[tuple[str, Tensor, Posterior | None, int]]) -> None:
    """A poor full covariance is the base of AIS, whether its own gap was asked for or not."""
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    result = gaps(vae, vae.simulate(3, seed=1), ("gaussian",), num_samples=50, certify=0, seed=0)
    assert "L_star_full_gaussian" not in result.table
    assert result.flagged[2] == ["q* gaussian: gaussian of 3", "q* full_gaussian: full_gaussian of 3"]


def test_an_error_in_a_later_part_names_the_image(spied: list[tuple[str, Tensor, Posterior | None, int]]) -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(5, seed=1).index_fill(0, torch.tensor([4]), 9.0)
    with pytest.raises(InputError, match="image 4") as caught:
        gaps(vae, x, ("flow",), num_samples=20, certify=0, seed=0)
    assert caught.value.indices == [4] and len(spied) > 3


def test_a_flow_is_gone_before_the_next_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds the posteriors of an earlier part or family, unless they were asked for."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    original = decomposition.optimize_local

    def spy(vae: Model, x: Tensor, family: str, *rest: Any, **options: Any) -> LocalFit:
        alive.append(sum(ref() is not None for ref in made))
        fit = original(vae, x, family, *rest, **options)
        if family in ("flow", "spline"):
            made.append(weakref.ref(fit.posterior.params["mean"]))
        return fit

    monkeypatch.setattr(decomposition, "optimize_local", spy)
    monkeypatch.setattr(decomposition, "_NUMBERS", 1)
    for name in ("flow", "spline"):
        monkeypatch.setitem(RECIPES, name, Recipe(2, 2, 1e-3, chunk=64, start="gaussian"))
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    gaps(vae, vae.simulate(2, seed=1), ("flow", "spline"), num_samples=20, certify=0, seed=0)
    assert len(made) == 4 and alive == [0] * 6


def test_seeds() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(3, seed=1)
    one, two = (gaps(vae, x, num_samples=50, certify=0, seed=0).per_image for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def test_bad_input() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    with pytest.raises(InputError, match="laplace") as caught:
        gaps(vae, vae.simulate(2), families=("laplace",))
    assert all(name in str(caught.value) for name in FAMILY_NAMES)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_bootstrap_interval_covers(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_RESAMPLES", 400)
    generator = torch.Generator().manual_seed(0)
    runs, hits, widths = 400, 0, []
    for seed in range(runs):
        values = torch.randn(60, generator=generator, dtype=torch.float64)
        if shape == "skewed":
            values = values.square() - 1
        low, high = bootstrap_interval(values, seed=seed)
        hits += low < 0 < high
        widths.append(high - low)
    target = 0.95 if shape == "normal" else 0.93  # percentile intervals of 60 skewed values are a little short
    assert abs(hits / runs - target) < 4 * math.sqrt(0.95 * 0.05 / runs)
    scale = 1.0 if shape == "normal" else math.sqrt(2)
    assert sum(widths) / runs == pytest.approx(2 * 1.96 * scale / math.sqrt(60), rel=0.06)


def test_bootstrap_level_and_pairing() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    narrow, wide = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    # the same images are drawn for every quantity: a difference of constant size has no width
    low, high = bootstrap_interval(values)
    other_low, other_high = bootstrap_interval(values + 3)
    assert other_low - low == pytest.approx(3) and other_high - high == pytest.approx(3)


def test_complete_gaps_and_summarize() -> None:
    table = pd.DataFrame({"log_p": [-1.0, -3.0], "L_q": [-4.0, -5.0], "L_star_flow": [-2.0, -3.5]})
    errors = pd.DataFrame({"log_p": [0.3, 0.0], "L_q": [0.4, 0.0], "L_star_flow": [0.0, 0.5]})
    full, off = complete_gaps(table, errors)
    assert full["approximation_flow"].tolist() == [1.0, 0.5]
    assert full["amortization_flow"].tolist() == [2.0, 1.5]
    assert full["inference"].tolist() == [3.0, 2.0]
    assert off["inference"].tolist() == pytest.approx([0.5, 0.0])
    assert off["approximation_flow"].tolist() == pytest.approx([0.3, 0.5])
    assert list(table.columns) == ["log_p", "L_q", "L_star_flow"], "the input is left alone"
    rows = summarize(full, off)
    assert rows.loc["inference", "mean"] == 2.5 and rows.loc["inference", "mcse"] == pytest.approx(0.25)
