"""Things that do not belong together are refused: posteriors of other images, decoders of other shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent

from vaegap import (
    VAE,
    InputError,
    ais,
    bdmc,
    elbo,
    exact,
    gaps,
    iwae,
    linear_gaussian_vae,
    optimize_local,
    quadrature,
    wrap,
)
from vaegap.energy import LogJoint
from vaegap.likelihoods import Bernoulli as BernoulliPixels
from vaegap.likelihoods import DiscretizedLogistic
from vaegap.local import RECIPES
from vaegap.posteriors import AuxFlow, Flow, Gaussian, Posterior, make_family

VAE_ = linear_gaussian_vae()
X = VAE_.simulate(6, seed=1)


@pytest.mark.parametrize("bound", [elbo, iwae, lambda v, x, **k: ais(v, x, base=k["posterior"]),
                                   lambda v, x, **k: optimize_local(v, x, start=k["posterior"])])  # fmt: skip
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda q: q[:4], "4 images"),
        (lambda q: make_family("gaussian", 3).posterior(q.mean[:, :3], q.mean[:, :3]), "3 latents"),
        (lambda q: replace(q, params={k: v.double() for k, v in q.params.items()}), "float64"),
    ],
)
def test_posteriors_of_something_else(bound: Callable[..., Any], spoil: Callable[..., Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bound(VAE_, X, posterior=spoil(VAE_.encode(X).detach()))


def test_a_base_that_is_a_function_is_checked_too() -> None:
    with pytest.raises(InputError, match="5 images"):
        bdmc(VAE_, 6, num_temperatures=3, base=lambda x: VAE_.encode(x[:5]))


def test_an_encoder_that_answers_for_other_images() -> None:
    vae = wrap(lambda x: VAE_.encode(x[:2]), VAE_.decode, 5, module=VAE_)
    with pytest.raises(InputError, match="2 images; it was given 6"):
        gaps(vae, X, certify=0)


@pytest.mark.parametrize(
    "decode",
    [
        lambda z: z.new_zeros(8, len(z)),
        lambda z: z.new_zeros(1, 8),
        lambda z: Bernoulli(logits=z.new_zeros(1, 8)),
        lambda z: Independent(Bernoulli(logits=z.new_zeros(8)), 1),
    ],
)
def test_decoders_whose_first_axis_is_not_the_latents(decode: Callable[[Tensor], Any]) -> None:
    vae = wrap(lambda x: (x[:, :2], x[:, :2] * 0), decode, 2)
    with pytest.raises(InputError, match="first axis"):
        elbo(vae, torch.ones(8, 8))


def test_complex_outputs_are_refused() -> None:
    vae = wrap(lambda x: (x[:, :2], x[:, :2] * 0), lambda z: z.new_zeros(len(z), 8).to(torch.complex64), 2)
    with pytest.raises(InputError, match="complex"):
        elbo(vae, torch.ones(3, 8))


class _Louder(VAE):
    def decoder_params(self, z: Tensor) -> Tensor:
        return 3 * super().decoder_params(z)


class _Sharper(BernoulliPixels):
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return super().log_prob(2 * params, x)


class _Decodes(VAE):
    def decode(self, z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=2 * self.decoder_params(z)), 1)


class _Tempered(VAE):
    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return self.log_prior(z) + 0.5 * self.log_likelihood(x, z)


def _changed(name: str) -> VAE:
    vae = VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    a, b, c = (m for m in vae.decoder if isinstance(m, nn.Linear))
    if name == "normed":
        vae.decoder = nn.Sequential(a, nn.LayerNorm(5), nn.ELU(), b, nn.ELU(), c)
    elif name == "leaky":
        vae.decoder = nn.Sequential(a, nn.LeakyReLU(), b, nn.LeakyReLU(), c)
    elif name == "mixed":
        vae.decoder = nn.Sequential(a, nn.Tanh(), b, nn.ReLU(), c)
    elif name == "no bias":
        vae.decoder = nn.Sequential(a, nn.Tanh(), nn.Linear(5, 6, bias=False))
    elif name == "sigmoid at the end":
        vae.decoder = nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), c, nn.Tanh())
    elif name == "tanh for elu":
        vae.decoder = nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), c)
    elif name == "hooked":
        vae.decoder.register_forward_hook(lambda module, given, out: 2 * out)
    elif name == "patched":
        before = vae.decoder_params
        vae.decoder_params = lambda z: 2 * before(z)
    elif name == "subclass":
        vae = _Louder(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    elif name == "forward of the decoder":
        whole = vae.decoder.forward
        vae.decoder.forward = lambda z: 2 * whole(z)
    elif name == "forward of a layer":
        layer = b.forward
        b.forward = lambda h: 2 * layer(h)
    elif name == "likelihood":
        vae.likelihood = _Sharper()
    elif name == "patched likelihood":
        usual = vae.likelihood.log_prob
        vae.likelihood.log_prob = lambda params, x: usual(2 * params, x)
    elif name == "decode alone":
        vae = _Decodes(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    elif name == "joint":
        vae = _Tempered(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    elif name == "alpha":
        vae.decoder = nn.Sequential(a, nn.ELU(alpha=0.3), b, nn.ELU(alpha=0.3), c)
    return vae


@pytest.mark.parametrize(
    "name",
    ["as it came", "normed", "leaky", "mixed", "no bias", "sigmoid at the end", "tanh for elu", "hooked", "patched",
     "subclass", "alpha", "forward of the decoder", "forward of a layer", "likelihood", "patched likelihood",
     "decode alone", "joint"],
)  # fmt: skip
def test_the_gradient_is_that_of_the_decoder_that_is_there(name: str) -> None:
    vae = _changed(name)
    x = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    z = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    (want,) = torch.autograd.grad(vae.log_joint(x, z).sum(), z)
    torch.testing.assert_close(LogJoint(vae, x).grad(z.detach()), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(LogJoint(vae, x).value(z.detach()), vae.log_joint(x, z).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [_Decodes, _Tempered])
def test_a_subclass_is_the_same_model_for_every_bound(changed: type[VAE]) -> None:
    vae = changed(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    x = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    log_p = iwae(vae, x, 20_000, seed=0)
    other = ais(vae, x, num_temperatures=30, num_chains=64, seed=0)
    error = (log_p.mcse_per_image**2 + other.mcse_per_image**2).sqrt()
    assert ((log_p.per_image - other.per_image).abs() < 5 * error).all()
    lower = elbo(vae, x, 2000, seed=0)
    assert (lower.per_image < log_p.per_image + 4 * error).all() and lower.mean > log_p.mean - 1
    usual = iwae(VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0), x, 5000, seed=0)
    assert abs(usual.mean - log_p.mean) > 0.05, "else this test would see nothing"


@pytest.mark.parametrize("width", [1, 5, 12])
def test_decoders_of_another_width(width: int) -> None:
    vae = VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(5, 5), seed=0)
    vae.decoder = nn.Linear(2, width)
    x = torch.ones(3, 6)
    for call in (lambda: elbo(vae, x), lambda: iwae(vae, x, 10), lambda: optimize_local(vae, x), lambda: ais(vae, x)):
        with pytest.raises(InputError, match=f"gives {width} numbers"):
            call()


def test_rows_that_go_with_nothing_and_whole_numbers_as_a_precision() -> None:
    q = VAE_.encode(X).detach()
    odd = replace(q, params={"mean": q.params["mean"], "logvar": q.params["logvar"][:4]})
    with pytest.raises(InputError, match="logvar has 4 rows for 6 images"):
        elbo(VAE_, X, posterior=odd)
    with pytest.raises(InputError, match="floating-point"):
        optimize_local(VAE_, X, force_dtype=torch.int32)


def test_chains_of_which_one_carries_the_weight_are_flagged() -> None:
    wild = make_family("gaussian", 5).posterior(torch.full((6, 5), 30.0), torch.full((6, 5), -9.0))
    found = ais(VAE_, X, num_temperatures=2, base=wild, seed=0)
    assert set(found.flagged or {}) == set(range(6))
    assert all("one of 16 chains" in why or "hardly move" in why for why in (found.flagged or {}).values())
    assert not ais(VAE_, X, num_temperatures=20, seed=0).flagged


def test_a_start_in_another_form_is_not_lost() -> None:
    """An amortized flow, far better than the Gaussian with its moments."""
    vae = VAE(6, 3, "aux_flow", (5,), (5,), family_options={"hidden": 8}, seed=0)
    x = (torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    other = VAE(6, 3, "aux_flow", (7,), (5,), family_options={"hidden": 12}, seed=3)
    q = other.encode(x).detach()
    brief = replace(RECIPES["aux_flow"], steps=30, rounds=1, repeats=0, start="")
    fit = optimize_local(vae, x, "aux_flow", start=q, num_eval=1000, recipe=brief, seed=0)
    before = elbo(vae, x, 1000, q, seed=9)
    error = (fit.bound.mcse_per_image**2 + before.mcse_per_image**2).sqrt()
    assert (before.per_image - fit.bound.per_image < 4 * error + 1e-3).all()


# ---- quadrature ----------------------------------------------------------------------------------------------------


def test_quadrature_names_images_where_the_decoder_overflows() -> None:
    def decode(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 6, torch.nan, 0.0) + z

    vae = wrap(lambda x: (x, x * 0), decode, 2, likelihood="gaussian")
    with pytest.raises(InputError, match="image 0.*overflows"):
        quadrature(vae, torch.zeros(3, 2), points=11)
    assert torch.isfinite(quadrature(vae, torch.zeros(3, 2), points=11, radius=3).log_p).all()


@pytest.mark.parametrize("wrong", [{"points": 1}, {"radius": 0.0}, {"radius": -1.0}, {"radius": float("nan")}])
def test_quadrature_refuses_grids_without_an_inside(wrong: dict[str, Any]) -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    with pytest.raises(InputError, match="points"):
        quadrature(vae, vae.simulate(2), **wrong)


def test_quadrature_of_other_images_posteriors_and_flags() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(5)
    truth = quadrature(vae, x, points=61)
    assert not truth.flagged and (truth.edge < 1e-6).all()
    with pytest.raises(InputError, match="3 images"):
        truth.kl(vae.encode(x[:3]))
    with pytest.raises(InputError, match="3 images"):
        truth.mass(vae.encode(x[:3]))
    coarse = quadrature(linear_gaussian_vae(data_dim=40, latent_dim=2, noise=0.01), torch.zeros(2, 40), points=5)
    assert coarse.flagged


def test_quadrature_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
    x = vae.simulate(7)
    whole = quadrature(vae, x, points=31)
    monkeypatch.setattr(exact, "_parts", lambda num, points: [slice(0, 3), slice(3, 6), slice(6, num)])
    parts = quadrature(vae, x, points=31)
    torch.testing.assert_close(parts.log_p, whole.log_p)
    torch.testing.assert_close(parts.log_posterior, whole.log_posterior)
    q = vae.encode(x)
    torch.testing.assert_close(parts.kl(q), quadrature(vae, x, points=31).kl(q))
    assert (parts.mass(q) - 1).abs().max() < 1e-4


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optimize_local(VAE_, X, Gaussian(3)), "3 latents"),
        (lambda: make_family(Flow(5), 5, hidden=3), "hidden"),
        (lambda: gaps(VAE_, X, num_chains=1), "num_chains=1"),
        (lambda: gaps(VAE_, X, ("laplace",)), "laplace"),
        (lambda: gaps(VAE_, X, (Gaussian(5),)), "unknown"),
        (
            lambda: gaps(linear_gaussian_vae(latent_dim=1), linear_gaussian_vae(latent_dim=1).simulate(3), "flow"),
            "halves",
        ),
        (lambda: elbo(VAE_, X.numpy()), "torch tensor"),
        (lambda: elbo(VAE_, X.tolist()), "torch tensor"),
        (lambda: DiscretizedLogistic().check(torch.full((2, 3), 0.1234)), "levels"),
    ],
)
def test_arguments_that_cannot_be_meant(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_an_encoder_of_an_unknown_family() -> None:
    class Wider(Gaussian):
        name = "wider"

    def encode(x: Tensor) -> Posterior:
        q = VAE_.encode(x)
        return Posterior(Wider(5), q.params)

    vae = wrap(encode, VAE_.decode, 5, module=VAE_)
    with pytest.raises(InputError, match="'wider' is not registered"):
        gaps(vae, X, certify=0)


def test_forms_that_are_optimised_as_they_are() -> None:
    for family in (Flow(2, whiten=False, hidden=7), AuxFlow(2, hidden=9, whiten=True)):
        fit = optimize_local(
            linear_gaussian_vae(latent_dim=2), linear_gaussian_vae(latent_dim=2).simulate(2), family,
            recipe=replace(RECIPES[family.name], steps=4, rounds=1, repeats=0), num_eval=20, seed=0,
        )  # fmt: skip
        assert fit.posterior.family.options["hidden"] == family.hidden
        assert fit.posterior.family.options["whiten"]


def test_no_seed_draws_one() -> None:
    torch.manual_seed(0)
    one = gaps(VAE_, X[:2], certify=0, seed=None, num_samples=10)
    two = gaps(VAE_, X[:2], certify=0, seed=None, num_samples=10)
    assert one.table["L_q"].tolist() != two.table["L_q"].tolist()


def test_wild_inputs_do_not_explode_a_full_covariance() -> None:
    vae = VAE(6, 4, "full_gaussian", (5,), (5,), activation="relu", seed=0)
    with torch.no_grad():
        for p in vae.head.parameters():
            p.normal_(0, 3)
    q = vae.encode(1e6 * torch.ones(2, 6))
    assert q.params["tril"].abs().max() <= 10 and (q.stddev < 200).all()
