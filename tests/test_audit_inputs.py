"""What would make an audit's numbers wrong is noticed, and named with its cure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from somebody import binary, pair
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vaegap import InputError, audit, linear_gaussian_vae, optimize_local, wrap
from vaegap.examining import examine
from vaegap.readings import scale_readings

QUICK = {"certify": 10, "num_samples": 60, "num_images": 16, "check_modes": False}


@pytest.fixture(scope="module")
def oracle():
    return linear_gaussian_vae(encoder_error=0.3)


@pytest.mark.parametrize("scale", ["log_sigma", "sigma", "variance"])
def test_an_encoder_that_returns_something_else_than_a_log_variance(oracle, scale: str) -> None:
    change = {"log_sigma": lambda s: s / 2, "sigma": lambda s: (s / 2).exp(), "variance": lambda s: s.exp()}[scale]

    def encode(v: Tensor) -> tuple[Tensor, Tensor]:
        q = oracle.encode(v)
        return q.mean, change(q.params["logvar"])

    x = oracle.simulate(30, seed=1)
    best = optimize_local(oracle, x, seed=0).posterior
    vae = wrap(encode, oracle.decoder, 5, "gaussian", scale=oracle.noise)
    (found,) = scale_readings(vae, x, best)
    assert found.kind == "scale"
    assert f"encoder_scale='{scale}'" in found.cure
    assert not scale_readings(
        wrap(encode, oracle.decoder, 5, "gaussian", encoder_scale=scale, scale=oracle.noise), x, best
    )


def test_mean_and_log_variance_swapped(oracle) -> None:
    def encode(v: Tensor) -> tuple[Tensor, Tensor]:
        q = oracle.encode(v)
        return q.params["logvar"], q.mean

    x = oracle.simulate(30, seed=1)
    vae = wrap(encode, oracle.decoder, 5, "gaussian", scale=oracle.noise)
    (found,) = scale_readings(vae, x, optimize_local(oracle, x, seed=0).posterior)
    assert found.cure.startswith("return (mean, logvar)")


def test_the_audit_itself_warns_of_a_wrong_scale(oracle) -> None:
    vae = wrap(lambda v: (oracle.encode(v).mean, oracle.encode(v).params["logvar"] / 2), oracle.decoder, 5, "gaussian",
               scale=oracle.noise)  # fmt: skip
    result = audit(vae, oracle.simulate(30, seed=1), **(QUICK | {"certify": 0}))
    assert result.findings[0].kind == "scale"
    assert "log-sigma" in repr(result)


def test_probabilities_given_as_logits() -> None:
    x = torch.cat([torch.zeros(20, 15), torch.ones(20, 5)], 1)
    encoder, decoder = pair()
    with torch.no_grad():
        decoder.bias.copy_(8 * x[0] - 4)
    for decode in (lambda z: decoder(z).sigmoid(), lambda z: Bernoulli(logits=decoder(z).sigmoid())):
        (found,) = examine(wrap(encoder, decode, 3).eval(), x)
        assert found.kind == "probabilities"
        assert "probabilities=True" in found.cure
    assert examine(wrap(encoder, decoder, 3).eval(), x) == []


def test_logits_given_as_probabilities() -> None:
    encoder, decoder = pair()
    with pytest.raises(InputError, match="they are logits"):
        examine(wrap(encoder, decoder, 3, probabilities=True), binary())
    with pytest.raises(InputError, match=r"Bernoulli\(logits=\.\.\.\)"):
        examine(wrap(encoder, lambda z: Bernoulli(probs=decoder(z)), 3), binary())


def test_images_on_another_scale() -> None:
    encoder, decoder = pair()
    with pytest.raises(InputError, match=r"x >= 127\.5"):
        audit(wrap(encoder, decoder, 3), 255 * binary())
    with pytest.raises(InputError, match="x / 255"):
        audit(wrap(encoder, lambda z: Bernoulli(logits=decoder(z)), 3), 255 * binary())
    with pytest.raises(InputError, match="scaled as in training"):
        audit(wrap(encoder, decoder, 3, "gaussian"), 255 * binary())
    bounded = nn.Sequential(encoder, nn.Tanh())
    (found,) = examine(wrap(bounded, lambda z: decoder(z).sigmoid(), 3, "gaussian", scale=0.1).eval(), 255 * binary())
    assert found.kind == "pixel_range"
    assert "x / 255" in found.cure
    with pytest.raises(InputError, match="divide by 255"):
        audit(wrap(encoder, nn.Linear(3, 40), 3, "discretized_logistic"), 255 * binary())


@pytest.mark.parametrize(
    ("latent", "outputs", "options", "says"),
    [
        (4, 20, {}, "latent_dim=4"),
        (3, 19, {}, "19 numbers an image"),
        (3, 20, {"likelihood": "gaussian", "scale": None}, "need 40"),
        (3, 20, {"data_shape": (1, 4, 4)}, "says 16"),
        (3, 20, {"data_shape": (1, 4, 5)}, "encoder failed on input of shape"),
    ],
)
def test_sizes_that_do_not_match(latent: int, outputs: int, options: dict, says: str) -> None:
    vae = wrap(nn.Linear(20, 6), nn.Linear(3, outputs), latent, **options)
    with pytest.raises(InputError, match=says):
        audit(vae, binary())


def test_a_decoder_for_other_latents() -> None:
    with pytest.raises(InputError, match="does latent_dim=3 match the decoder"):
        audit(wrap(nn.Linear(20, 6), nn.Linear(5, 20), 3), binary())


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(0, 20), "holds no images"),
        (torch.zeros(20), "holds no images"),
        (np.array(["a", "b"]), "no array of numbers"),
        (binary().index_fill(1, torch.tensor([3]), torch.nan), "NaN"),
        (torch.zeros(3, 20, dtype=torch.complex64), "complex"),
    ],
    ids=["none", "one row", "text", "nan", "complex"],
)
def test_images_that_are_none(x: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        audit(wrap(*pair(), 3), x)


def test_an_encoder_that_depends_on_chance_or_on_the_batch() -> None:
    encoder, decoder = pair()
    drop = wrap(lambda v: encoder(nn.functional.dropout(v, training=True)), decoder, 3)
    assert [f.kind for f in examine(drop.eval(), binary())] == ["random_encoder"]
    batch = wrap(lambda v: encoder(v - v.mean(0)), decoder, 3)
    assert [f.kind for f in examine(batch.eval(), binary())] == ["batch_dependent"]


def test_encoders_that_return_nonsense() -> None:
    _, decoder = pair()
    for encode, says in (
        (lambda v: (v[:, :3],) * 3, "returns 3 values"),
        (lambda v: {"mean": v}, "returns a dict"),
        (lambda v: None, "returns a NoneType"),
        (lambda v: (v[:, :3], v[:, :3] + 1e4), "not usable for 20 of 20 images"),
        (lambda v: torch.distributions.Laplace(v[:, :3], 1.0), "Laplace"),
    ):
        with pytest.raises(InputError, match=says):
            audit(wrap(encode, decoder, 3), binary())
        if "returns" in says:  # the encoder is asked for the latent size
            with pytest.raises(InputError, match=says):
                audit((encode, decoder), binary())


# ---- decoders that cannot be differentiated, or are no functions ----------------------------------------------------


class Rounding(torch.autograd.Function):
    """Changes in steps, with a gradient of zero between them."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return (3 * z).round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def without_gradient(kind: str, decoder: nn.Module):
    return {
        "no_grad": torch.no_grad()(lambda z: decoder(z)),
        "detach": lambda z: decoder(z).detach(),
        "detached latents": lambda z: decoder(z.detach()),
        "numpy": lambda z: torch.from_numpy(decoder(z).detach().numpy()),
        "zero": lambda z: decoder(Rounding.apply(z)),
    }[kind]


