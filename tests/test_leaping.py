"""Newton steps: exact on Gaussian posteriors, honest about what they bring, and no step where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import assert_bound
from torch import Tensor

from vaegap import VAE, elbo, leaping, optimize_local, wrap
from vaegap.energy import LogJoint
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.leaping import leap
from vaegap.posteriors import FullGaussian, Posterior, make_family

GAUSSIANS = ("gaussian", "full_gaussian")


def start(
    vae: LinearGaussianVAE, num: int, family: str, far: float = 3.0, logvar: float = -4.0
) -> tuple[Tensor, Posterior]:
    """Images, and a Gaussian that is far from their posteriors."""
    x = vae.simulate(num, seed=1)
    mean = torch.full((num, vae.latent_dim), far, dtype=vae.dtype)
    return x, make_family(family, vae.latent_dim).posterior(mean, torch.full_like(mean, logvar))


def lost(vae: LinearGaussianVAE, x: Tensor, q: Posterior) -> Tensor:
    """Nats below the best member of q's family (N,), without Monte Carlo."""
    exact = vae.exact_gaps(x)
    if isinstance(q.family, FullGaussian):
        lower = q.family.scale_tril(q.params).double()
        return vae.kl_to_posterior(x, q.mean, lower @ lower.mT)
    return vae.kl_to_posterior(x, q.mean, torch.diag_embed(q.stddev.double() ** 2)) - exact.approximation


@pytest.mark.parametrize("family", GAUSSIANS)
@pytest.mark.parametrize(
    "options",
    [
        {"data_dim": 8, "latent_dim": 1},
        {"data_dim": 8, "latent_dim": 3, "noise": 0.7},
        {"data_dim": 30, "latent_dim": 20, "noise": 0.1},
        {"data_dim": 40, "latent_dim": 33, "noise": 0.3},
    ],
)
def test_gaussian_posteriors_are_reached_at_once(family: str, options: dict[str, Any]) -> None:
    vae = linear_gaussian_vae(**options).double()
    x, q = start(vae, 5, family, logvar=-1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):  # a log-variance changes by 2 at most
        q, promised = leap(LogJoint(vae, x), q, generator)
    assert lost(vae, x, q).abs().max() < 1e-6
    assert promised.abs().max() < 1e-6, "nothing is left"


@pytest.mark.parametrize("family", GAUSSIANS)
def test_a_promise_is_what_the_step_brings(family: str) -> None:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=4, noise=0.5).double()
    x, q = start(vae, 6, family, far=0.4, logvar=-2.0)
    there, promised = leap(LogJoint(vae, x), q, torch.Generator().manual_seed(0))
    torch.testing.assert_close(promised, lost(vae, x, q) - lost(vae, x, there), rtol=1e-6, atol=1e-6)
    assert (promised > 0.1).all()


