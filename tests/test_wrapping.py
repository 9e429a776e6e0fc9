"""Anybody's model gives through `wrap` the numbers that it has, whatever its functions return."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from somebody import LATENT, D, Dense, same_elbo
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.distributions import Categorical as TorchCategorical

from vaegap import InputError, ais, elbo, linear_gaussian_vae, wrap
from vaegap.adapters import as_model
from vaegap.behind import modules_behind
from vaegap.likelihoods import Categorical, DiscretizedLogistic


def test_an_encoder_may_speak_in_many_ways(model: Dense, x: Tensor) -> None:
    reference = wrap(model.encode, model.decode, LATENT)
    ways = {
        "one tensor": model.encoder,
        "normal": lambda v: Normal(model.encode(v)[0], (0.5 * model.encode(v)[1]).exp()),
        "independent": lambda v: Independent(Normal(model.encode(v)[0], (0.5 * model.encode(v)[1]).exp()), 1),
    }
    for encode in ways.values():
        same_elbo(wrap(encode, model.decode, LATENT), reference, x)

    def spread(change: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = model.encode(v)
        return mean, change(logvar)

    scales = {"log_sigma": lambda s: s / 2, "sigma": lambda s: (s / 2).exp(), "variance": lambda s: s.exp()}
    for name, change in scales.items():
        same_elbo(wrap(partial(spread, change), model.decode, LATENT, encoder_scale=name), reference, x)


def test_a_full_covariance_encoder_keeps_its_correlations(model: Dense, x: Tensor) -> None:
    tril = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.1, 1.2]])
    vae = wrap(lambda v: MultivariateNormal(model.encode(v)[0], scale_tril=tril), model.decode, LATENT)
    z = torch.randn(4, len(x), LATENT)
    expected = MultivariateNormal(model.encode(x)[0], scale_tril=tril).log_prob(z)
    assert torch.allclose(vae.encode(x).log_prob(z), expected, atol=1e-4)


def test_a_decoder_may_return_logits_probabilities_or_a_distribution(model: Dense, x: Tensor) -> None:
    reference = wrap(model.encode, model.decode, LATENT)
    same_elbo(wrap(model.encode, lambda z: Bernoulli(logits=model.decode(z)), LATENT), reference, x)
    same_elbo(wrap(model.encode, lambda z: Independent(Bernoulli(logits=model.decode(z)), 1), LATENT), reference, x)
    pictures = wrap(model.encode, lambda z: Bernoulli(logits=model.decode(z).view(-1, 1, 3, 4)), LATENT)
    same_elbo(pictures, reference, x)
    probabilities = wrap(model.encode, lambda z: model.decode(z).sigmoid(), LATENT, probabilities=True)
    same_elbo(probabilities, reference, x)


def test_a_scale_that_the_decoder_predicts(x: Tensor) -> None:
    model = Dense(2 * D)

    def normal(z: Tensor) -> Normal:
        mean, log_scale = model.decode(z).chunk(2, -1)
        return Normal(mean, log_scale.exp())

    same_elbo(wrap(model.encode, model.decode, LATENT, "gaussian", scale=None), wrap(model.encode, normal, LATENT), x)


@pytest.mark.parametrize("likelihood", [Categorical(4), DiscretizedLogistic(4)], ids=lambda v: v.name)
def test_discrete_pixels(likelihood) -> None:
    model = Dense(D * likelihood.params_per_pixel)
    levels = torch.randint(4, (5, D)).float()
    x = levels if likelihood.name == "categorical" else levels / 3
    vae = wrap(model.encode, model.decode, LATENT, likelihood)
    z = torch.randn(6, 5, LATENT)
    assert torch.allclose(vae.log_likelihood(x, z), vae.decode(z).log_prob(x), atol=1e-4)
    assert elbo(vae, x, 10, seed=0).mean < 0


def test_another_prior_is_another_model() -> None:
    """z ~ N(m, s²) in front of W z + b is z ~ N(0, I) in front of (W s) z + (W m + b)."""
    plain = linear_gaussian_vae(6, 2, seed=3)
    loc, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    shifted = wrap(
        lambda v: (loc + scale * plain.encode(v).mean, plain.encode(v).params["logvar"] + 2 * scale.log()),
        lambda z: plain.decoder((z - loc) / scale),
        2,
        "gaussian",
        prior=Independent(Normal(loc, scale), 1),
        scale=plain.noise,
        module=plain,
    )
    x = plain.simulate(20, seed=0)
    assert torch.allclose(elbo(shifted, x, 2000, seed=0).per_image, elbo(plain, x, seed=0).per_image, atol=0.2)
    estimate = ais(shifted, x, num_temperatures=20, seed=0)
    assert abs(estimate.mean - plain.log_evidence(x).mean().item()) < 4 * estimate.mcse + 0.02
    first = shifted.sample_prior(5, torch.Generator().manual_seed(1))
    assert torch.equal(first, shifted.sample_prior(5, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_single_precision_results(model: Dense, x: Tensor, dtype: torch.dtype) -> None:
    reference = elbo(wrap(model.encode, model.decode, LATENT), x, 50, seed=0)
    half = model.to(dtype)
    seen: set[torch.dtype] = set()
    half.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    vae = wrap(half.encode, half.decode, LATENT)
    bound = elbo(vae, x, 50, seed=0)
    assert seen == {dtype}
    assert vae.encode(x).mean.dtype == torch.float32
    assert abs(bound.mean - reference.mean) < 0.1


def test_an_operation_without_half_precision_is_named_with_its_cure(model: Dense, x: Tensor) -> None:
    def refuses(z: Tensor) -> Tensor:
        raise RuntimeError("\"some_kernel\" not implemented for 'Half'")

    with pytest.raises(InputError, match=r"call \.float\(\)"):
        elbo(wrap(model.half().encode, refuses, LATENT), x, 4)


def test_modules_are_found_behind_functions() -> None:
    layer, other = nn.Linear(2, 2), nn.Dropout()
    holder = type("Holder", (), {"call": lambda self, z: self.net(z)})()
    holder.net = other
    vae = wrap(lambda v: (layer(v), layer(v)), holder.call, 2)
    assert set(vae.registered) == {layer, other}
    assert set(vae.parameters()) == set(layer.parameters())


class Trainer:
    """Holds networks in an attribute and in a list, as many training loops do."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        self.net, self.others = net, [other]

    def decode(self, z: Tensor) -> Tensor:
        return self.others[0](z)


