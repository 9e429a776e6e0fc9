"""Images and models that give no number: an error that names them, or a finite value; never NaN in a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaegap import VAE, Bound, Gaps, InputError, LocalFit, Sandwich, ais, bdmc, elbo, gaps, iwae, optimize_local, wrap
from vaegap.local import RECIPES
from vaegap.models import Model
from vaegap.posteriors import FAMILIES

ON_IMAGES: dict[str, Callable[[Model, Tensor], Any]] = {
    "elbo": lambda m, x: elbo(m, x, 50, seed=0),
    "iwae": lambda m, x: iwae(m, x, 50, seed=0),
    "ais": lambda m, x: ais(m, x, 4, 5, seed=0),
    "ais, adaptive": lambda m, x: ais(m, x, 4, 5, schedule="adaptive", seed=0),
    "ais, mixture": lambda m, x: ais(m, x, 4, 5, "mixture", seed=0),
    "q*": lambda m, x: optimize_local(m, x, num_eval=50, seed=0),
    "q*, full": lambda m, x: optimize_local(m, x, "full_gaussian", num_eval=50, seed=0),
    "gaps": lambda m, x: gaps(m, x, num_samples=50, num_chains=4, num_temperatures=5, certify=0, seed=0),
}
ALL = {**ON_IMAGES, "bdmc": lambda m, x: bdmc(m, 6, 4, 5, seed=0)}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short fits, and the same decoders whatever ran before."""
    torch.manual_seed(0)
    for name in ("gaussian", "full_gaussian"):
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], steps=8, rounds=1))


def bounds_of(out: Bound | Sandwich | LocalFit | Gaps) -> list[Bound]:
    if isinstance(out, Sandwich):
        return [out.lower, out.upper]
    if isinstance(out, LocalFit):
        return [out.bound, out.start]
    if isinstance(out, Gaps):
        assert not out.per_image.isna().any().any() and not out.summary.isna().any().any()
        return [out.evidence.bound, *out.bounds.values()]
    return [out]


def assert_usable(out: Bound | Sandwich | LocalFit | Gaps) -> None:
    for bound in bounds_of(out):
        assert torch.isfinite(bound.per_image).all() and math.isfinite(bound.mean) and math.isfinite(bound.mcse)


def images() -> Tensor:
    """Ten images of five pixels; only image 3 has the last pixel on."""
    x = (torch.rand(10, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    x[:, 4] = 0
    x[3] = 1
    return x


def fragile(value: float, share: float) -> Model:
    """The decoder gives `value` on a half plane which holds that share of q(z) of image 3, and of no other image."""
    layer = nn.Linear(2, 5)
    edge = 6 + math.exp(-1) * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - share)).item()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([6 * x[:, 4:], 0 * x[:, 4:]], 1), torch.zeros(len(x), 2) - 2

    return wrap(encode, lambda z: torch.where(z[:, :1] > edge, value, layer(z)), 2)


