"""`vaegap verify --train`: a record is compared with a model trained anew, where its weights are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_weights import trained_by
from typer.testing import CliRunner

from vaegap.lab import experiments, provenance, verify
from vaegap.lab.cli import app

SMALL = {
    "encoder": [20],
    "decoder": [20],
    "families": ["gaussian"],
    "num_train": 4,
    "num_heldout": 2,
    "certify": 2,
    "checked": 0,
}

pytestmark = pytest.mark.usefixtures("short_training")


@pytest.mark.parametrize("frozen", [False, True])
def test_the_same_model_comes_out_and_another_does_not(
    tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a frozen decoder, too, whose donor is trained first."""
    record, other = (
        experiments.run("gap_decomposition", {**SMALL, "frozen": frozen, "seed": seed}, "laptop", tmp_path)
        for seed in (0, 1)
    )
    files = set((tmp_path / "models").glob("*.safetensors"))
    assert len(files) == (4 if frozen else 2)
    assert verify.verify_record(record).state == "agrees"
    assert trained_by(record) == record.info["notes"]["model_trained"]
    weights = experiments.get("gap_decomposition").weights
    assert weights is not None
    own, others = (weights(experiments.Context("", "laptop", r.params, tmp_path, tmp_path)) for r in (record, other))
    assert {*own, *others} == files
    own[-1].write_bytes(others[-1].read_bytes())
    assert verify.verify_record(record).state == "differs"
    for file in own:
        file.unlink()
        lost = verify.verify_record(record)
        assert lost.state == "cannot" and str(file) in lost.reason
        assert not file.exists(), "nothing is trained without being asked"
    monkeypatch.setattr(provenance, "training_origin", lambda: {"commit": "later", "dirty": False, "digest": "d"})
    verdict = verify.verify_record(record, train=True)
    assert verdict.state == "agrees", verdict
    assert trained_by(record) == {"commit": "later", "dirty": False, "digest": "d"}


def test_the_command(tmp_path: Path) -> None:
    record = experiments.run("gap_decomposition", SMALL, "laptop", tmp_path)
    for file in (tmp_path / "models").glob("*.safetensors"):
        file.unlink()
    said = CliRunner().invoke(app, ["verify", record.run_id, "--results", str(tmp_path)])
    assert said.exit_code == 1 and "vaegap verify --train" in " ".join(said.output.split())
    said = CliRunner().invoke(app, ["verify", "--train", record.run_id, "--results", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith(f"agrees   {record.run_id}")
