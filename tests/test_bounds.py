"""ELBO and IWAE against closed forms, honest error bars, and input that must not become a number."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import FAMILY_NAMES, assert_bound, assert_mean, best_member
from torch import Tensor, nn

import vaegap
from vaegap import VAE, Bound, InputError, elbo, evaluation, iwae, wrap
from vaegap.bounds import join_bounds
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.posteriors import Gaussian
from vaegap.weights import log_mean_exp, pareto_khat


@pytest.fixture(scope="module")
def oracle() -> tuple[LinearGaussianVAE, Tensor]:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, encoder_error=0.3)
    return vae, vae.simulate(20, seed=1)


def test_encoder_elbo_is_the_closed_form(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    exact = vae.exact_gaps(x)
    assert exact.amortization.mean() > 0.5, "an encoder without error would prove little"
    bound = elbo(vae, x, 2000, seed=0)
    assert bound.kind == "lower" and bound.num_samples == 2000
    assert_bound(bound, exact.elbo, 1e-4)
    assert bound.mcse < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_both_bounds_at_every_familys_optimum(
    oracle: tuple[LinearGaussianVAE, Tensor], name: str, dtype: torch.dtype
) -> None:
    vae, x = linear_gaussian_vae(data_dim=8, latent_dim=3, encoder_error=0.3).to(dtype), oracle[1].to(dtype)
    q, best, slack = best_member(name, vae, x)
    assert_bound(elbo(vae, x, 500, q, seed=1), best, slack)
    weighted = iwae(vae, x, 2000, q, seed=2)
    log_p = vae.log_evidence(x)
    # its own bias is about half its variance
    assert_bound(weighted, log_p, 5e-5 + 0.5 * weighted.mcse_per_image.square().max().item() * 2)
    assert ((weighted.ess <= 2000 * (1 + 1e-6)) & (weighted.ess > 200)).all()
    assert weighted.per_image.dtype == torch.float64


def test_exact_posterior_leaves_no_error(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, best, _ = best_member("full_gaussian", vae, x)
    for bound in (elbo(vae, x, 50, q, seed=0), iwae(vae, x, 50, q, seed=0)):
        torch.testing.assert_close(bound.per_image, best, atol=5e-5, rtol=0)
        assert bound.mcse_per_image.max() < 1e-5
    assert iwae(vae, x, 50, q, seed=0).ess.min() > 49.9


@pytest.mark.parametrize("samples", [10, 100])
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_elbo_error_bars_are_the_actual_errors(samples: int, error: float) -> None:
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, encoder_error=error)
    x = vae.simulate(20, seed=1)
    exact = vae.exact_gaps(x).elbo
    runs = [elbo(vae, x, samples, seed=s) for s in range(150)]
    off = torch.stack([b.per_image - exact for b in runs])
    claimed = torch.stack([b.mcse_per_image for b in runs])
    assert_mean(off.mean(1), 0.0, 1e-5)
    assert 0.93 < (off.square().mean() / claimed.square().mean()).sqrt().item() < 1.07
    of_mean = torch.tensor([(b.mean - exact.mean().item()) / b.mcse for b in runs])
    assert 0.8 < of_mean.std() < 1.25  # 4 standard errors of a standard deviation from 150 runs, and Student's tail
    if samples == 100:
        assert 0.95 < (off / claimed).std() < 1.1


def test_iwae_error_bars_cover(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, _, _ = best_member("gaussian", vae, x)
    runs = [iwae(vae, x, 500, q, seed=s) for s in range(40)]
    z = torch.stack([(b.per_image - vae.log_evidence(x)) / b.mcse_per_image for b in runs])
    assert 0.9 < z.std().item() < 1.15


@pytest.mark.parametrize("samples", [2, 3, 4, 10])
def test_control_variate_is_unbiased(oracle: tuple[LinearGaussianVAE, Tensor], samples: int) -> None:
    vae, x = oracle
    q = Gaussian(3).posterior(torch.zeros(20, 3), torch.zeros(20, 3) - 1)  # far off: a strong coefficient
    mean, sd = q.moments()
    exact = vae.log_evidence(x) - vae.kl_to_posterior(x, mean, torch.diag_embed(sd**2))
    values = torch.stack([elbo(vae, x, samples, q, seed=s).per_image for s in range(400)])
    assert_mean(values, exact, 1e-3)


@pytest.mark.parametrize("noise", [0.5, 5.0])  # posteriors narrow and wide: each textbook estimator is poor on one
def test_control_variate_lowers_the_error(noise: float) -> None:
    """Against the two textbook estimators: E log w, and E log p(x|z) - KL."""
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, noise=noise, encoder_error=0.0)
    x = vae.simulate(20, seed=1)
    best, _, _ = best_member("gaussian", vae, x)
    off = Gaussian(3).posterior(best.params["mean"] + 0.3, best.params["logvar"] - 1.0)
    for q in (best, off):
        with torch.no_grad():
            z, log_q = q.rsample_and_log_prob(200, generator=torch.Generator().manual_seed(0))
            log_w = (vae.log_joint(x, z) - log_q).std(0).mean() / math.sqrt(200)
            with_kl = vae.log_likelihood(x, z).std(0).mean() / math.sqrt(200)
        ours = elbo(vae, x, 200, q, seed=0).mcse_per_image.mean()
        assert ours < 1.05 * min(log_w, with_kl)
        if q is best and noise == 0.5:
            assert ours < 0.7 * with_kl
        if q is off and noise == 5.0:
            assert ours < 0.7 * log_w


def test_iwae_rises_with_its_samples(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    log_p = vae.log_evidence(x).mean().item()
    means, errors = [], []
    for k, runs in ((2, 200), (8, 100), (32, 50), (128, 20)):
        values = torch.tensor([iwae(vae, x, k, seed=s).mean for s in range(runs)])
        means.append(values.mean().item())
        errors.append(values.std().item() / math.sqrt(runs))
    assert means == sorted(means) and means[0] < means[1] - 4 * errors[1]
    assert elbo(vae, x, 500, seed=0).mean < means[0]
    assert means[-1] < log_p + 4 * errors[-1]


def test_log_mean_exp_by_hand() -> None:
    weights = torch.tensor([[1.0, 1e30], [2.0, 1e30], [3.0, 1e30]], dtype=torch.float64)
    value, error, ess = log_mean_exp(weights.log())
    torch.testing.assert_close(value, torch.tensor([math.log(2.0), math.log(1e30)], dtype=torch.float64))
    torch.testing.assert_close(error, torch.tensor([0.5 / math.sqrt(3), 0.0], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(ess, torch.tensor([36 / 14, 3.0], dtype=torch.float64))


def test_khat_has_the_right_sign() -> None:
    """N(0, I_3) target, proposal with half its scale: k̂ about 0.9; with the sign flipped it would be negative."""
    generator = torch.Generator().manual_seed(0)
    z = 0.5 * torch.randn(4000, 8, 3, generator=generator, dtype=torch.float64)
    log_w = -0.5 * z.square().sum(-1) + 0.5 * (z / 0.5).square().sum(-1)
    assert 0.7 < pareto_khat(log_w).mean() < 1.1
    assert pareto_khat(-log_w).max() < 0
    assert pareto_khat(torch.zeros(100, 1)).item() == -math.inf
    assert math.isnan(pareto_khat(log_w[:20]).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_khat_grows_with_the_spread_of_the_weights(dtype: torch.dtype) -> None:
    """Also where most weights vanish beside the largest: the Pareto shape of zeros must not look harmless."""
    log_w = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    shapes = torch.stack([pareto_khat((scale * log_w).to(dtype)) for scale in (0.1, 1.0, 3.0, 10.0, 100.0, 1e4)])
    assert (shapes[1:] >= shapes[:-1]).all()
    assert (shapes[0] < 0.7).all()
    assert (shapes[1:] > 0.7).all()
    assert pareto_khat(torch.full((100, 1), -torch.inf)).item() == math.inf, "no weight at all"


@pytest.mark.parametrize("lead", [12.0, 100.0, 1e4])
def test_khat_warns_of_one_sample_that_carries_the_sum(lead: float) -> None:
    log_w = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    log_w[0] = lead
    assert (pareto_khat(log_w) > 0.7).all()


def test_khat_warns_of_a_narrow_proposal(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, _, _ = best_member("gaussian", vae, x)
    narrow = Gaussian(3).posterior(q.params["mean"], q.params["logvar"] - 3)
    assert iwae(vae, x, 2000, q, seed=0).khat.median() < 0.6
    assert iwae(vae, x, 2000, narrow, seed=0).khat.median() > 0.7


@pytest.mark.parametrize("budget", [1, 700, 5000])
def test_memory_budget_does_not_matter(
    oracle: tuple[LinearGaussianVAE, Tensor], monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    vae, x = oracle
    q, exact, _ = best_member("full_gaussian", vae, x)  # the value of every sample is log p(x)
    whole = elbo(vae, x, 300, seed=0)
    sizes = []
    monkeypatch.setattr(evaluation, "_CHUNK_FLOATS", budget)
    original = vae.log_likelihood

    def watched(images: Tensor, z: Tensor) -> Tensor:
        sizes.append(len(images))
        return original(images, z)

    monkeypatch.setattr(vae, "log_likelihood", watched)
    for bound in (elbo(vae, x, 20, q, seed=0), iwae(vae, x, 20, q, seed=0)):
        torch.testing.assert_close(bound.per_image, exact, atol=5e-5, rtol=0)
    assert min(sizes) <= max(1, budget // 160)
    parts = elbo(vae, x, 300, seed=0)
    z = (parts.per_image - whole.per_image) / (parts.mcse_per_image**2 + whole.mcse_per_image**2).sqrt()
    assert z.abs().max() < 4.5


def test_image_chunks_cover_everything() -> None:
    for num, floats, most in ((1, 1, None), (10, 2**23, None), (1000, 784 * 100, None), (7, 2**30, 3), (1000, 1, 256)):
        parts = evaluation.image_chunks(num, floats, most)
        assert [i for p in parts for i in range(p.start, p.stop)] == list(range(num))
        widest = max(p.stop - p.start for p in parts)
        assert widest == 1 or widest * floats <= 2**24
        assert most is None or widest <= most


def test_seeds(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    for function in (elbo, iwae):
        state = torch.get_rng_state()
        a, b, c = (function(vae, x, 30, seed=s).per_image for s in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(5)
        d = function(vae, x, 30).per_image
        torch.manual_seed(5)
        assert torch.equal(d, function(vae, x, 30).per_image)


def test_bound_arithmetic() -> None:
    bound = Bound(torch.tensor([-1.0, -2.0]), torch.tensor([0.3, 0.4]), "lower", 10)
    assert bound.mean == -1.5 and abs(bound.mcse - 0.25) < 1e-7
    assert "-1.500 ± 0.250" in repr(bound)
    with pytest.raises(AttributeError):
        bound.kind = "upper"  # type: ignore[misc]
    assert replace(bound, kind="upper").kind == "upper"


# ---- input that must not become a number ----------------------------------------------------------------------------


def tiny() -> tuple[VAE, Tensor]:
    vae = VAE(5, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0)
    return vae, (torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()


@pytest.mark.parametrize("function", [elbo, iwae, vaegap.ais, vaegap.optimize_local, vaegap.gaps])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, -1.0])
def test_bad_pixels_name_the_image(function: object, value: float) -> None:
    vae, x = tiny()
    x[4, 2] = value
    with pytest.raises(InputError, match="image 4") as error:
        function(vae, x)  # type: ignore[operator]
    assert error.value.indices == [4]


@pytest.mark.parametrize("function", [elbo, iwae, vaegap.ais, vaegap.optimize_local, vaegap.gaps])
def test_bad_shapes_are_named(function: object) -> None:
    vae, x = tiny()
    for images, word in (
        (x[:0], "no images"),
        (x[:, :4], "5"),
        (x[:, :1], "5"),
        (x[0], "flatten"),
        (x[None], "flatten"),
    ):
        with pytest.raises(InputError, match=word):
            function(vae, images)  # type: ignore[operator]


@pytest.mark.parametrize("function", [elbo, iwae])
def test_posterior_of_other_images_is_refused(function: object) -> None:
    vae, x = tiny()
    q = vae.encode(x).detach()
    for images, posterior, word in ((x[:2], q, "6.*2"), (x, q[:1], "1.*6"), (x[:, :1], q, "5")):
        with pytest.raises(InputError, match=word):
            function(vae, images, posterior=posterior)  # type: ignore[operator]
    with pytest.raises(InputError, match="3.*2"):
        function(vae, x, posterior=Gaussian(3).posterior(torch.zeros(6, 3), torch.zeros(6, 3)))  # type: ignore[operator]


@pytest.mark.parametrize("function", [elbo, iwae])
def test_too_few_samples(function: object) -> None:
    with pytest.raises(InputError, match="num_samples=1"):
        function(*tiny(), num_samples=1)  # type: ignore[operator]


def broken(where: str, value: float) -> nn.Module:
    """A wrapped model whose encoder breaks on image 3, the one with all pixels on, or whose decoder breaks there."""
    layer = nn.Linear(2, 5)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        full = (x.sum(1) == 5).float().unsqueeze(1).expand(-1, 2)
        mean = torch.where(full > 0, value if where == "mean" else 9.0 if where == "decoder" else 0.0, 0.0)
        logvar = torch.where(full > 0, value if where == "logvar" else 0.0, 0.0)
        return mean, logvar - 4 * (where == "decoder")

    def decode(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 5, value if where == "decoder" else 0.0, layer(z))

    return wrap(encode, decode, 2)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("mean", math.nan),
        ("mean", 1e30),
        ("logvar", math.nan),
        ("logvar", 1000.0),
        ("logvar", -math.inf),
        ("decoder", math.nan),
        ("decoder", math.inf),
    ],
)
@pytest.mark.parametrize("function", [elbo, iwae, partial(vaegap.ais, num_temperatures=3)], ids=["elbo", "iwae", "ais"])
def test_overflow_names_the_image(function: object, where: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(6, 5)
    x[3] = 1
    monkeypatch.setattr(evaluation, "_CHUNK_FLOATS", 1)  # one image a chunk: the index must be that of the whole batch
    with pytest.raises(InputError, match="image 3") as error:
        function(broken(where, value), x)  # type: ignore[operator]
    assert error.value.indices == [3]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_encoding_in_parts_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VAE(6, 4, name, encoder_hidden=(5,), decoder_hidden=(5,), seed=0).eval()
    x = (torch.rand(7, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    whole = vae.encode(x)
    monkeypatch.setattr(evaluation, "_CHUNK_FLOATS", 16 * 6 * 2)  # parts of two, two, two and one
    parts = evaluation.encode(vae, x)
    assert whole.params.keys() == parts.params.keys()
    for key, value in whole.params.items():
        torch.testing.assert_close(parts.params[key], value)


def test_a_device_without_double_precision_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear_gaussian_vae()
    monkeypatch.setattr(LinearGaussianVAE, "device", property(lambda self: torch.device("mps")))
    with pytest.raises(InputError, match=r"no float64.*model.to\('cpu'\)"):
        vaegap.bdmc(vae, 3, seed=0)


def test_joined_bounds_keep_order_and_flags() -> None:
    one = Bound(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2]), "lower", 5, flagged={1: "a"})
    two = Bound(torch.tensor([3.0]), torch.tensor([0.3]), "lower", 5, ess=torch.tensor([4.0]))
    three = Bound(torch.tensor([4.0, 5.0]), torch.tensor([0.4, 0.5]), "lower", 5, flagged={0: "b"})
    joined = join_bounds([one, two, three])
    assert joined.per_image.tolist() == [1, 2, 3, 4, 5] and joined.flagged == {1: "a", 3: "b"}
    torch.testing.assert_close(joined.mcse_per_image, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert joined.ess is None and join_bounds([two, two]).ess is not None and join_bounds([two]).flagged is None
