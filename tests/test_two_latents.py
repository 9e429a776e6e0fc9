"""The experiment with two latents, small: a killed run repeats no fit, and its records can be verified."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vaegap import VAE, optimize_local, quadrature
from vaegap.lab import experiments, provenance, verify, zoo
from vaegap.lab.protocols import two_latents
from vaegap.lab.records import Record
from vaegap.lab.training import Schedule
from vaegap.lab.zoo import ModelSpec

ROOT = Path(__file__).parents[1]
SMALL = {"num_images": 4, "points": 41, "encoder": [8], "decoder": [8]}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    images = zoo.training_images("mnist-5k", 200)
    monkeypatch.setattr(ModelSpec, "schedule", property(lambda self: Schedule(3, 50)))
    monkeypatch.setattr(zoo, "training_images", lambda dataset, num_images=None: images)
    monkeypatch.setattr(two_latents, "FAMILIES", ("gaussian", "full_gaussian"))


def measure(folder: Path, profile: str = "quick") -> Record:
    return experiments.run("posterior_2d", SMALL, profile, folder)


def test_a_killed_run_repeats_no_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(tmp_path / "whole")
    fits: list[str] = []
    optimize = two_latents.optimize_local

    def dies_at_the_last(vae: Any, x: Any, family: str, *start: Any, **options: Any) -> Any:
        fits.append(family)
        if len(fits) == 10:  # for both splits: Gaussians from four starts, and a full covariance
            raise KeyboardInterrupt
        return optimize(vae, x, family, *start, **options)

    monkeypatch.setattr(two_latents, "optimize_local", dies_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "cut")
    again = measure(tmp_path / "cut")
    assert len(fits) == 11, "only the fit that was cut off is made again"
    assert again.rows["value"].equals(whole.rows["value"])
    assert again.info["notes"]["model_trained"]["digest"]
    assert set(again.rows["family"]) == {"", "amortized", "gaussian", "full_gaussian"}


def test_richer_families_and_more_starts_lose_less() -> None:
    """A decoder whose posteriors have several hills, and an encoder that knows nothing of them."""
    vae = VAE(8, 2, "gaussian", (4,), (20,), activation="tanh", seed=0)
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.mul_(6.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = vae.decode(vae.sample_prior(12)).sample()
    truth = quadrature(vae, x, points=61)
    found = {family: two_latents.best_posterior(truth, family, 0) for family in ("gaussian", "full_gaussian", "flow")}
    kl = {family: truth.kl(q) for family, q in found.items()}
    assert (kl["full_gaussian"] <= kl["gaussian"] + 1e-6).all() and (kl["flow"] <= kl["gaussian"] + 1e-6).all()
    from_encoder = truth.kl(optimize_local(vae, x, "gaussian", seed=0).posterior)
    assert (kl["gaussian"] <= from_encoder + 1e-9).all(), "the encoder's is one of the starts"
    highest = two_latents._peaks(truth)[0]
    log_joint = vae.log_joint(x, highest[None])[0].double() - truth.log_p
    torch.testing.assert_close(log_joint, truth.log_posterior.flatten(1).max(1).values, rtol=1e-4, atol=1e-4)


def test_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "vaegap"
    shutil.copytree(ROOT / "vaegap", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    record = measure(tmp_path / "r", "laptop")
    (verdict,) = verify.verify([record], everything=True)
    assert verdict.state == "agrees", verdict
    (copy / "exact.py").write_text((copy / "exact.py").read_text() + "\n_CHANGED = 1\n")
    (stale,) = (r for r in [experiments.runs.find(record.run_id, tmp_path / "r")] if r is not None)
    assert stale.changed == ["vaegap.exact"]
    quadrature = two_latents.quadrature
    monkeypatch.setattr(two_latents, "quadrature", lambda vae, x, points: quadrature(vae, x, 5))
    assert [v.state for v in verify.verify([stale])] == ["differs"]
    monkeypatch.setattr(two_latents, "quadrature", quadrature)
    (verdict,) = verify.verify([stale])
    assert verdict.state == "agrees", verdict
    assert verdict.rows == 3 * SMALL["num_images"]  # type: ignore[operator]
    found = experiments.runs.find(record.run_id, tmp_path / "r")
    assert found is not None and not found.stale


def test_what_cannot_be_verified_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(experiments.get("certificates"), verify=None, cannot_verify="it keeps no weights")
    monkeypatch.setitem(experiments._registry, "certificates", bare)
    rows = [{"metric": "toy", "value": 1.0, "unit": "nats"}]
    record = experiments.run("certificates", {}, "quick", tmp_path, compute=lambda ctx: rows)
    verdict = verify.verify_record(record)
    assert verdict.state == "skipped"
    assert "certificates cannot be verified, for it keeps no weights" in verdict.reason