@pytest.mark.parametrize("family", GAUSSIANS)
def test_in_parts_it_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3).double()
    x, q = start(vae, 7, family, logvar=-1.0)
    whole, _ = leap(LogJoint(vae, x), q, torch.Generator().manual_seed(0))
    monkeypatch.setattr(leaping, "_FLOATS", 2 * 3**2)
    parts, _ = leap(LogJoint(vae, x), q, torch.Generator().manual_seed(5))
    for name, value in whole.params.items():  # without noise, so whatever the seed
        torch.testing.assert_close(parts.params[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", GAUSSIANS)
def test_no_step_where_log_p_bends_upwards_or_is_not_a_number(family: str) -> None:
    class Upwards(VAE):
        def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
            return torch.where(z > 50, torch.nan * z, 16 * z**2).sum(-1)

    vae, x = Upwards(2, 2, encoder_hidden=(), decoder_hidden=(), seed=0), torch.zeros(3, 2)
    for far in (0.0, 100.0):
        mean = torch.full((3, 2), far)
        q = make_family(family, 2).posterior(mean, torch.zeros(3, 2))
        there, promised = leap(LogJoint(vae, x), q, torch.Generator().manual_seed(0))
        assert promised.isnan().all()
        for name, value in q.params.items():
            torch.testing.assert_close(there.params[name], value, equal_nan=True)


def test_too_many_latents_for_a_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaping, "_WIDEST", 4)
    vae = linear_gaussian_vae(encoder_error=1.0)
    x = vae.simulate(10, seed=1)
    q = vae.encode(x).detach()
    there, promised = leap(LogJoint(vae, x), q, torch.Generator().manual_seed(0))
    assert there is q and promised.isnan().all()
    assert_bound(optimize_local(vae, x, num_eval=500, seed=0).bound, vae.exact_gaps(x).best_gaussian, 0.05)


@pytest.mark.parametrize("family", GAUSSIANS)
def test_one_global_variance_is_optimised_image_by_image(family: str) -> None:
    """An encoder whose log-variance is one learned vector: in local optimisation every image gets its own."""
    inner = linear_gaussian_vae(encoder_error=0.5)

    def encode(x: Tensor) -> Posterior:
        mean = inner.encode(x).mean + 1
        params = {"mean": mean, "logvar": mean.new_full((1, 5), -6.0)}
        if family == "full_gaussian":
            params["tril"] = mean.new_zeros(1, 5, 5)
        return Posterior(make_family(family, 5), params)

    vae = wrap(encode, inner.decode, 5, likelihood=inner.likelihood, module=inner)
    x = inner.simulate(12, seed=1)
    exact = inner.exact_gaps(x)
    for name, truth in (("gaussian", exact.best_gaussian), ("full_gaussian", exact.log_p)):
        assert_bound(optimize_local(vae, x, name, num_eval=500, seed=0).bound, truth, 0.02)
    assert elbo(vae, x, 50, seed=0).mean < exact.best_gaussian.mean().item() - 1


@pytest.mark.parametrize("family", GAUSSIANS)
def test_damping_keeps_the_promise_honest(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curvature that is not positive is damped; the promise is that of the quadratic all the same."""
    vae = linear_gaussian_vae(data_dim=8, latent_dim=5).double()
    x, q = start(vae, 1, family, far=0.0, logvar=0.0)
    bent, slope = torch.diag(torch.tensor([-0.2, 0.5, 1.0, 1.0, 2.0])).double(), torch.ones(1, 5).double()
    monkeypatch.setattr(leaping, "_quadratic", lambda *given: (slope, bent.expand(1, 5, 5)))
    there, promised = leap(LogJoint(vae, x), q, torch.Generator())

    def value(at: Posterior) -> Tensor:
        """E[slope z - z bent z / 2] plus entropy, in the coordinates of the start: N(0, I)."""
        lower = at.family.scale_tril(at.params) if isinstance(at.family, FullGaussian) else torch.diag_embed(at.stddev)
        bend = torch.einsum("ni,ij,nj->n", at.mean, bent, at.mean) + (bent @ lower @ lower.mT).diagonal(0, 1, 2).sum(1)
        return (slope * at.mean).sum(1) - 0.5 * bend + lower.diagonal(0, 1, 2).log().sum(1)

    torch.testing.assert_close(promised, value(there) - value(q))


def test_an_ascent_that_ends_far_below_its_promise_is_flagged() -> None:
    """So far away that the noise of comparisons hides every gain."""
    vae = linear_gaussian_vae()
    x = vae.simulate(4, seed=1)
    far = make_family("gaussian", 5).posterior(torch.full((4, 5), 1e7), torch.full((4, 5), -4.0))
    fit = optimize_local(vae, x, start=far, num_eval=50, seed=0)
    lost = vae.exact_gaps(x).best_gaussian - fit.bound.per_image
    assert set((lost > 1).nonzero().flatten().tolist()) <= set(fit.bound.flagged or {})
