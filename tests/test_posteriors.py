"""Posterior families: exact densities, exact Jacobians, gradients, heads, bounded scales, indexing."""

from __future__ import annotations

import pytest
import torch
from oracles import FAMILY_NAMES, HOLD_GAUSSIANS, KINDS, TRACTABLE, assert_mean, member, noise
from torch import Tensor

from vaegap.models import VAE
from vaegap.posteriors import FAMILIES, FullGaussian, Gaussian, Posterior, make_family
from vaegap.posteriors.base import normal_log_prob
from vaegap.posteriors.either import either


@pytest.mark.parametrize(("name", "form"), KINDS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_log_density_inverts_transform(name: str, form: str, dtype: torch.dtype, atol: float) -> None:
    q = member(name, form, dtype=dtype)
    u, log_q = q.family.transform(q.params, noise(q, 50))
    again = q.family.log_density(q.params, u)
    assert u[0].dtype == log_q.dtype == again.dtype == dtype
    assert u[0].shape == (50, 3, 3) and log_q.shape == again.shape == (50, 3)
    torch.testing.assert_close(again, log_q, atol=atol, rtol=0)


@pytest.mark.parametrize(("name", "form"), KINDS)
@pytest.mark.parametrize("dim", [2, 3])
def test_log_determinant_is_the_jacobians(name: str, form: str, dim: int) -> None:
    """log q(u) = log N(eps) - log |du/deps|, u = (z, v) for auxiliary flows: their extended density is exact."""
    q = member(name, form, count=2, dim=dim)
    eps = noise(q, 1)

    def stacked(e: Tensor) -> Tensor:
        return torch.cat(q.family.transform(q.params, e)[0], -1)

    jacobian = torch.autograd.functional.jacobian(stacked, eps)  # (1, N, k, 1, N, k)
    _, log_q = q.family.transform(q.params, eps)
    for n in range(len(q)):
        square = jacobian[0, n, :, 0, n, :]
        assert square.shape == (q.family.noise_dim, q.family.noise_dim)
        expected = normal_log_prob(eps[0, n]) - torch.linalg.slogdet(square).logabsdet
        torch.testing.assert_close(log_q[0, n], expected, atol=1e-9, rtol=0)
        others = jacobian[0, n, :, 0, 1 - n, :]
        assert others.abs().max() == 0, "images must not mix"


@pytest.mark.parametrize(("name", "form"), TRACTABLE)
def test_density_integrates_to_one(name: str, form: str) -> None:
    q = member(name, form, count=2, dim=2)
    z = q.rsample(4000, torch.Generator().manual_seed(0))
    low, high = z.amin(0), z.amax(0)
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    unit = torch.linspace(0, 1, 301, dtype=torch.float64)
    axes = low + (high - low) * unit[:, None, None]  # (G, N, 2)
    grid = torch.stack([axes[:, None, :, 0].expand(-1, 301, -1), axes[None, :, :, 1].expand(301, -1, -1)], -1).flatten(
        0, 1
    )
    cell = ((high - low) / 300).prod(-1)
    mass = q.log_prob(grid).exp().sum(0) * cell
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_weights_are_unbiased_for_a_known_constant(name: str) -> None:
    """E_q[target(z) / q] = 1 for a normalized target, auxiliary variables included: r(v|z) enters the right way."""
    q = member(name, "local", dim=2, spread=0.03)  # r(v|z) still fits, so that the weights have a variance
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(20_000, generator=generator)
    mean, sd = z.mean(0), 0.6 * z.std(0)
    log_target = normal_log_prob((z - mean) / sd) - sd.log().sum(-1)
    weights = (log_target - log_q).exp()
    assert_mean(weights, 1.0)
    assert weights.std(0).max() < 5, "weights without a variance pass any test of their mean"


def test_reverse_model_is_normalized() -> None:
    for form in ("amortized", "local"):
        q = member("aux_flow", form, count=1, dim=2)
        (z, v), _ = q.family.transform(q.params, noise(q, 1))
        wide = torch.linspace(-12, 12, 241, dtype=torch.float64)
        grid = torch.cartesian_prod(wide, wide).unsqueeze(1) + v
        log_r = q.family.reverse_log_prob(q.params, (z.expand(len(grid), -1, -1), grid))
        assert abs(log_r.exp().sum().item() * 0.01 - 1) < 1e-3


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_antithetic_noise_has_both_signs(name: str) -> None:
    family = make_family(name, 3).local_variant()
    q = family.posterior(torch.randn(2, 3), torch.zeros(2, 3))  # at the start every family is (nearly) a Gaussian
    z, _ = q.rsample_and_log_prob(10, antithetic=True)
    assert z.shape == (10, 2, 3)
    torch.testing.assert_close(0.5 * (z[:5] + z[5:]), q.params["mean"].expand(5, -1, -1), atol=0.02, rtol=0)


@pytest.mark.parametrize(("name", "form"), KINDS)
def test_closed_form_kl_and_moments(name: str, form: str) -> None:
    q = member(name, form)
    kl = q.kl()
    if name in ("gaussian", "full_gaussian"):
        assert kl is not None
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(20_000, generator=generator)
    if kl is not None:
        assert kl.shape == (3,)
        assert_mean(log_q - normal_log_prob(z), kl)
    exact = q.family.moments(q.params)
    if exact is not None:
        assert_mean(z, exact[0])
        assert_mean((z - exact[0]) ** 2, exact[1] ** 2)
    assert q.mean.shape == q.stddev.shape == (3, 3)
    assert ((q.mean - z.mean(0)).abs() < 5 * z.std(0) / 16).all()  # 256 samples where no formula is known
    assert ((q.stddev / z.std(0)).log().abs() < 0.4).all()


@pytest.mark.parametrize(("name", "form"), [kind for kind in KINDS if kind[0] in ("gaussian", "full_gaussian")])
def test_gaussian_kl_and_density_are_torchs(name: str, form: str) -> None:
    """To rounding: sampling would not see a few hundredths of a nat."""
    q = member(name, form)
    if isinstance(q.family, FullGaussian):
        scale = q.family.scale_tril(q.params)
    else:
        scale = torch.diag_embed((0.5 * q.params["logvar"]).exp())
    ours = torch.distributions.MultivariateNormal(q.params["mean"], scale_tril=scale)
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    kl = q.kl()
    assert kl is not None
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(ours, prior))
    z = ours.sample((20,))
    torch.testing.assert_close(q.log_prob(z), ours.log_prob(z))
    torch.testing.assert_close(q.stddev, ours.stddev)


