"""AIS and BDMC: unbiased weights, bounds on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import FAMILY_NAMES, assert_mean, best_member
from torch import Tensor
from torch.distributions import Independent, Normal

from vaegap import Bound, InputError, ais, annealing, bdmc, wrap
from vaegap.bases import make_base
from vaegap.energy import LogJoint
from vaegap.evidence import log_evidence
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.posteriors import Gaussian, Posterior, make_family


def start(kind: str, vae: LinearGaussianVAE, x: Tensor) -> str | Posterior:
    """A base that is off, so that there is something to anneal."""
    if kind in ("posterior", "prior", "mixture"):
        return kind
    q, _, _ = best_member("full_gaussian", vae, x)
    q = Posterior(q.family, {**q.params, "mean": q.params["mean"] + 0.3, "logvar": q.params["logvar"] + 0.4})
    if kind == "full":
        return q
    family = make_family("flow", 2)
    return family.posterior(q.params["mean"], q.params["logvar"])  # used through its moments


@pytest.mark.parametrize("schedule", ["sigmoid", "linear", "adaptive"])
@pytest.mark.parametrize("kind", ["posterior", "prior", "mixture", "full", "flow"])
def test_weights_are_unbiased(oracle: tuple[LinearGaussianVAE, Tensor], kind: str, schedule: str) -> None:
    """With few temperatures the weights spread, and still their mean is p(x), image by image."""
    vae, x = oracle
    bound = ais(vae, x, 3000, 4, start(kind, vae, x), schedule, num_leapfrog=3, seed=0)
    log_p = vae.log_evidence(x)
    assert bound.mcse_per_image.max() < 0.3, "too few chains for a delta-method error"
    relative = (bound.per_image - log_p).exp() - 1
    assert (relative.abs() < 4 * bound.mcse_per_image * (1 + relative)).all()
    assert abs(relative.mean().item()) < 4 * bound.mcse
    assert bound.kind == "lower" and bound.num_samples == 3000
    assert bound.accept is not None and (bound.accept > 0.4).all() and (bound.accept <= 1).all()
    assert bound.ess is not None and (bound.ess < 2999).all() and (bound.ess > 10).all()


def test_two_chains_are_unbiased_too() -> None:
    """The same image 4,000 times, 2 chains each: step sizes that learned on the way would show here."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.4, encoder_error=0.5)
    x = vae.simulate(1, seed=1)
    bound = ais(vae, x.expand(4000, -1), 2, 6, "prior", num_leapfrog=2, seed=0)
    assert_mean((bound.per_image - vae.log_evidence(x)).exp(), 1.0)


