"""What `vaegap verify` must see of the weights that a record's numbers are computed from again."""

from __future__ import annotations

import json
from typing import Any

from vaegap.lab import checkpoints, verify
from vaegap.lab.protocols.models import spec_of
from vaegap.lab.records import Record


def changed_and_lost_weights_are_noticed(record: Record, factor: float) -> None:
    """A record of the laptop profile differs once its weights are multiplied, and asks for them once they are gone."""
    weights = record.folder.parent / "models" / f"{spec_of(record.params, 'laptop').id}.safetensors"
    tensors, meta = checkpoints.load(weights)
    checkpoints.save(weights, {k: factor * v for k, v in tensors.items()}, meta)
    assert verify.verify_record(record).state == "differs"
    weights.unlink()
    lost = verify.verify_record(record)
    assert lost.state == "cannot" and not weights.exists()
    assert f"vaegap verify --train {record.run_id}" in lost.reason and "--refresh" in lost.reason
    anew = verify.verify_record(record, train=True)
    assert anew.state == "agrees", anew


def trained_by(record: Record) -> dict[str, Any] | None:
    """Which code trained the model that the record was last found to agree with, as its run.json says."""
    found: dict[str, Any] | None = json.loads((record.folder / "run.json").read_text())["verified"]["model_trained"]
    return found
