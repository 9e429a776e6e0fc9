"""q*: the closed form where there is one, never below its start, and ordered by how rich the family is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import FAMILY_NAMES, HOLD_GAUSSIANS, assert_bound, best_member
from torch import Tensor

from vaegap import (
    VAE,
    Bound,
    InputError,
    LocalFit,
    climbing,
    elbo,
    load_images,
    optimize_local,
    rounds,
)
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.lab.training import Schedule, train
from vaegap.local import RECIPES, lift
from vaegap.posteriors import FAMILIES, Posterior, make_family

QUICK = {
    **{name: RECIPES[name] for name in ("gaussian", "full_gaussian")},
    **{
        name: replace(RECIPES[name], steps=60, samples=8, rounds=1, repeats=0, chunk=5) for name in ("flow", "aux_flow")
    },
    "spline": replace(RECIPES["spline"], steps=20, rounds=1, repeats=0),
}
"""Short settings for the tests of order: a start must survive even a poor optimisation. Chunks of 5 leave one over."""


def at_least(high: Bound, low: Bound, slack: float = 1e-3) -> None:
    """high >= low for every image, within 4 standard errors of the difference."""
    error = (high.mcse_per_image**2 + low.mcse_per_image**2).sqrt()
    short = low.per_image - high.per_image
    assert (short <= 4 * error + slack).all(), f"{short.max():.3f} nat below"


@pytest.fixture(scope="module")
def oracle() -> tuple[LinearGaussianVAE, Tensor]:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, noise=0.7, encoder_error=0.2)
    return vae, vae.simulate(6, seed=1)


@pytest.fixture(scope="module")
def oracle_fits(oracle: tuple[LinearGaussianVAE, Tensor]) -> dict[str, LocalFit]:
    short = {
        name: replace(RECIPES[name], steps=150, rounds=1, repeats=0) for name in ("flow", "spline", "aux_flow")
    }  # slow steps
    return {name: optimize_local(*oracle, name, num_eval=1000, recipe=short.get(name), seed=0) for name in FAMILY_NAMES}


@pytest.mark.parametrize("name", HOLD_GAUSSIANS)
def test_optimum_is_the_closed_form(
    oracle: tuple[LinearGaussianVAE, Tensor], oracle_fits: dict[str, LocalFit], name: str
) -> None:
    vae, x = oracle
    exact = vae.exact_gaps(x)
    assert (exact.approximation > 0.03).all() and exact.amortization.mean() > 0.2
    fit = oracle_fits[name]
    assert_bound(fit.bound, exact.best_gaussian if name == "gaussian" else exact.log_p, 0.02)
    assert fit.family == name and fit.bound.per_image.shape == fit.steps.shape == (6,)
    if name in ("gaussian", "full_gaussian"):  # the parameters too, not only the value
        mean, cov = vae.posterior_moments(x)
        q = fit.posterior
        sd = (vae.precision().diagonal() ** -0.5 if name == "gaussian" else cov.diagonal().sqrt()).expand(6, -1)
        assert ((q.mean - mean).abs() < 0.06 * sd).all()
        assert ((q.stddev / sd).log().abs() < 0.06).all()
    other = elbo(vae, x, 1000, fit.posterior, seed=123)
    assert_bound(other, exact.best_gaussian if name == "gaussian" else exact.log_p, 0.02)


def test_order_on_the_oracle(oracle: tuple[LinearGaussianVAE, Tensor], oracle_fits: dict[str, LocalFit]) -> None:
    amortized = elbo(*oracle, 1000, seed=9)
    fits = {name: fit.bound for name, fit in oracle_fits.items()}
    at_least(fits["gaussian"], amortized)
    for richer in HOLD_GAUSSIANS[1:]:
        at_least(fits[richer], fits["gaussian"])
        assert fits[richer].mean > fits["gaussian"].mean + 0.03, f"{richer} gained nothing over the Gaussian"
    log_p = oracle[0].log_evidence(oracle[1])
    for bound in fits.values():
        assert (bound.per_image - log_p < 4 * bound.mcse_per_image + 1e-3).all(), "above log p(x)"


# ---- trained models, one for each family of encoder -----------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_images("mnist-5k", "train", num_images=500).x


@pytest.fixture(scope="module")
def trained(digits: Tensor) -> dict[str, VAE]:
    made: dict[str, VAE] = {}
    for name in FAMILY_NAMES:
        options = {"hidden": 20} if "hidden" in make_family(name, 4).options else {}
        vae = VAE((1, 28, 28), 4, name, (30,), (30,), family_options=options, seed=0)
        train(vae, digits, Schedule(6, 25, lr=5e-3), progress=False)
        made[name] = vae
    return made


@pytest.fixture(autouse=True)
def short_ladders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "trained" in request.fixturenames:
        for name, recipe in QUICK.items():
            monkeypatch.setitem(RECIPES, name, recipe)


def test_order_on_a_trained_model(trained: dict[str, VAE], digits: Tensor) -> None:
    vae, x = trained["gaussian"], digits[:6]
    before = copy.deepcopy(vae.state_dict())
    vae.zero_grad(set_to_none=True)
    fits = {name: optimize_local(vae, x, name, num_eval=500, seed=0) for name in FAMILY_NAMES}
    at_least(fits["gaussian"].bound, elbo(vae, x, 500, seed=9))
    assert fits["gaussian"].bound.mean > elbo(vae, x, 500, seed=9).mean + 0.5
    for richer in HOLD_GAUSSIANS[1:]:
        at_least(fits[richer].bound, fits["gaussian"].bound)
    assert fits["full_gaussian"].bound.mean > fits["gaussian"].bound.mean
    for key, value in vae.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was changed"
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_encoders_of_every_family(trained: dict[str, VAE], digits: Tensor, name: str) -> None:
    """6 images in chunks of 5: a last chunk of one image must not take shared weights for its own."""
    vae, x = trained[name], digits[:6]
    amortized = elbo(vae, x, 1000, seed=9)
    fit = optimize_local(vae, x, name, num_eval=1000, seed=0)
    at_least(fit.bound, amortized)
    assert fit.family == name
    again = elbo(vae, x, 1000, fit.posterior, seed=77)
    off = (again.per_image - fit.bound.per_image).abs()
    assert (off < 4.5 * (again.mcse_per_image**2 + fit.bound.mcse_per_image**2).sqrt() + 1e-3).all()
    if name in ("full_gaussian", "aux_flow"):  # the order holds for models trained with a richer family too
        floor = optimize_local(vae, x, "gaussian", num_eval=500, seed=0)
        assert floor.family == "gaussian" and torch.isfinite(floor.bound.per_image).all()
        at_least(fit.bound, floor.bound)


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name != "spline"])  # as "flow", but slow
def test_one_image(trained: dict[str, VAE], digits: Tensor, name: str) -> None:
    vae, x = trained[name], digits[7:8]
    fit = optimize_local(vae, x, name, num_eval=1000, seed=0)
    assert fit.bound.per_image.shape == (1,) and len(fit.posterior) == 1
    at_least(fit.bound, elbo(vae, x, 1000, seed=9))


@pytest.mark.parametrize("name", ["gaussian", "full_gaussian", "flow"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_amortized_posterior_as_a_start(name: str, count: int) -> None:
    """A start of exactly the family asked for: weights that images share stay shared."""
    vae = VAE(6, 3, name, (5,), (5,), seed=0)
    x = (torch.rand(count, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    q = vae.encode(x).detach()
    brief = replace(RECIPES[name], steps=40, rounds=2, chunk=2)
    fit = optimize_local(vae, x, name, start=q, num_eval=500, recipe=brief, seed=0)
    at_least(fit.bound, elbo(vae, x, 500, q, seed=9))
    at_least(elbo(vae, x, 500, fit.posterior, seed=8), fit.bound)
    for key, value in q.params.items():
        if value.shape[0] == 1 < count:
            kept = fit.posterior.params
            assert torch.equal(value, kept[key] if key in kept else kept[f"first/{key}"])


def test_seed_and_bfloat16(trained: dict[str, VAE], digits: Tensor) -> None:
    vae, x = trained["gaussian"], digits[:6]
    one, two, three = (optimize_local(vae, x, "gaussian", num_eval=200, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.bound.per_image, two.bound.per_image)
    assert not torch.equal(one.bound.per_image, three.bound.per_image)
    rough = optimize_local(vae, x, "gaussian", num_eval=500, force_dtype=torch.bfloat16, seed=0)
    assert abs(rough.bound.mean - one.bound.mean) < 0.1 + 4 * one.bound.mcse


def test_start_is_never_lost(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    """A useless optimisation, with far too large steps, leaves the start as it was."""
    vae, x = oracle
    for name in ("gaussian", "full_gaussian"):
        q, best, _ = best_member(name, vae, x)
        fit = optimize_local(vae, x, name, start=q, recipe=replace(RECIPES[name], lr=3.0, steps=30), seed=0)
        assert_bound(fit.bound, best, 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_diverged_optimisation_loses(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, best, _ = best_member("gaussian", vae, x)
    fit = optimize_local(vae, x, start=q, recipe=replace(RECIPES["gaussian"], lr=1e5, steps=20), seed=0)
    assert_bound(fit.bound, best, 1e-3)


def test_reported_bound_is_not_the_one_chosen_by(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    """Few samples, many images: were the larger of two noisy values reported, the mean would lie above the optimum."""
    vae = oracle[0]
    x = vae.simulate(400, seed=2)
    q, best, _ = best_member("gaussian", vae, x)
    fit = optimize_local(vae, x, start=q, num_eval=10, recipe=replace(RECIPES["gaussian"], steps=20, rounds=3), seed=0)
    assert abs(fit.bound.mean - best.mean().item()) < 4 * fit.bound.mcse + 2e-3


def test_the_report_uses_samples_that_nothing_was_chosen_by(
    oracle: tuple[LinearGaussianVAE, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every chunk: the last evaluation has a seed and a number of samples of its own."""
    calls: list[tuple[int, int]] = []

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(vae: VAE, x: Tensor, samples: int, *rest: Any, seed: int) -> Any:
            calls.append((samples, seed))
            return original(vae, x, samples, *rest, seed=seed)

        return evaluate

    monkeypatch.setattr(climbing, "elbo", watched(climbing.elbo))
    original = rounds.compare

    def compare(vae: VAE, x: Tensor, begin: Posterior, end: Posterior, num: int, seed: int) -> tuple[Tensor, ...]:
        calls.append((num, seed))
        return original(vae, x, begin, end, num, seed)

    monkeypatch.setattr(rounds, "compare", compare)
    recipe = replace(RECIPES["gaussian"], steps=5, rounds=2, chunk=4)
    fit = optimize_local(*oracle, "gaussian", recipe=recipe, num_eval=77, seed=0)
    reported = [seed for samples, seed in calls if samples == 77]
    others = {seed for samples, seed in calls if samples != 77}
    assert fit.bound.num_samples == 77 and len(set(reported)) == 2 and others.isdisjoint(reported)