@pytest.mark.parametrize("name", HOLD_GAUSSIANS)
def test_from_gaussian_is_that_gaussian(name: str) -> None:
    generator = torch.Generator().manual_seed(6)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logvar = torch.randn(3, 4, generator=generator, dtype=torch.float64) - 1
    q = make_family(name, 4).local_variant().posterior(mean, logvar)
    reference = Gaussian(4).posterior(mean, logvar)
    assert all(v.shape[0] == 3 for v in q.params.values()), "local parameters are one copy per image"
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(4000, generator=generator)
    difference = log_q - reference.log_prob(z)
    if q.family.tractable:
        assert difference.abs().max() < 1e-9
    else:
        assert difference.mean(0).abs().max() < 2e-3  # up to the curvature of tanh
    # changing the result must not change what it was made from
    q.params["mean"].add_(1.0)
    assert not torch.equal(q.params["mean"], mean)


@pytest.mark.parametrize("name", ["flow", "spline"])
def test_only_whitened_flows_start_from_a_gaussian(name: str) -> None:
    with pytest.raises(ValueError, match="whiten"):
        make_family(name, 2, whiten=False).posterior(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="latent_dim >= 2"):
        make_family(name, 1)


@pytest.mark.parametrize("name", ["flow", "spline"])
def test_unwhitened_flow_is_exact_too(name: str) -> None:
    torch.manual_seed(0)
    family = make_family(name, 3, whiten=False)
    q = Posterior(family, family.head(4).double()(torch.randn(2, 4, dtype=torch.float64))).detach()
    eps = noise(q, 5)
    u, log_q = family.transform(q.params, eps)
    torch.testing.assert_close(family.log_density(q.params, u), log_q, atol=1e-9, rtol=0)
    plain = q.params["mean"] + (0.5 * q.params["logvar"]).exp() * eps
    assert (u[0] - plain).abs().max() > 1e-3, "the flow does nothing"


@pytest.mark.parametrize("strength", [0.3, 1.5])  # smallest eigenvalue of a correlation: 0.2 and 3e-4
def test_aux_flow_contains_the_full_gaussian(strength: float) -> None:
    generator = torch.Generator().manual_seed(7)
    dim, count = 5, 4
    mean = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    logvar = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    tril = strength * torch.randn(count, dim, dim, generator=generator, dtype=torch.float64).tril(-1)
    full = Posterior(make_family("full_gaussian", dim), {"mean": mean, "logvar": logvar, "tril": tril})
    family = make_family("aux_flow", dim).local_variant()
    q = Posterior(family, family.from_full_gaussian(mean, logvar, tril))
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(20_000, generator=generator)
    lost = log_q - full.log_prob(z)  # its mean is KL(q(z, v) || p(z) r(v|z)), all that the start loses
    assert lost.mean(0).max() < 0.012 and lost.mean(0).min() > -4 * lost.std(0).max() / 141
    lower = full.family.scale_tril(full.params)
    whitened = torch.linalg.solve_triangular(lower, (z - mean).permute(1, 2, 0), upper=False)
    cov = whitened @ whitened.mT / z.shape[0]
    kl = 0.5 * (cov.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.logdet(cov) - dim)
    assert kl.max() < 0.01, "z's own covariance"


