"""The oracles themselves: closed forms against independent arithmetic, quadrature against both and brute force."""

from __future__ import annotations

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from oracles import FAMILY_NAMES, KINDS, TRACTABLE, assert_bound, assert_mean, best_member, member
from torch import Tensor

from vaegap import VAE, InputError, elbo, linear_gaussian_vae, quadrature, wrap
from vaegap.posteriors import Gaussian, Posterior


def test_evidence_against_scipy() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(5, seed=1)
    weight, offset = vae.decoder[0].weight.detach().double(), vae.decoder[0].bias.detach().double()
    cov = weight @ weight.T + 0.25 * torch.eye(4, dtype=torch.float64)
    expected = scipy.stats.multivariate_normal(offset.numpy(), cov.numpy()).logpdf(x.double().numpy())
    torch.testing.assert_close(vae.log_evidence(x), torch.from_numpy(expected))


def test_evidence_by_one_dimensional_integration() -> None:
    vae = linear_gaussian_vae(data_dim=3, latent_dim=1)
    x = vae.simulate(1, seed=2)

    def joint(z: float) -> float:
        return math.exp(vae.log_joint(x, torch.tensor([[[z]]])).item())

    value, _ = scipy.integrate.quad(joint, -6, 6, points=[vae.encode(x).mean.item()], limit=200)
    assert abs(math.log(value) - vae.log_evidence(x).item()) < 1e-4


def test_simulated_images_have_the_models_moments() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(20_000, seed=3).double()
    mean = vae.offset.double()
    cov = vae.weight.double() @ vae.weight.double().T + 0.25 * torch.eye(4)
    assert_mean(x, mean)
    centred = x - mean
    assert_mean((centred.unsqueeze(1) * centred.unsqueeze(2)).flatten(1), cov.flatten())
    assert torch.equal(vae.simulate(3, seed=1), vae.simulate(3, seed=1))
    assert not torch.equal(vae.simulate(3, seed=1), vae.simulate(3, seed=2))


def test_posterior_by_bayes_rule() -> None:
    """log p(x, z) - log p(x) is the log-density of the closed-form posterior, at any z."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=3).double()
    x = vae.simulate(4, seed=1)
    mean, cov = vae.posterior_moments(x)
    z = torch.randn(10, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.MultivariateNormal(mean, cov).log_prob(z)
    torch.testing.assert_close(vae.log_joint(x, z) - vae.log_evidence(x), expected, atol=1e-5, rtol=1e-6)


def test_best_factorized_posterior_is_best() -> None:
    """Its value is the closed form's, and no factorized Gaussian nearby is better."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=3)
    x = vae.simulate(4, seed=1)
    exact = vae.exact_gaps(x)
    q, _, _ = best_member("gaussian", vae, x)
    mean, sd = (v.double() for v in q.moments())

    def value(m: Tensor, s: Tensor) -> Tensor:
        return exact.log_p - vae.kl_to_posterior(x, m, torch.diag_embed(s**2))

    torch.testing.assert_close(value(mean, sd), exact.best_gaussian, atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 0.5):
        noise = size * torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
        assert (value(mean + noise[0] * sd, sd) < exact.best_gaussian).all()
        assert (value(mean, sd * noise[1].exp()) < exact.best_gaussian).all()
    torch.testing.assert_close(exact.best_full_gaussian, exact.log_p)
    torch.testing.assert_close(exact.log_p - exact.elbo, exact.approximation + exact.amortization)
    assert (exact.approximation > 0.01).all()


def test_encoder_error_makes_the_amortization_gap() -> None:
    gaps = []
    for error in (0.0, 0.1, 0.5):
        vae = linear_gaussian_vae(encoder_error=error)
        gaps.append(vae.exact_gaps(vae.simulate(50, seed=1)).amortization.mean().item())
    assert abs(gaps[0]) < 1e-4 < gaps[1] < gaps[2]


def test_quadrature_is_the_closed_form() -> None:
    vae = linear_gaussian_vae(data_dim=5, latent_dim=2, noise=0.3, encoder_error=0.2)
    x = vae.simulate(10, seed=1)
    grid = quadrature(vae, x)
    torch.testing.assert_close(grid.log_p, vae.log_evidence(x), atol=2e-4, rtol=0)
    assert grid.coarse_error.shape == (10,) and grid.coarse_error.max() < 1e-3
    mean, cov = vae.posterior_moments(x)
    points = grid.grid()
    expected = torch.distributions.MultivariateNormal(mean, cov).log_prob(points).T
    near = expected > -15
    assert (grid.log_posterior.flatten(1) - expected)[near].abs().max() < 2e-3
    cell = (grid.axes[:, 1] - grid.axes[:, 0]).prod(-1)
    torch.testing.assert_close(grid.log_posterior.exp().sum((1, 2)) * cell, torch.ones(10).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "full_gaussian", "flow", "spline"])
