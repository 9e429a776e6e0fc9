"""VAEs rebuild from their configuration; anybody's model fits behind `wrap`, and wrong shapes are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from oracles import FAMILY_NAMES
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal

import vaegap
from vaegap import VAE, InputError, wrap
from vaegap.fast import ELU, MLP
from vaegap.models import Model

CONFIGS: list[dict[str, Any]] = [
    *[{"family": name} for name in FAMILY_NAMES],
    {"activation": "tanh", "decoder_hidden": (), "encoder_hidden": (7, 5, 3)},
    {"likelihood": "gaussian", "likelihood_options": {"scale": 0.2}},
    {"likelihood": "discretized_logistic"},
    {"family": "aux_flow", "family_options": {"hidden": 9, "num_steps": 3}},
    {"data_shape": (2, 2, 3)},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_configuration_round_trip(options: dict[str, Any]) -> None:
    vae = VAE(**{"data_shape": 12, "latent_dim": 3, "encoder_hidden": (6,), "decoder_hidden": (5,), **options}, seed=0)
    twin = VAE(**json.loads(json.dumps(vae.config)), seed=1)
    assert twin.config == vae.config
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in vae.state_dict().items()}
    twin.load_state_dict(vae.state_dict())
    x, z = (torch.rand(4, 12) < 0.5).float(), torch.randn(2, 4, 3)
    assert torch.equal(vae.log_joint(x, z), twin.log_joint(x, z))
    assert torch.equal(vae.encode(x).params["mean"], twin.encode(x).params["mean"])
    same = VAE(**{**vae.config, "seed": 0})
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), same.state_dict().values(), strict=True))
    distribution = vae.decode(z)
    assert isinstance(distribution, Distribution)
    torch.testing.assert_close(vae.log_joint(x, z), distribution.log_prob(x) + vae.log_prior(z), atol=1e-4, rtol=1e-5)
    assert distribution.sample().shape == (2, 4, 12)


def test_seed_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    VAE(4, 2, encoder_hidden=(), decoder_hidden=(), seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_prior_is_normalized_and_double_precision_kept() -> None:
    vae = VAE(4, 2, encoder_hidden=(3,), decoder_hidden=(3,), seed=0).double()
    grid = torch.linspace(-8, 8, 161, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    assert abs(vae.log_prior(points).exp().sum().item() * 0.01 - 1) < 1e-9
    assert vae.dtype == vae.check(torch.ones(1, 4)).dtype == vae.sample_prior(3).dtype == torch.float64


def test_convolutional_architecture_is_the_papers() -> None:
    """Section 4.1: 64-128-256 channels, kernels of 4, stride 2, 32-15-6-2 pixels, batch norm, 50 latents."""
    vae = VAE(
        (3, 32, 32), 50, encoder_hidden=(64, 128, 256), decoder_hidden=(64, 128, 256), architecture="conv", seed=0
    )
    shapes = [
        (type(m).__name__, tuple(m.weight.shape), getattr(m, "output_padding", None))
        for m in vae.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    assert [s[:2] for s in shapes] == [
        ("Conv2d", (64, 3, 4, 4)),
        ("Conv2d", (128, 64, 4, 4)),
        ("Conv2d", (256, 128, 4, 4)),
        ("Linear", (1024, 50)),
        ("ConvTranspose2d", (256, 128, 4, 4)),
        ("ConvTranspose2d", (128, 64, 4, 4)),
        ("ConvTranspose2d", (64, 3, 4, 4)),
        ("Linear", (100, 1024)),
    ]
    assert [s[2] for s in shapes if s[0] == "ConvTranspose2d"] == [(0, 0), (1, 1), (0, 0)]
    strides = {m.stride for m in vae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    assert strides == {(2, 2)}
    norms = [m.num_features for m in vae.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [64, 128, 256, 128, 64]
    vae.eval()
    x = (torch.rand(2, 3072) < 0.5).float()
    sizes = []
    h = x
    for layer in vae.features:
        h = layer(h)
        if isinstance(layer, nn.Conv2d):
            sizes.append(h.shape[-1])
    assert sizes == [15, 6, 2]
    with torch.no_grad():
        z = vae.encode(x).rsample(3)
        assert vae.decoder_params(z).shape == (3, 2, 3072)
        assert vae.log_joint(x, z).shape == (3, 2)
    assert vaegap.elbo(vae.train(), x, num_samples=2, seed=0).per_image.shape == (2,)
    assert vae.training, "evaluation mode is left again"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"activation": "gelu"}, "gelu"),
        ({"architecture": "transformer"}, "transformer"),
        ({"architecture": "conv"}, "32x32"),
        ({"likelihood": "poisson"}, "poisson"),
        ({"family": "laplace"}, "laplace"),
    ],
)
def test_unknown_names_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        VAE(**options)


ENC, DEC = nn.Linear(12, 6), nn.Linear(3, 12)


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = ENC(x).chunk(2, -1)
    return mean, logvar


WRAPPED: dict[str, dict[str, Any]] = {
    "functions": {"encode": pair, "decode": lambda z: DEC(z)},
    "module": {"encode": pair, "decode": DEC},
    "normal": {"encode": lambda x: Normal(pair(x)[0], (0.5 * pair(x)[1]).exp()), "decode": DEC},
    "bernoulli": {"encode": pair, "decode": lambda z: Bernoulli(logits=DEC(z))},
    "independent": {"encode": pair, "decode": lambda z: Independent(Bernoulli(logits=DEC(z)), 1)},
    "image": {"encode": pair, "decode": lambda z: DEC(z).unflatten(-1, (1, 3, 4))},
    "image_distribution": {
        "encode": pair,
        "decode": lambda z: Independent(Bernoulli(logits=DEC(z).unflatten(-1, (1, 3, 4))), 3),
    },
    "image_batch": {"encode": pair, "decode": lambda z: Bernoulli(logits=DEC(z).unflatten(-1, (1, 3, 4)))},
    "prior": {"encode": pair, "decode": DEC, "prior": MultivariateNormal(torch.ones(3), 2 * torch.eye(3))},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrap_gives_the_same_numbers(name: str) -> None:
    vae = wrap(latent_dim=3, **WRAPPED[name])
    x, z = (torch.rand(4, 12) < 0.5).float(), torch.randn(5, 4, 3)
    q = vae.encode(x)
    mean, logvar = pair(x)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.stddev, (0.5 * logvar).exp())
    expected = Independent(Bernoulli(logits=DEC(z)), 1).log_prob(x)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected, atol=1e-4, rtol=1e-5)
    distribution = vae.decode(z)
    assert isinstance(distribution, Distribution)
    torch.testing.assert_close(distribution.log_prob(x), expected, atol=1e-4, rtol=1e-5)
    assert distribution.sample().shape == distribution.mean.shape == (5, 4, 12)
    torch.testing.assert_close(distribution.mean, torch.sigmoid(DEC(z)))
    prior = WRAPPED[name].get("prior") or MultivariateNormal(torch.zeros(3), torch.eye(3))
    torch.testing.assert_close(vae.log_joint(x, z), expected + prior.log_prob(z), atol=1e-4, rtol=1e-5)
    assert vae.decode(vae.sample_prior(7)).sample().shape == (7, 12)


def test_wrapped_modules_are_registered() -> None:
    dropout = nn.Sequential(nn.Linear(3, 12), nn.Dropout(0.5))
    vae = wrap(pair, dropout, 3)
    assert {id(p) for p in vae.parameters()} >= {id(p) for p in dropout.parameters()}
    vae.eval()
    assert not dropout.training
    x = (torch.rand(3, 12) < 0.5).float()
    dropout.train()
    one, two = (vaegap.elbo(vae, x, 50, seed=0) for _ in range(2))
    assert torch.equal(one.per_image, two.per_image), "dropout must be off in a bound"
    assert dropout.training


def test_wrap_keeps_double_precision() -> None:
    enc, dec = nn.Linear(12, 6).double(), nn.Linear(3, 12).double()
    vae = wrap(lambda x: tuple(enc(x).chunk(2, -1)), dec, 3)
    x = vae.check((torch.rand(4, 12) < 0.5).float())
    q = vae.encode(x)
    assert q.params["mean"].dtype == vae.log_joint(x, q.rsample(2)).dtype == torch.float64


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "mean": ({"encode": lambda x: (x[:, :2], x[:, :3]), "decode": DEC}, r"mean.*\(4, 2\).*\(4, 3\).*latent_dim"),
    "logvar": ({"encode": lambda x: (x[:, :3], x[:, :1]), "decode": DEC}, r"log-variance.*\(4, 1\)"),
    "wide": ({"encode": pair, "decode": nn.Linear(3, 13)}, "13 numbers.*12"),
    "rows": ({"encode": pair, "decode": lambda z: DEC(z)[:4]}, "decoder"),
    "distribution": ({"encode": pair, "decode": lambda z: Bernoulli(logits=DEC(z).repeat(1, 2))}, "24 pixels.*12"),
    "event": ({"encode": pair, "decode": lambda z: Independent(Bernoulli(logits=DEC(z)[:, :6]), 1)}, "6 pixels.*12"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shapes_are_named(name: str) -> None:
    options, words = SHAPES[name]
    vae: Model = wrap(latent_dim=3, **options)
    with pytest.raises(InputError, match=words):
        vaegap.elbo(vae, torch.ones(4, 12), num_samples=2)


def test_wrong_prior_is_named() -> None:
    with pytest.raises(InputError, match="Independent"):
        wrap(pair, DEC, 3, prior=Normal(torch.zeros(3), 1.0))


def test_image_shapes() -> None:
    vae = VAE((1, 3, 4), 2, encoder_hidden=(), decoder_hidden=(), seed=0)
    with pytest.raises(InputError, match="flatten"):
        vaegap.elbo(vae, torch.ones(2, 1, 3, 4))
    with pytest.raises(InputError, match="no images"):
        vaegap.elbo(vae, torch.ones(0, 12))
    with pytest.raises(InputError, match="12.*13"):
        vaegap.elbo(vae, torch.ones(2, 13))


def test_a_convolutional_decoder_keeps_the_levels_of_a_pixel_together() -> None:
    """With its last weights at 0, each channel has the levels that its biases say, whatever the pixel."""
    levels = 5
    vae = VAE(
        (3, 32, 32), 2, encoder_hidden=(2, 3, 4), decoder_hidden=(4, 3, 2), architecture="conv",
        likelihood="categorical", likelihood_options={"levels": levels}, seed=0,
    ).eval()  # fmt: skip
    last = [m for m in vae.decoder.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(3.0 * levels).sin())
    log_p = last.bias.detach().view(3, levels).log_softmax(1)
    x = torch.randint(levels, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([log_p[c][x[:, c]].sum((1, 2)) for c in range(3)]).sum(0)
    z = torch.randn(2, 4, 2)
    value = vae.log_likelihood(x.flatten(1).float(), z)
    assert torch.allclose(value, expected.expand(2, -1), rtol=1e-5)
    assert torch.allclose(vae.decode(z).log_prob(x.flatten(1)), value, rtol=1e-5)


@pytest.mark.parametrize("ends_in_elu", [False, True])
@pytest.mark.parametrize("frozen", ["nothing", "weights", "input", "first layer"])
def test_mlp_has_the_sequences_values_and_gradients(ends_in_elu: bool, frozen: str) -> None:
    layers = [nn.Linear(3, 5), ELU(), nn.Linear(5, 4), ELU(), nn.Linear(4, 2)] + [ELU()] * ends_in_elu
    net, plain = MLP(*layers).double(), nn.Sequential(*layers)
    net.requires_grad_(frozen != "weights")
    if frozen == "first layer":
        net[0].requires_grad_(False)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=frozen != "input")
    wanted = [t for t in (x, *net.parameters()) if t.requires_grad]
    ours, theirs = net(x), plain(x)
    assert torch.equal(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