def test_aux_flow_start_needs_its_local_form() -> None:
    with pytest.raises(ValueError, match="local_variant"):
        make_family("aux_flow", 3).posterior(torch.zeros(1, 3), torch.zeros(1, 3))
    assert not FAMILIES["aux_flow"].tractable
    with pytest.raises(NotImplementedError, match="auxiliary"):
        member("aux_flow", "local").log_prob(torch.zeros(1, 3, 3))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_head_shapes_gradients_and_reload(name: str) -> None:
    vae = VAE(6, 3, family=name, encoder_hidden=(8,), decoder_hidden=(8,), seed=0)
    x = (torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    q = vae.encode(x)
    assert len(q) == 5 and q.params["mean"].shape == q.params["logvar"].shape == (5, 3)
    assert all(v.shape[0] in (1, 5) for v in q.params.values())
    z, log_q = q.rsample_and_log_prob(16, generator=torch.Generator().manual_seed(0))
    (log_q - vae.log_joint(x, z)).mean().backward()
    dead = [
        k for k, p in vae.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    assert not dead, f"no gradient reaches {dead}"
    other = VAE(**vae.config, seed=1)
    other.load_state_dict(vae.state_dict())
    for key, value in other.encode(x).params.items():
        assert torch.equal(value, q.params[key])
    rebuilt = make_family(name, 3, **q.family.options)
    assert rebuilt.options == q.family.options


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_inputs_stay_finite(name: str, sign: int) -> None:
    torch.manual_seed(0)
    family = make_family(name, 4)
    q = Posterior(family, family.head(8)(sign * 1e4 * torch.rand(20, 8))).detach()
    z, log_q = q.rsample_and_log_prob(20)
    assert torch.isfinite(z).all() and torch.isfinite(log_q).all()
    assert q.params["logvar"].min() >= -16 and q.params["logvar"].max() <= 4


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_no_image_makes_a_scale_explode(name: str, size: float) -> None:
    """log q(u) is the noise's log-density minus a log-determinant that is bounded whatever the encoder sees."""
    torch.manual_seed(0)
    family = make_family(name, 4)
    q = Posterior(family, family.head(8)(size * torch.randn(50, 8))).detach()
    eps = noise(q, 20)
    _, log_q = family.transform(q.params, eps)
    per_step = 11.0  # exp(±8) from the Gaussian, exp(−3) from v_0, and at most exp(±7) from a step of a flow
    assert ((log_q - normal_log_prob(eps)).abs() <= 4 * (per_step + 2 * 7)).all()


@pytest.mark.parametrize("name", ["flow", "spline", "aux_flow"])
def test_starts_are_the_same_in_every_thread(name: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    family = make_family(name, 4).local_variant()
    zeros = torch.zeros(2, 4)
    first = family.posterior(zeros, zeros).params
    with ThreadPoolExecutor(4) as pool:
        for params in pool.map(lambda _: family.posterior(zeros, zeros).params, range(200)):
            assert all(torch.equal(first[k], v) for k, v in params.items())


@pytest.mark.parametrize(("name", "form"), KINDS)
@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [2, 0], torch.tensor([1]), torch.tensor([True, False, True])],
    ids=["slice", "list", "one", "mask"],
)
def test_indexing(name: str, form: str, index: slice | list[int] | Tensor) -> None:
    q = member(name, form)
    u, log_q = q.family.transform(q.params, noise(q, 4))
    some = q[index]
    assert len(some) == len(torch.arange(3)[index])
    picked = tuple(part[:, index] for part in u)
    torch.testing.assert_close(some.family.log_density(some.params, picked), log_q[:, index])


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("same_form", [True, False])
def test_either_takes_the_chosen_one(name: str, same_form: bool) -> None:
    one = member(name, "local", seed=1)
    two = member(name, "local" if same_form else "amortized", seed=2)
    pick = torch.tensor([True, False, True])
    both = either(one, two, pick)
    if same_form:
        assert type(both.family) is type(one.family), "one form: merged, not carried twice"
    assert both.family.name == name and len(both) == 3
    eps = noise(both, 6)
    u, log_q = both.family.transform(both.params, eps)
    log_q = log_q - both.family.reverse_log_prob(both.params, u)
    for i, source in enumerate(two if p else one for p in pick):
        v, log_r = source.family.transform(source.params, eps[..., : source.family.noise_dim])
        log_r = log_r - source.family.reverse_log_prob(source.params, v)
        torch.testing.assert_close(u[0][:, i], v[0][:, i])
        torch.testing.assert_close(log_q[:, i], log_r[:, i])
        if source.family.tractable:
            torch.testing.assert_close(both.log_prob(u[0])[:, i], log_r[:, i])
    half = both[[2, 1]]
    again, _ = half.family.transform(half.params, eps[:, [2, 1]])
    torch.testing.assert_close(again[0], u[0][:, [2, 1]])
    torch.testing.assert_close(both.mean, torch.where(pick[:, None], two.mean, one.mean), atol=0.5, rtol=0)


def test_seeded_samples_and_global_state() -> None:
    q = member("gaussian", "local")
    state = torch.get_rng_state()
    first, second = (q.rsample(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