def test_modules_are_found_in_lists_dicts_and_objects() -> None:
    layer, other = nn.Linear(2, 2), nn.Dropout()
    nets, listed, trainer = {"net": layer}, [(layer,)], Trainer(layer, other)
    for decode in (
        lambda z: nets["net"](z),
        lambda z: listed[0][0](z),
        lambda z: trainer.net(z),
        partial(lambda held, z: held["net"](z), nets),
    ):
        assert layer in modules_behind(decode)
    assert other in modules_behind(trainer.decode)
    assert other in modules_behind(lambda z: trainer.decode(z))
    assert modules_behind(torch.tanh) == modules_behind(lambda z: nn.functional.relu(z)) == []


def test_levels_of_a_convolution_are_found_on_its_first_axis() -> None:
    """`cross_entropy` takes (M, levels, H, W), and so do decoders that were trained with it."""
    torch.manual_seed(0)
    deep = nn.Linear(LATENT, 5 * D)
    x, z = torch.randint(5, (7, D)).float(), torch.randn(1, 7, LATENT)
    encoder = nn.Linear(D, 2 * LATENT)
    vae = wrap(encoder, lambda v: deep(v).reshape(-1, 5, 3, 4), LATENT, "categorical", levels=5)
    logits = deep(z[0]).reshape(7, 5, 3, 4)
    right = -nn.functional.cross_entropy(logits, x.long().reshape(7, 3, 4), reduction="none").sum((1, 2))
    torch.testing.assert_close(vae.log_likelihood(x, z)[0], right)
    unclear = wrap(encoder, lambda v: deep(v)[:, : 3 * 16].reshape(-1, 4, 3, 4), LATENT, "categorical", levels=4)
    with pytest.raises(InputError, match="both its first and its last axis"):
        unclear.log_likelihood(x, z)


def test_options_that_nobody_takes_are_refused(model: Dense, x: Tensor) -> None:
    with pytest.raises(InputError, match="bernoulli likelihood has no option 'scale'"):
        wrap(model.encode, model.decode, LATENT, scale=0.1)
    vae = wrap(model.encode, model.decode, LATENT)
    with pytest.raises(InputError, match="leave out likelihood, nonsense"):
        as_model(vae, x, likelihood="gaussian", nonsense=3)


def test_a_diverged_trajectory_has_no_density_and_stops_nothing(model: Dense, x: Tensor) -> None:
    """torch's distributions raise at NaN; HMC has to be able to reject it."""
    prior = Independent(Normal(torch.zeros(LATENT), torch.ones(LATENT)), 1)
    vae = wrap(model.encode, lambda z: Bernoulli(logits=model.decode(z)), LATENT, prior=prior)
    z = torch.randn(2, len(x), LATENT)
    expected = vae.log_joint(x, z)
    z[0, 3, 1], z[1, 0, 0] = torch.nan, torch.inf
    value = vae.log_joint(x, z)
    assert value[0, 3] == value[1, 0] == -torch.inf
    rest = torch.isfinite(value)
    assert rest.sum() == value.numel() - 2 and torch.equal(value[rest], expected[rest])


def test_failures_of_somebodys_code_are_told_with_their_line(model: Dense, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"decoder failed .*\(test_wrapping.py, line \d+\): KeyError: 'mu'"):
        elbo(wrap(model.encode, lambda z: {}["mu"], LATENT), x, 4)


BELL = Independent(Normal(torch.zeros(LATENT), torch.ones(LATENT)), 1)


@pytest.mark.parametrize(
    ("prior", "fits"),
    [
        (Independent(Uniform(-5 * torch.ones(LATENT), 5 * torch.ones(LATENT)), 1), False),
        (Independent(LogNormal(torch.zeros(LATENT), 1.0), 1), False),
        (Independent(Laplace(torch.zeros(LATENT), 1.0), 1), True),
        (MultivariateNormal(torch.zeros(LATENT), torch.eye(LATENT)), True),
        (MixtureSameFamily(TorchCategorical(torch.ones(2)), BELL.expand([2])), True),
    ],
    ids=["uniform", "log-normal", "laplace", "multivariate normal", "mixture"],
)
def test_a_prior_without_density_everywhere_is_refused(model: Dense, prior: Distribution, fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(InputError, match="minus infinity"):
        assert wrap(model.encode, model.decode, LATENT, prior=prior).prior is prior
