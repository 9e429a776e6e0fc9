"""Errors, flags and steps of an ascent belong to images of the whole batch, whatever group they were treated in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vaegap import VAE, Bound, InputError, LocalFit, local, optimize_local, wrap
from vaegap.energy import LogJoint
from vaegap.exact import linear_gaussian_vae
from vaegap.local import RECIPES
from vaegap.models import Model


def test_overflow_names_the_image_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = wrap(lambda x: (x, x * 0 - 4), lambda z: torch.where(z > 5, torch.nan, z), 2, likelihood="gaussian")
    x = torch.zeros(6, 2)
    x[4] = 9
    monkeypatch.setitem(RECIPES, "gaussian", replace(RECIPES["gaussian"], chunk=3, steps=5, rounds=1))
    with pytest.raises(InputError, match="image 4") as error:
        optimize_local(vae, x, seed=0)
    assert error.value.indices == [4]


def test_flags_and_steps_belong_to_the_images_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four, and only image 5 diverges: its gradient is NaN once it has left the start."""
    vae = linear_gaussian_vae(data_dim=8, latent_dim=3, noise=0.7, encoder_error=0.2)
    x = vae.simulate(6, seed=1)
    target, original = x[5], LogJoint.grad

    def grad(self: LogJoint, z: Tensor, rejecting: bool = False) -> Tensor:
        bad = (self.x == target).all(1)[:, None]
        return torch.where(bad, torch.nan, original(self, z, rejecting))

    monkeypatch.setattr(LogJoint, "grad", grad)
    recipe = replace(RECIPES["gaussian"], steps=10, rounds=1, chunk=4)
    fit = optimize_local(vae, x, "gaussian", recipe=recipe, num_eval=100, seed=0)
    assert fit.bound.flagged is not None and set(fit.bound.flagged) == {5}
    assert torch.isfinite(fit.bound.per_image).all(), "the start is kept"
    encoder = vae.encode(x).mean
    assert torch.equal(fit.posterior.mean[5], encoder[5]) and (fit.posterior.mean[:5] != encoder[:5]).any(1).all()


def test_an_error_in_the_second_ascent_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is a second start for some images only: here for the last two of five."""
    torch.manual_seed(0)
    vae = VAE(6, 2, "flow", (5,), (5,), seed=0)
    x = (torch.rand(5, 6) < 0.5).float()
    original, bound, seen = local.climb, local.elbo, []

    def fails(model: Model, images: Tensor, *rest: Any, **options: Any) -> LocalFit:
        seen.append(len(images))
        if len(images) < 5:
            raise InputError("not finite (first: image 0)", [0])
        return original(model, images, *rest, **options)

    def far(*given: Any, seed: int, **options: Any) -> Bound:
        out = bound(*given, seed=seed, **options)
        near = torch.arange(5) >= 3
        return replace(out, per_image=out.per_image.where(near, -1e12)) if seed == 12 else out

    monkeypatch.setattr(local, "climb", fails)
    monkeypatch.setattr(local, "elbo", far)
    monkeypatch.setattr(local, "_NEAR", 1e9)
    quick = replace(RECIPES["flow"], steps=2, rounds=1, repeats=0)
    monkeypatch.setitem(RECIPES, "gaussian", replace(RECIPES["gaussian"], steps=2, rounds=1, repeats=0))
    with pytest.raises(InputError, match="image 3") as caught:
        optimize_local(vae, x, "flow", num_eval=10, recipe=quick, seed=0)
    assert caught.value.indices == [3] and seen[-1] == 2