def test_kl_by_quadrature_is_the_closed_form(name: str) -> None:
    vae = linear_gaussian_vae(data_dim=5, latent_dim=2, encoder_error=0.2)
    x = vae.simulate(6, seed=1)
    grid = quadrature(vae, x)
    q, best, _ = best_member(name, vae, x)
    torch.testing.assert_close(grid.kl(q), vae.log_evidence(x) - best, atol=1e-3, rtol=0)
    torch.testing.assert_close(grid.mass(q), torch.ones(6).double(), atol=1e-3, rtol=0)
    encoder = vae.encode(x).detach()
    exact = vae.exact_gaps(x)
    torch.testing.assert_close(grid.kl(encoder), exact.log_p - exact.elbo, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_familys_bound_meets_quadrature(name: str) -> None:
    """The best member's L[q] on the oracle is log p(x) by quadrature minus the family's exact gap."""
    vae = linear_gaussian_vae(data_dim=5, latent_dim=2, encoder_error=0.2)
    x = vae.simulate(6, seed=1)
    q, best, slack = best_member(name, vae, x)
    exact_gap = vae.log_evidence(x) - best
    assert_bound(elbo(vae, x, 2000, q, seed=0), quadrature(vae, x).log_p - exact_gap, slack + 1e-3)


def test_quadrature_refuses_another_prior() -> None:
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.full((2,), 20.0), 1.0), 1)
    model = wrap(lambda x: (x, x * 0), lambda z: z, 2, likelihood="gaussian", scale=1.0, prior=prior)
    with pytest.raises(InputError, match="prior"):
        quadrature(model, torch.zeros(2, 2))


@pytest.mark.parametrize(("name", "form"), TRACTABLE)
def test_kl_by_quadrature_is_the_elbos(name: str, form: str) -> None:
    """log p(x) - KL(q || p(z|x)) = L[q], by quadrature on one side and sampling on the other."""
    vae = VAE(6, 2, encoder_hidden=(), decoder_hidden=(5,), activation="tanh", seed=0).double()
    x = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    grid = quadrature(vae, x, points=201)
    q = member(name, form, count=3, dim=2)
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(6000, generator=torch.Generator().manual_seed(1))
        assert_mean(vae.log_joint(x, z) - log_q, grid.log_p - grid.kl(q, reach=10.0), 1e-3)


# an auxiliary flow with random nets has an r(v|z) that does not fit: only its local form has weights with a variance
@pytest.mark.parametrize(("name", "form"), [kind for kind in KINDS if kind in TRACTABLE or kind[1] == "local"])
def test_every_familys_weights_meet_quadrature(name: str, form: str) -> None:
    """A nonlinear decoder: E_q[p(x, z) / q] = p(x), auxiliary variables included, and L[q] lies below log p(x)."""
    vae = VAE(6, 2, encoder_hidden=(), decoder_hidden=(5,), activation="tanh", seed=0).double()
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(3)  # posteriors that are no Gaussians
    x = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    log_p = quadrature(vae, x, points=201).log_p
    q = member(name, form, count=3, dim=2, spread=0.03)
    wide = Posterior(q.family, {**q.params, "mean": 0.3 * q.params["mean"], "logvar": q.params["logvar"] * 0 + 0.3})
    contracts = 2 * (0.15 - wide.stddev.log())  # sigmoid scales halve z at every step
    wide = Posterior(q.family, {**wide.params, "logvar": wide.params["logvar"] + contracts})
    with torch.no_grad():
        z, log_q = wide.rsample_and_log_prob(20_000, generator=torch.Generator().manual_seed(1))
        relative = (vae.log_joint(x, z) - log_q - log_p).exp()
    assert_mean(relative, 1.0)
    assert relative.std(0).max() < 10, "weights without a variance pass any test of their mean"
    bound = elbo(vae, x, 2000, wide, seed=2)
    assert (bound.per_image < log_p + 4 * bound.mcse_per_image).all()


def test_skewed_and_bimodal_posteriors_by_brute_force() -> None:
    def decode(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0] ** 2 - 0.5 * z[:, 0], z[:, 1] + 0.5 * z[:, 0] ** 2], -1)

    vae = wrap(lambda x: (x, x * 0), decode, 2, likelihood="gaussian", scale=0.3)
    x = torch.tensor([[4.0, 2.0], [-0.0625, 0.5], [1.0, -2.0]])
    grid = quadrature(vae, x, points=301)
    axis = torch.linspace(-6, 6, 1201)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1)
    brute = torch.cat([vae.log_joint(row[None], points).double().logsumexp(0) + math.log(0.01**2) for row in x])
    torch.testing.assert_close(grid.log_p, brute, atol=2e-3, rtol=0)
    assert grid.coarse_error.max() < 0.1
    # image 0 has two modes, and the window holds them both
    marginal = grid.log_posterior[0].exp().sum(1)
    left, right = (grid.axes[0, :, 0] < 0), (grid.axes[0, :, 0] > 0)
    share = marginal[left].sum() / marginal.sum()
    assert 0.6 < share < 0.9 and marginal[right].max() > 0.1 * marginal.max()


def test_quadrature_says_when_its_grid_is_too_coarse() -> None:
    vae = linear_gaussian_vae(data_dim=40, latent_dim=2, noise=0.01)
    x = vae.simulate(2, seed=0)
    grid = quadrature(vae, x, points=21)
    wrong = (grid.log_p - vae.log_evidence(x)).abs()
    assert (wrong > 0.1).any() and (grid.coarse_error > 0.1).any()


def test_quadrature_needs_two_latents() -> None:
    with pytest.raises(InputError, match="two latents.*3"):
        quadrature(linear_gaussian_vae(data_dim=4, latent_dim=3), torch.zeros(1, 4))
    q = Gaussian(2).posterior(torch.zeros(1, 2), torch.zeros(1, 2))
    assert quadrature(linear_gaussian_vae(data_dim=4, latent_dim=2), torch.zeros(1, 4)).kl(q).shape == (1,)
