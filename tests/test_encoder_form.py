"""The best flow in the encoder's own numbers: between the encoder's q and log p(x), shared weights as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaegap import VAE, elbo
from vaegap.errors import InputError
from vaegap.exact import quadrature
from vaegap.lab import experiments, verify
from vaegap.lab.measured import table_of
from vaegap.lab.protocols.encoder_form import best_in_form
from vaegap.posteriors import FAMILIES

GAUSSIAN = ("gaussian", "full_gaussian")
FLOWS = [name for name in FAMILIES if name not in GAUSSIAN]


def model(family: str) -> VAE:
    """A decoder whose posteriors the untrained encoder misses by far."""
    vae = VAE(12, 2, family, encoder_hidden=(8,), decoder_hidden=(16,), activation="tanh", seed=3).eval()
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.mul_(3)
    return vae


def images(vae: VAE, count: int) -> Tensor:
    """Drawn from the model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        probabilities = vae.decoder_params(torch.randn(count, 2, generator=generator)).sigmoid()
    return torch.bernoulli(probabilities, generator=generator)


@pytest.mark.parametrize("family", FLOWS)
def test_it_lies_between_the_encoder_and_the_evidence(family: str) -> None:
    vae = model(family)
    x = images(vae, 12)
    fit = best_in_form(vae, x, seed=0)
    low, high = elbo(vae, x, 500, seed=5), quadrature(vae, x).log_p
    for below, above in ((low.per_image, fit.bound.per_image), (fit.bound.per_image, high)):
        error = (fit.bound.mcse_per_image**2 + low.mcse_per_image**2).sqrt()
        assert bool((below <= above + 4 * error).all())
    assert fit.bound.mean - low.mean > 0.05, "this encoder leaves something to gain"
    free = [name for name, value in fit.posterior.params.items() if value.shape[0] == len(x)]
    before = vae.encode(x).params
    assert {"mean", "logvar"} <= set(free) < set(before)
    for name, value in before.items():
        assert torch.equal(value.expand_as(fit.posterior.params[name]), fit.posterior.params[name]) == (
            name not in free
        ), name


@pytest.mark.parametrize("family", GAUSSIAN)
def test_a_gaussian_has_one_optimum(family: str) -> None:
    vae = model(family)
    with pytest.raises(InputError, match="shares no weights"):
        best_in_form(vae, images(vae, 2))


def test_all_families_are_sorted() -> None:
    """A new family is either a Gaussian, or has weights that images share and is tested above."""
    for name in FLOWS:
        values = VAE(6, 2, name, encoder_hidden=(4,), seed=0).encode(torch.ones(3, 6)).params.values()
        assert any(len(value) == 1 for value in values), name


def test_a_record_holds_both_optima_and_can_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VAE((1, 28, 28), 4, "flow", encoder_hidden=(8,), decoder_hidden=(8,), seed=0).eval()
    monkeypatch.setattr("vaegap.lab.protocols.encoder_form.model_of", lambda *_: (vae, {}))
    params = {"family": "flow", "num_train": 3, "num_heldout": 2, "certify": 2}
    for module in ("encoder_form", "again"):
        monkeypatch.setattr(f"vaegap.lab.protocols.{module}.kept_model", lambda *_: vae)
    unkept = dataclasses.replace(experiments.get("encoder_form"), weights=None)
    monkeypatch.setitem(experiments._registry, "encoder_form", unkept)
    record = experiments.run("encoder_form", params, "quick", tmp_path)
    table = table_of(record, {"split": "train"})
    assert len(table) == 3 and len(table_of(record, {"split": "train", "first": 2})) == 2
    parts = table["approximation_encoder_form"] + table["amortization_encoder_form"]
    assert parts.to_numpy() == pytest.approx(table["inference"].to_numpy(), abs=1e-9)
    assert (table["amortization_encoder_form"] > -0.5).all()
    verdict = verify.verify_record(record)
    assert verdict.state == "agrees", verdict