@pytest.mark.parametrize("kind", ["no_grad", "detach", "detached latents", "numpy", "zero"])
def test_a_decoder_without_a_gradient_is_refused(kind: str) -> None:
    """AIS and q* would stay where they start: the encoder would look perfect."""
    encoder, decoder = pair()
    with pytest.raises(InputError, match="decode must be differentiable in z"):
        examine(wrap(encoder, without_gradient(kind, decoder), 3), binary())


def test_a_gradient_of_nan_is_refused() -> None:
    encoder, decoder = pair()
    vae = wrap(encoder, lambda z: decoder(z) + (0 * z[:, :1]).sqrt(), 3)
    with pytest.raises(InputError, match="NaN or infinite for 20 of 20 images") as error:
        examine(vae, binary())
    assert error.value.indices == list(range(20))


def test_a_gradient_that_is_not_the_slope_is_noticed() -> None:
    encoder, decoder = pair()
    half = wrap(encoder, lambda z: decoder(torch.cat([z[:, :1], z[:, 1:].detach()], 1)), 3)
    assert [f.kind for f in examine(half.eval(), binary())] == ["wrong_gradient"]


def test_a_decoder_that_ignores_its_latents_is_audited_and_said_so() -> None:
    encoder, decoder = pair()
    nn.init.zeros_(decoder.weight)
    assert [f.kind for f in examine(wrap(encoder, decoder, 3).eval(), binary())] == ["ignored_latents"]


