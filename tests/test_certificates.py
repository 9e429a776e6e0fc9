"""Records of certificates: what is computed anew from the weights agrees, and changed weights are noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaegap.lab import checkpoints, experiments, verify, zoo
from vaegap.lab.protocols import decompositions
from vaegap.lab.training import Schedule

SMALL = {"num_simulated": 4, "num_images": 4, "prior_temperatures": [5, 1000], "encoder": [20], "decoder": [20]}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of 500 images."""
    read = zoo.training_images
    monkeypatch.setattr(zoo.ModelSpec, "schedule", property(lambda spec: Schedule(3, 50)))
    monkeypatch.setattr(zoo, "training_images", lambda dataset, num=None: read(dataset, 500))


def test_verify(tmp_path: Path) -> None:
    record = experiments.run("certificates", SMALL, "laptop", tmp_path)
    ways = set(record.select(metric="bdmc_width")["model"])
    assert len(ways) == 4
    verdict = verify.verify_record(record)
    assert verdict.state == "agrees", verdict
    assert verdict.rows == 3 + 3, "all widths but that of a thousand temperatures, and three estimates of log p(x)"
    weights = tmp_path / "models" / f"{decompositions.spec_of(record.params, 'laptop').id}.safetensors"
    tensors, meta = checkpoints.load(weights)
    checkpoints.save(weights, {k: 1.5 * v for k, v in tensors.items()}, meta)
    assert verify.verify_record(record).state == "differs"
    weights.unlink()
    assert "--refresh" in verify.verify_record(record).reason
