"""Likelihoods: constants kept, gradients right, fast versions equal to torch's, impossible images refused."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from vaegap import InputError
from vaegap.fast import bernoulli_log_prob, elu, elu_
from vaegap.likelihoods import Bernoulli, Categorical, DiscretizedLogistic, Gaussian, Likelihood, make_likelihood

LIKELIHOODS = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(0.3),
    "gaussian_free": Gaussian(None),
    "discretized_logistic": DiscretizedLogistic(16),
    "categorical": Categorical(5),
}


def draw(name: str, dtype: torch.dtype = torch.float64, pixels: int = 6) -> tuple[Likelihood, Tensor, Tensor]:
    """A likelihood with parameters (4, 3, P) and images (3, D)."""
    generator = torch.Generator().manual_seed(0)
    kind = LIKELIHOODS[name]
    params = torch.randn(4, 3, pixels * kind.params_per_pixel, generator=generator, dtype=dtype)
    u = torch.rand(3, pixels, generator=generator, dtype=dtype)
    x = {
        "bernoulli": (u < 0.5).to(dtype),
        "discretized_logistic": (u * 15).round() / 15,
        "categorical": (u * 4.99).floor(),
    }.get(name, 3 * u - 1)
    if name == "discretized_logistic":
        x[0, :2] = torch.tensor([0.0, 1.0])
    return kind, params, x


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_the_distributions(name: str) -> None:
    kind, params, x = draw(name)
    value = kind.log_prob(params, x)
    distribution = kind.distribution(params)
    assert value.shape == distribution.batch_shape == (4, 3) and distribution.event_shape == (6,)
    torch.testing.assert_close(value, distribution.log_prob(x), atol=1e-10, rtol=0)
    sample = distribution.sample()
    assert sample.shape == (4, 3, 6)
    kind.check(sample.flatten(0, 1))  # what it draws is what it takes
    assert distribution.sample((2,)).shape == (2, 4, 3, 6)


def test_against_scipy() -> None:
    kind, params, x = draw("bernoulli")
    expected = scipy.stats.bernoulli.logpmf(x, torch.sigmoid(params)).sum(-1)
    torch.testing.assert_close(kind.log_prob(params, x), torch.from_numpy(expected))
    kind, params, x = draw("gaussian")
    expected = scipy.stats.norm.logpdf(x, params, 0.3).sum(-1)
    torch.testing.assert_close(kind.log_prob(params, x), torch.from_numpy(expected))
    kind, params, x = draw("gaussian_free")
    expected = scipy.stats.norm.logpdf(x, params[..., :6], params[..., 6:].exp()).sum(-1)
    torch.testing.assert_close(kind.log_prob(params, x), torch.from_numpy(expected))
    kind, params, x = draw("categorical")
    chosen = scipy.special.log_softmax(params.unflatten(-1, (6, 5)).numpy(), -1)
    index = x.long()[None, :, :, None].expand(4, -1, -1, -1).numpy()
    expected = torch.from_numpy(chosen).gather(-1, torch.from_numpy(index)).squeeze(-1).sum(-1)
    torch.testing.assert_close(kind.log_prob(params, x), expected)


def test_discretized_logistic_is_a_difference_of_distribution_functions() -> None:
    kind, params, x = draw("discretized_logistic")
    mean, scale, half = params[..., :6], params[..., 6:].exp(), 0.5 / 15
    upper = torch.from_numpy(scipy.stats.logistic.cdf((x + half - mean) / scale))
    lower = torch.from_numpy(scipy.stats.logistic.cdf((x - half - mean) / scale))
    upper, lower = torch.where(x == 1, 1.0, upper), torch.where(x == 0, 0.0, lower)
    torch.testing.assert_close(kind.log_prob(params, x), (upper - lower).log().sum(-1), atol=1e-8, rtol=0)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_discretized_logistic_sums_to_one(levels: int) -> None:
    kind = DiscretizedLogistic(levels)
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(20, 2, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 3.0])
    grid = torch.linspace(0, 1, levels, dtype=torch.float64)[:, None, None]
    total = kind.log_prob(params, grid).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


def test_discretized_logistic_far_from_its_mean_is_finite() -> None:
    value = DiscretizedLogistic().log_prob(torch.tensor([[50.0, -7.0]]), torch.tensor([[0.5]]))
    assert -1e6 < value.item() < -1e4


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_written_out_gradient(name: str, dtype: torch.dtype) -> None:
    kind, params, x = draw(name, dtype)
    params.requires_grad_(True)
    value = kind.log_prob(params, x)
    (auto,) = torch.autograd.grad(value.sum(), params)
    assert value.dtype == auto.dtype == dtype and torch.isfinite(auto).all()
    written = kind.grad(params.detach(), x)
    if name in ("bernoulli", "gaussian"):
        assert written is not None
    if written is not None:
        torch.testing.assert_close(written, auto, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 64, 100, 784, 3072])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-3), (torch.float64, 1e-10)])
def test_fast_bernoulli(width: int, dtype: torch.dtype, atol: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 10 * torch.randn(5, 3, width, generator=generator, dtype=dtype)
    logits[0, 0, 0], logits[1, 0, 0] = 100.0, -100.0
    x = (torch.rand(3, width, generator=generator) < 0.5).to(dtype)
    before = logits.clone()
    expected = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli_log_prob(logits, x), expected, atol=atol, rtol=2e-6)
    assert torch.equal(logits, before)
    level = torch.zeros(1, 1, width, dtype=dtype)  # all factors at their largest: a product of too many would overflow
    assert abs(bernoulli_log_prob(level, x[:1]).item() + width * math.log(2)) < 1e-6 * width
    torch.testing.assert_close(bernoulli_log_prob(logits, x[:1]), bernoulli_log_prob(logits, x[:1].expand(3, -1)))


def test_fast_functions_have_the_right_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    x = (torch.rand(3, 8, generator=generator) < 0.5).double()
    assert torch.autograd.gradcheck(lambda a: bernoulli_log_prob(a, x), (logits,))
    soft = torch.rand(2, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bernoulli_log_prob, (logits, soft))  # images may need a gradient too
    assert torch.autograd.gradcheck(elu, (logits,))
    a = torch.linspace(-30, 30, 1001)
    torch.testing.assert_close(elu(a), F.elu(a), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(elu_(a.clone()), F.elu(a), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_images_with_nan_are_named(name: str) -> None:
    kind, _, x = draw(name)
    for bad in (math.nan, math.inf):
        x[2, 1] = bad
        with pytest.raises(InputError, match="image 2") as error:
            kind.check(x)
        assert error.value.indices == [2]


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("bernoulli", 0.5, "[Bb]inar"),
        ("bernoulli", 255.0, "[Bb]inar"),
        ("discretized_logistic", 255.0, "divide"),
        ("categorical", 0.5, "whole"),
        ("categorical", 5.0, "whole"),
        ("categorical", -1.0, "whole"),
    ],
)
def test_impossible_pixels_are_refused(name: str, value: float, word: str) -> None:
    kind, _, x = draw(name)
    kind.check(x)
    x[1, 0] = value
    with pytest.raises(InputError, match=word) as error:
        kind.check(x)
    assert error.value.indices == [1] and "image 1" in str(error.value)


def test_by_name() -> None:
    for name in ("bernoulli", "gaussian", "discretized_logistic", "categorical"):
        assert make_likelihood(name).name == name
    own = Gaussian(0.1)
    assert make_likelihood(own) is own
    with pytest.raises(InputError, match="poisson.*bernoulli"):
        make_likelihood("poisson")
    with pytest.raises(InputError, match="positive"):
        Gaussian(0.0)


def test_options_of_another_likelihood_are_refused() -> None:
    with pytest.raises(InputError, match="bernoulli likelihood has no option 'scale'.*none"):
        make_likelihood("bernoulli", scale=0.1)
    with pytest.raises(InputError, match="has its options already"):
        make_likelihood(Gaussian(0.1), scale=0.2)


def test_levels_lie_on_the_first_or_the_last_axis() -> None:
    kind = Categorical(5)
    out = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(kind.rows(out), out.flatten(1))
    torch.testing.assert_close(kind.rows(out.movedim(-1, 1)), out.flatten(1))
    torch.testing.assert_close(kind.rows(out.flatten(1)[:, :, None, None]), out.flatten(1))
    for unclear in (torch.zeros(2, 5, 4, 5), torch.zeros(2, 15, 4, 4)):
        with pytest.raises(InputError, match="5 levels of a categorical pixel"):
            kind.rows(unclear)