def test_a_decoder_that_depends_on_chance_or_on_the_batch() -> None:
    encoder, decoder = pair()
    drop = wrap(encoder, lambda z: nn.functional.dropout(decoder(z), training=True), 3)
    assert [f.kind for f in examine(drop.eval(), binary())] == ["random_decoder"]
    batch = wrap(encoder, lambda z: decoder(z - z.mean(0)), 3)
    assert [f.kind for f in examine(batch.eval(), binary())] == ["batch_dependent"]


class Hidden:
    """Keeps a network where nobody looks."""

    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net


def test_what_nobody_can_reach_is_said() -> None:
    encoder, decoder = pair()
    hidden = Hidden(decoder)
    (found,) = examine(wrap(encoder, lambda z: hidden.net(z), 3).eval(), binary())
    assert (found.kind, found.severity) == ("no_module", "note")
    assert "behind decode" in found.message
    norm = Hidden(nn.Sequential(nn.BatchNorm1d(3), decoder))
    with pytest.raises(InputError, match="batch norm is in training mode"):
        examine(wrap(encoder, lambda z: norm.net(z), 3).eval(), binary())


def test_batch_statistics_behind_a_dict_are_left_alone() -> None:
    encoder, decoder = pair()
    nets = {"decoder": nn.Sequential(nn.BatchNorm1d(3), decoder)}
    before = {k: v.clone() for k, v in nets["decoder"].state_dict().items()}
    found = examine(wrap(encoder, lambda z: nets["decoder"](z), 3), binary())
    assert [f.kind for f in found] == ["training_mode"]
    assert all(torch.equal(v, before[k]) for k, v in nets["decoder"].state_dict().items())


def test_a_decoder_that_gives_nan() -> None:
    encoder, decoder = pair()
    for decode in (lambda z: decoder(z) * torch.nan, lambda z: Bernoulli(logits=decoder(z) * torch.nan)):
        with pytest.raises(InputError, match="NaN"):
            audit(wrap(encoder, decode, 3), binary())


# ---- sizes, numbers and names ---------------------------------------------------------------------------------------

DECODERS = {
    "Laplace": lambda mean: torch.distributions.Laplace(mean, 1.0),
    "StudentT": lambda mean: torch.distributions.Independent(torch.distributions.StudentT(5.0, mean, 1.0), 1),
    "MultivariateNormal": lambda mean: torch.distributions.MultivariateNormal(mean, torch.eye(20)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_images_on_another_scale_than_any_real_valued_decoder(name: str) -> None:
    encoder, decoder = pair()
    bounded = nn.Sequential(encoder, nn.Tanh())
    found = examine(wrap(bounded, lambda z: DECODERS[name](decoder(z).sigmoid()), 3).eval(), 255 * binary())
    assert "pixel_range" in [f.kind for f in found]


def test_images_are_named_by_the_users_numbers() -> None:
    vae = linear_gaussian_vae()
    x = vae.simulate(300, seed=1)
    bad = 211
    x[bad, 3] = torch.nan
    for seed in range(100):  # until it is among the images that are drawn, and at another place
        drawn = torch.randperm(300, generator=torch.Generator().manual_seed(seed))[:50]
        if bad in drawn:
            break
    for images in ((x, None), (x[:2].nan_to_num(), x)):
        with pytest.raises(InputError, match=f"first: image {bad}") as error:
            audit(vae, *images, num_images=50, certify=0, seed=seed)
        assert error.value.indices == [bad]
        assert str(error.value).startswith("held-out") == (images[1] is not None)


def test_one_image_is_too_few() -> None:
    vae = linear_gaussian_vae()
    x = vae.simulate(5, seed=1)
    with pytest.raises(InputError, match="x holds a single image"):
        audit(vae, x[:1])
    with pytest.raises(InputError, match="heldout holds a single image"):
        audit(vae, x, x[:1])


def test_families_that_cannot_be() -> None:
    vae = linear_gaussian_vae(4, 1)
    with pytest.raises(InputError, match="'flow' does not go with latent_dim=1"):
        audit(vae, vae.simulate(5), families=("flow",))
    with pytest.raises(InputError, match="unknown posterior families 'flows'"):
        audit(vae, vae.simulate(5), families="flows")