@pytest.mark.parametrize("function", ON_IMAGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_logits_that_overflow_for_one_image_of_ten(function: str, value: float) -> None:
    """At nine samples in ten, and at one in fifty, which some estimates do not meet."""
    for share in (0.9, 0.02):
        try:
            out = ON_IMAGES[function](fragile(value, share), images())
        except InputError as error:
            assert error.indices == [3] and "image 3" in str(error)
        else:
            # pixels that are certainly off have probability 0 where x is on: of importance weights some may be 0
            assert share < 0.5 or (function == "iwae" and value == -math.inf)
            assert_usable(out)


@pytest.mark.parametrize("what", ["mean", "logvar"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", ON_IMAGES)
def test_an_encoder_that_overflows_for_one_image_of_ten(function: str, value: float, what: str) -> None:
    layer = nn.Linear(2, 5)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        bad = torch.where(x[:, 4:].expand(-1, 2) > 0, value, 0.0)
        return (bad, 0 * x[:, :2]) if what == "mean" else (0 * x[:, :2], bad)

    with pytest.raises(InputError, match="image 3") as error:
        ON_IMAGES[function](wrap(encode, layer, 2), images())
    assert error.value.indices == [3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", ["elbo", "iwae", "ais", "ais, adaptive", "q*"])
def test_features_that_are_nan_for_one_image(family: str, function: str) -> None:
    """A head that bounds log-variances must not turn NaN into a number."""
    vae = VAE(5, 2, family, (4,), (4,), seed=0)

    class Features(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 4:] > 0, math.nan, self.inner(x))

    vae.features = Features(vae.features)
    with pytest.raises(InputError, match="image 3") as error:
        ON_IMAGES[function](vae, images())
    assert error.value.indices == [3]


def test_a_model_that_overflows_on_its_own_samples() -> None:
    """BDMC has no images of ours; what it simulates may be unusable too."""
    layer = nn.Linear(2, 5)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * x[:, :2], torch.where(x[:, :2] > 0, math.inf, 0.0)

    with pytest.raises(InputError, match="log-variance"):
        bdmc(wrap(encode, layer, 2), 10, 4, 5, seed=0)
    for edge in (-math.inf, 0.0):  # all simulated images are NaN, or half of them

        def decode(z: Tensor, edge: float = edge) -> Tensor:
            return torch.where(z[:, :1] > edge, math.nan, layer(z))

        unusable = wrap(lambda x: (x[:, :2], 0 * x[:, :2]), decode, 2, "gaussian", scale=1.0)
        with pytest.raises(ValueError, match="nan|NaN|not finite|not usable"):
            bdmc(unusable, 10, 4, 5, seed=0)


@pytest.mark.parametrize("pixels", [4, 6, 1])
@pytest.mark.parametrize("function", ON_IMAGES)
def test_a_decoder_of_another_size(function: str, pixels: int) -> None:
    model = wrap(lambda x: (x[:, :2], x[:, :2] * 0), nn.Linear(2, pixels), 2)
    with pytest.raises(InputError, match=f"{pixels}.*5"):
        ON_IMAGES[function](model, images())


@pytest.mark.parametrize("function", ON_IMAGES)
def test_kinds_of_numbers(function: str) -> None:
    """Whole numbers, truth values and doubles are the same images."""
    vae, x = VAE(5, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0), images()
    want = bounds_of(ON_IMAGES[function](vae, x))[0]
    for same in (x.int(), x.bool(), x.double(), x.to(torch.uint8), x.clone().requires_grad_()):
        got = bounds_of(ON_IMAGES[function](vae, same))[0]
        assert not got.per_image.requires_grad
        torch.testing.assert_close(got.per_image, want.per_image, atol=1e-3, rtol=0)  # sums in another order


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_smallest_models(function: str, dtype: torch.dtype, latent_dim: int) -> None:
    vae = VAE(5, latent_dim, encoder_hidden=(4,), decoder_hidden=(4,), seed=0).to(dtype)
    assert_usable(ALL[function](vae, images()[:1]))
    assert_usable(ALL[function](vae, images()))


def test_few_and_many_samples() -> None:
    vae, x = VAE(5, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0), images()
    for function in (elbo, iwae):
        assert_usable(function(vae, x, 2, seed=0))
        few, many = function(vae, x, 1000, seed=0), function(vae, x, 200_001, seed=1)
        assert_usable(many)
        slack = 4 * math.hypot(few.mcse, many.mcse)
        assert abs(many.mean - few.mean) < slack + (0.01 if function is iwae else 0)
        assert many.mcse < few.mcse / 5


def test_half_precision_and_complex_pixels_are_refused() -> None:
    vae, x = VAE(5, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0), images()
    with pytest.raises(InputError, match="complex"):
        elbo(vae, x.to(torch.complex64))
    with pytest.raises(InputError, match="float16"):
        elbo(vae.half(), x)


def test_a_rare_overflow_in_a_later_chunk_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples of the start do not meet it; the 200 that judge it do."""
    monkeypatch.setitem(RECIPES, "gaussian", replace(RECIPES["gaussian"], steps=5, rounds=1, chunk=2))
    with pytest.raises(InputError, match="image 3") as error:
        optimize_local(fragile(math.nan, 0.05), images(), seed=0)
    assert error.value.indices == [3]


def test_what_gaps_simulates_is_not_taken_for_its_images() -> None:
    """The encoder overflows on images that the model simulates, not on those given."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * x[:, :2], torch.where(x[:, :2] > 0, math.inf, 0.0)

    x = torch.zeros(3, 5)
    with pytest.raises(InputError, match="simulated") as error:
        gaps(wrap(encode, nn.Linear(2, 5), 2), x, num_samples=20, num_chains=4, num_temperatures=3, certify=20, seed=0)
    assert not error.value.indices
    with pytest.raises(InputError, match="num_samples=1"):
        gaps(wrap(encode, nn.Linear(2, 5), 2), x, num_samples=1)