def test_steps_are_frozen_after_the_pilot(
    oracle: tuple[LinearGaussianVAE, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = oracle
    generator = torch.Generator().manual_seed(0)
    annealer = annealing._annealer(vae, x, "prior", slice(0, 8), 6, "sigmoid", 3, None, generator)
    used: list[Tensor] = []
    original = annealing.transition

    def watched(u: Tensor, parts: tuple[Tensor, ...], *rest: Any) -> Any:
        used.append(rest[3].clone())
        return original(u, parts, *rest)

    monkeypatch.setattr(annealing, "transition", watched)
    tuned = torch.stack(annealer.steps).clone()
    with torch.no_grad():
        annealer.forward(4, lambda: None)
        annealer.reverse(torch.zeros(8, 2), 4, lambda: None)
    assert tuned.shape == (5, 8, 1) and tuned.std() > 0
    assert torch.equal(torch.stack(used[:5]), tuned) and torch.equal(torch.stack(used[5:]), tuned.flip(0))


def test_rounded_forces_keep_ais_exact() -> None:
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.3, encoder_error=0.3)
    x = vae.simulate(8, seed=1)
    bound = ais(vae, x, 2000, 4, num_leapfrog=3, force_dtype=torch.bfloat16, seed=1)
    relative = (bound.per_image - vae.log_evidence(x)).exp() - 1
    assert (relative.abs() < 4 * bound.mcse_per_image * (1 + relative)).all()


def test_one_temperature_is_importance_sampling(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, _, _ = best_member("gaussian", vae, x)
    bound = ais(vae, x, 4000, 1, q, seed=0)
    assert (bound.per_image - vae.log_evidence(x)).abs().max() < 4 * bound.mcse_per_image.max()


@pytest.mark.parametrize("base", ["prior", "posterior"])
def test_wrapped_prior(base: str) -> None:
    """z ~ N(1, 2 I), x | z ~ N(z, 0.25 I): log p(x) is known."""
    prior = torch.distributions.MultivariateNormal(torch.ones(2), 2 * torch.eye(2))
    vae = wrap(lambda x: (x, x * 0 - 1.0), lambda z: z, 2, likelihood="gaussian", scale=0.5, prior=prior)
    x = torch.tensor([[0.0, 1.0], [3.0, -1.0], [1.0, 1.0]])
    exact = torch.distributions.MultivariateNormal(torch.ones(2), 2.25 * torch.eye(2)).log_prob(x)
    bound = ais(vae, x, 2000, 6, base, num_leapfrog=3, seed=0)
    assert ((bound.per_image - exact).abs() < 4 * bound.mcse_per_image + 1e-4).all()
    with pytest.raises(InputError, match="mixture"):
        ais(vae, x, base="mixture")


@pytest.mark.parametrize("kind", ["posterior", "prior", "mixture", "full", "flow"])
def test_bases_are_consistent(oracle: tuple[LinearGaussianVAE, Tensor], kind: str) -> None:
    """Samples, density, gradient and coordinates of a base agree, and its density integrates to one."""
    vae, x = oracle[0].double(), oracle[1].double()
    chosen = start(kind, vae, x)
    base = make_base(vae, x, chosen.detach() if isinstance(chosen, Posterior) else chosen)
    generator = torch.Generator().manual_seed(0)
    u = base.sample(4000, generator)
    z = base.to_z(u)
    torch.testing.assert_close(base.to_u(z[0]), u[0])
    leaf = u[:50].clone().requires_grad_(True)
    (auto,) = torch.autograd.grad(base.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(base.grad(u[:50].clone()), auto)
    leaf = u[:50].clone().requires_grad_(True)
    push = torch.randn(50, len(x), 2, generator=generator, dtype=torch.float64)
    (auto,) = torch.autograd.grad((base.to_z(leaf) * push).sum(), leaf)
    torch.testing.assert_close(base.pull(push.clone()), auto)
    log_density_z = base.log_prob(u) - base.log_det
    if kind == "prior":
        torch.testing.assert_close(log_density_z, vae.log_prior(z))
    target = Gaussian(2).posterior(z.mean(0), 2 * (0.7 * z.std(0)).log())
    assert_mean((target.log_prob(z) - log_density_z).exp(), 1.0)
    oracle[0].float()


def test_mixture_covers_prior_and_posterior(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    base = make_base(vae, x, "mixture")
    u = base.sample(500, torch.Generator().manual_seed(0))
    z = base.to_z(u)
    q = vae.encode(x).detach()
    expected = torch.logaddexp(q.log_prob(z), vae.log_prior(z)) - math.log(2)
    torch.testing.assert_close(base.log_prob(u) - base.log_det, expected, atol=1e-4, rtol=1e-4)
    share = torch.sigmoid(q.log_prob(z) - vae.log_prior(z))  # exact responsibilities average to one half
    assert_mean(share, 0.5)


@pytest.mark.parametrize("base", ["posterior", "prior"])
def test_bdmc_contains_the_exact_value(base: str) -> None:
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.6, encoder_error=0.8)
    seen: list[Tensor] = []

    def fit(x: Tensor) -> Posterior:
        seen.append(x)
        return vae.encode(x).detach() if base == "posterior" else Gaussian(2).posterior(x[:, :2] * 0, x[:, :2] * 0)

    widths, images = {}, 100
    for number in (2, 60):
        sandwich = bdmc(vae, images, 16, number, fit, seed=0)
        exact = vae.log_evidence(seen[-1])
        low, high = sandwich.lower.per_image - exact, sandwich.upper.per_image - exact
        assert low.mean() < 4 * sandwich.lower.mcse, "the lower bound is too high"
        assert high.mean() > -4 * high.std() / math.sqrt(images), "the upper bound is too low"
        assert low.mean() < high.mean()
        assert sandwich.lower.kind == "lower" and sandwich.upper.kind == "upper"
        assert sandwich.width == pytest.approx((high - low).mean().item(), abs=1e-6)
        widths[number] = sandwich
    assert abs(low.mean()) < 0.05 and abs(high.mean()) < 0.1
    assert widths[2].width - widths[60].width > 4 * math.hypot(widths[2].mcse, widths[60].mcse)
    assert torch.equal(seen[0], seen[1]), "the same seed simulates the same images"
    assert "width" in repr(sandwich)


def test_the_widths_error_is_honest() -> None:
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.6, encoder_error=0.2)
    runs = [bdmc(vae, 30, 16, 6, seed=s) for s in range(30)]
    actual = torch.tensor([r.width for r in runs]).std().item()
    claimed = sum(r.mcse for r in runs) / len(runs)
    assert 0.6 < actual / claimed < 1.5  # 4 standard errors of a standard deviation from 30 runs


def test_bdmc_from_the_prior_is_the_same_on_both_ways(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    """Reversed at the end of its own path, AIS recovers log p(x): exact weights for a base that is the posterior."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.6)

    def exact(x: Tensor) -> Posterior:
        return best_member("full_gaussian", vae, x)[0]

    sandwich = bdmc(vae, 20, 4, 5, exact, seed=0)
    assert abs(sandwich.width) < 1e-4 and sandwich.mcse < 1e-4


def test_prior_and_posterior_agree() -> None:
    """The paper's AIS and ours, on the same images, within their own widths."""
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, noise=0.5, encoder_error=0.2)
    x = vae.simulate(20, seed=3)
    slow = ais(vae, x, 16, 150, "prior", "linear", num_leapfrog=10, seed=0)
    fast = ais(vae, x, 16, 25, "posterior", "sigmoid", seed=1)
    widths = (
        bdmc(vae, 20, 16, 150, "prior", "linear", num_leapfrog=10, seed=2).width + bdmc(vae, 20, 16, 25, seed=3).width
    )
    assert widths < 0.4
    assert abs(slow.mean - fast.mean) < widths + 4 * math.hypot(slow.mcse, fast.mcse)
    for bound in (slow, fast):
        assert abs(bound.mean - vae.log_evidence(x).mean().item()) < 4 * bound.mcse + widths


def test_prior_and_posterior_agree_to_a_hundredth() -> None:
    """Enough temperatures and images that a bias of 0.05 nat in either of them, or in both, would show."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.7, encoder_error=0.2)
    x = vae.simulate(400, seed=3)
    slow = ais(vae, x, 16, 100, "prior", "linear", num_leapfrog=6, seed=0)
    fast = ais(vae, x, 16, 40, "posterior", "sigmoid", seed=1)
    error = math.hypot(slow.mcse, fast.mcse)
    assert 4 * error < 0.03, "too blunt to see a bias"
    assert abs(slow.mean - fast.mean) < 4 * error + 3e-3
    for bound in (slow, fast):
        assert abs(bound.mean - vae.log_evidence(x).mean().item()) < 4 * bound.mcse + 3e-3


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_serves_as_a_base(name: str) -> None:
    """Locally optimal or an encoder's own: AIS from it is unbiased, and BDMC contains the exact value."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.8)
    x = vae.simulate(8, seed=1)

    def moved(images: Tensor) -> Posterior:
        q = best_member(name, vae, images)[0]
        return Posterior(q.family, {**q.params, "mean": q.params["mean"] + 0.2, "logvar": q.params["logvar"] + 0.3})

    amortized = wrap(moved, vae.decoder, 2, "gaussian", scale=0.8, module=vae)
    log_p = vae.log_evidence(x)
    for bound in (ais(vae, x, 1000, 4, moved(x), seed=0), ais(amortized, x, 1000, 4, seed=1)):
        relative = (bound.per_image - log_p).exp() - 1
        assert (relative.abs() < 4 * bound.mcse_per_image * (1 + relative)).all() and bound.mcse_per_image.max() < 0.1
    seen: list[Tensor] = []
    sandwich = bdmc(vae, 40, 16, 10, lambda a: (seen.append(a), moved(a))[1], seed=0)
    exact = vae.log_evidence(seen[0])
    low, high = sandwich.lower.per_image - exact, sandwich.upper.per_image - exact
    for side in (low, -high):
        assert -0.05 < side.mean() < 4 * side.std() / math.sqrt(40)


def test_an_unknown_error_is_refused(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    with pytest.raises(InputError, match="at least 2 chains"):
        log_evidence(vae, x, vae.encode(x).detach(), num_chains=1)
    for wrong in ({"num_chains": 0}, {"num_leapfrog": 0}):
        with pytest.raises(InputError, match="at least 1"):
            ais(vae, x, **wrong)
        with pytest.raises(InputError, match="at least 1"):
            bdmc(vae, 5, **wrong)


def test_a_base_where_the_model_overflows_is_an_error() -> None:
    vae = wrap(lambda x: (x, x * 0 - 6), lambda z: torch.where(z > 5, torch.nan, z), 2, likelihood="gaussian")
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    with pytest.raises(InputError, match="image 2") as error:
        ais(vae, x, 4, 5, seed=0)
    assert error.value.indices == [2]
    assert torch.isfinite(ais(vae, x[:2], 4, 5, seed=0).per_image).all()


def test_seeds_and_chunks(oracle: tuple[LinearGaussianVAE, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = oracle
    torch.manual_seed(9)
    state = torch.get_rng_state()
    runs = [ais(vae, x, 8, 5, seed=s) for s in (0, 0, 1)]
    assert torch.equal(runs[0].per_image, runs[1].per_image) and not torch.equal(runs[0].per_image, runs[2].per_image)
    pair = [bdmc(vae, 5, 4, 3, seed=s) for s in (0, 0)]
    assert torch.equal(pair[0].upper.per_image, pair[1].upper.per_image)
    assert torch.equal(pair[0].lower.per_image, pair[1].lower.per_image)
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr("vaegap.evaluation._CHUNK_FLOATS", 8 * 512 * 3)  # chunks of three images
    q, _, _ = best_member("full_gaussian", vae, x)
    torch.testing.assert_close(ais(vae, x, 8, 5, q, seed=0).per_image, vae.log_evidence(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        bdmc(vae, 7, 8, 5, lambda a: best_member("full_gaussian", vae, a)[0], seed=0).width, 0.0, atol=1e-4, rtol=0
    )


def test_error_bars_cover(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    runs = [ais(vae, x, 64, 8, seed=s) for s in range(25)]
    off = torch.stack([b.per_image - vae.log_evidence(x) for b in runs])
    claimed = torch.stack([b.mcse_per_image for b in runs])
    assert 0.8 < (off.square().mean() / claimed.square().mean()).sqrt().item() < 1.25
    assert off.mean() < 4 * off.std() / math.sqrt(off.numel())


def test_unknown_base_and_nothing_to_simulate(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    with pytest.raises(InputError, match="laplace"):
        ais(vae, x, base="laplace")
    with pytest.raises(InputError, match="num_images=0"):
        bdmc(vae, num_images=0)
    assert isinstance(ais(vae, x[:1], 2, 2, seed=0), Bound)


def picky(vae: LinearGaussianVAE, refused: list[int]) -> Callable[[Tensor], Independent]:
    """A decoder whose scale underflows to 0 far from the origin, where torch's Normal raises."""

    def decode(z: Tensor) -> Independent:
        mean = vae.decoder(z)
        far = z.abs().amax(-1, keepdim=True) > 8
        refused.append(int(far.sum()))
        return Independent(Normal(mean, torch.where(far, 0.0, vae.noise).expand_as(mean), validate_args=True), 1)

    return decode


def test_a_decoder_that_raises_on_a_diverging_chain_stops_nothing() -> None:
    """From N(0, I) to posteriors twenty times narrower, the first trajectories of the pilot run fly apart."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.05, encoder_error=0.0)
    x, refused = vae.simulate(8, seed=1), list[int]()
    other = wrap(lambda x: (torch.zeros(len(x), 2), torch.zeros(len(x), 2)), picky(vae, refused), 2, module=vae)
    easy = wrap(other.encode, vae.decoder, 2, "gaussian", scale=0.05)
    found, plain = (ais(m, x, num_temperatures=50, seed=0) for m in (other, easy))
    assert sum(refused) > 0 and not any("hardly move" in why for why in (found.flagged or {}).values())
    assert torch.isfinite(found.per_image).all()
    assert abs(found.mean - plain.mean) < 4 * math.hypot(found.mcse, plain.mcse)
    assert found.mean < vae.log_evidence(x).mean() + 4 * found.mcse


def test_latents_that_the_decoder_refuses_are_rejected_one_by_one() -> None:
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.5, encoder_error=0.0)
    x, z = vae.simulate(5, seed=1), torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    z[0, 1], z[2, 1], z[1, 4] = 9.0, -50.0, 1e20
    bad = z.abs().amax(-1) > 8
    joint, exact = LogJoint(wrap(vae.encode, picky(vae, []), 2, module=vae), x), LogJoint(vae, x)
    value, grad = joint.value(z, rejecting=True), joint.grad(z, rejecting=True)
    assert torch.equal(value == -torch.inf, bad) and torch.equal(grad[bad], -z[bad])
    assert torch.allclose(value[~bad], exact.value(z)[~bad], rtol=1e-5)
    assert torch.allclose(grad[~bad], exact.grad(z)[~bad], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="decoder failed"):  # where no trajectory leads, it is somebody's mistake
        joint.value(z)