def test_lift() -> None:
    mean, logvar = torch.randn(3, 4), torch.randn(3, 4)
    q = make_family("gaussian", 4).posterior(mean, logvar)
    for name in FAMILY_NAMES:
        family = make_family(name, 4).local_variant()
        up = lift(q, family)
        torch.testing.assert_close(up.params["mean"], mean)
        assert type(up.family) is FAMILIES[name] or name == "gaussian"
        assert lift(up, family) is up
    full = lift(q, make_family("full_gaussian", 4))
    full.params["tril"][:, 1, 0] = 0.7
    down = lift(full, make_family("gaussian", 4))
    torch.testing.assert_close(down.stddev, full.stddev)
    for name in ("flow", "spline"):
        with pytest.raises(InputError, match="full-covariance"):
            lift(full, make_family(name, 4))


def test_bad_input_is_named(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    with pytest.raises(InputError, match="laplace"):
        optimize_local(vae, x, "laplace")
    with pytest.raises(InputError, match="slow"):
        optimize_local(vae, x, protocol="slow")
    with pytest.raises(InputError, match="6"):
        optimize_local(vae, x, start=best_member("gaussian", vae, x[:4])[0])


def test_one_image_alone_is_treated_as_among_others(trained: dict[str, VAE], digits: Tensor) -> None:
    """Weights that all images share do not move for a single image either."""
    vae = trained["aux_flow"]
    alone = optimize_local(vae, digits[:1], "aux_flow", num_eval=500, seed=3)
    among = optimize_local(vae, digits[:3], "aux_flow", num_eval=500, seed=3)
    error = (alone.bound.mcse_per_image[0] ** 2 + among.bound.mcse_per_image[0] ** 2).sqrt()
    assert abs(alone.bound.per_image[0] - among.bound.per_image[0]) < 5 * error + 0.05


def test_a_diverged_ascent_is_flagged(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    wild = replace(RECIPES["flow"], steps=20, lr=1e18, rounds=1, repeats=0)
    fit = optimize_local(vae, x, "flow", recipe=wild, num_eval=100, seed=0)
    assert torch.isfinite(fit.bound.per_image).all(), "the start is kept"
    assert fit.bound.flagged and all("diverged" in why for why in fit.bound.flagged.values())


def test_a_start_is_not_kept_for_its_luck(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    """Noise in the comparison of start and end must not cost what the ascent has won."""
    vae, x = oracle
    exact = vae.exact_gaps(x).best_gaussian
    for seed in range(5):
        fit = optimize_local(vae, x, "gaussian", num_eval=1000, seed=seed)
        assert_bound(fit.bound, exact, 0.02)


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"samples": 0}, {"steps": 0}, {"rounds": 0}, {"chunk": 0}])
def test_recipes_that_cannot_run_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="recipe"):
        replace(RECIPES["gaussian"], **wrong)
