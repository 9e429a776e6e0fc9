"""The published procedure of local optimisation: what it reaches, when it stops, and what it does not take."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from oracles import assert_bound
from torch import Tensor

from vaegap import VAE, Bound, InputError, elbo, linear_gaussian_vae, optimize_local, published
from vaegap.ascent import ascend
from vaegap.energy import LogJoint
from vaegap.local import Recipe
from vaegap.posteriors import Posterior, make_family

VAE_ = linear_gaussian_vae()
X = VAE_.simulate(6, seed=1)


@pytest.mark.parametrize("name", ["gaussian", "full_gaussian"])
def test_published_protocol_reaches_the_same(name: str) -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2, noise=2.0, encoder_error=0.2)
    x = vae.simulate(3, seed=1)
    exact = vae.exact_gaps(x)
    fit = optimize_local(vae, x, name, protocol="paper", num_eval=2000, seed=0)
    assert_bound(fit.bound, exact.best_gaussian if name == "gaussian" else exact.log_p, 0.02)
    assert (fit.steps >= 1200).all() and (fit.steps % 100 == 0).all(), "at least 1 + 11 windows of 100 steps"
    prior = torch.zeros(3, 2)
    start = elbo(vae, x, 2000, make_family("gaussian", 2).posterior(prior, prior), seed=5)
    assert abs(fit.start.mean - start.mean) < 4 * (fit.start.mcse + start.mcse)


@pytest.mark.parametrize("name", ["flow", "spline", "aux_flow"])
def test_published_protocol_takes_every_flow(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Cut short: it climbs from the prior, and stays below log p(x)."""
    monkeypatch.setattr(published, "ascend", lambda *given, **options: islice(ascend(*given, **options), 200))
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2, noise=2.0)
    x = vae.simulate(3, seed=1)
    fit = optimize_local(vae, x, name, protocol="paper", num_eval=2000, seed=0)
    error = (fit.bound.mcse_per_image**2 + fit.start.mcse_per_image**2).sqrt()
    assert (fit.bound.per_image > fit.start.per_image - 4 * error).all()
    assert fit.bound.mean > fit.start.mean + 4 * error.mean(), "it climbed"
    assert (fit.bound.per_image < vae.exact_gaps(x).log_p + 4 * fit.bound.mcse_per_image).all()


def test_published_protocol_stops_after_eleven_bad_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows improve three times and then never: 14 of them, and the third one's posterior is returned."""
    vae = linear_gaussian_vae(data_dim=3, latent_dim=2)
    x = vae.simulate(2, seed=1)
    levels = iter([-3.0, -2.0, -1.0, *[-5.0] * 50])
    seen: list[Tensor] = []
    original = published.elbo

    def scripted(model: VAE, images: Tensor, samples: int, q: Posterior, seed: int) -> Bound:
        if samples != 100:
            return original(model, images, samples, q, seed=seed)
        seen.append(q.params["mean"].clone())
        return Bound(torch.full((2,), next(levels)), torch.zeros(2), "lower", samples)

    monkeypatch.setattr(published, "elbo", scripted)
    fit = optimize_local(vae, x, protocol="paper", num_eval=10, seed=0)
    assert len(seen) == 14 and (fit.steps == 1400).all()
    assert torch.equal(fit.posterior.params["mean"], seen[2])


def test_the_published_procedure_takes_no_settings_and_one_rate() -> None:
    for wrong in ({"start": VAE_.encode(X)}, {"recipe": Recipe(5, 2, 0.1)}):
        with pytest.raises(InputError, match="leave out"):
            optimize_local(VAE_, X, protocol="paper", **wrong)
    start = make_family("flow", 5).posterior(torch.zeros(6, 5), torch.zeros(6, 5))
    generator = torch.Generator().manual_seed(0)
    (end,) = ascend(LogJoint(VAE_, X), start, 1, 10, 1e-3, 0.999, generator, path=False)
    moved = {k: (end.params[k] - v).abs().max().item() for k, v in start.params.items()}
    assert abs(moved["mean"] - 1e-3) < 1e-5, "Adam's first step is the rate itself, for the mean as for the others"
    assert max(moved.values()) < 1.01e-3


def test_the_published_procedure_goes_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_NUMBERS", 1)
    seen: list[int] = []

    def short(vae: VAE, x: Tensor, start: Any, *rest: Any) -> tuple[Any, int]:
        seen.append(len(x))
        return start, 7

    monkeypatch.setattr(published, "_ascend", short)
    x = VAE_.simulate(150, seed=2)
    fit = optimize_local(VAE_, x, protocol="paper", num_eval=10, seed=0)
    assert seen == [64, 64, 22] and len(fit.posterior) == len(fit.bound.per_image) == 150 and (fit.steps == 7).all()
