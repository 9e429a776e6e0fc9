"""`vaegap verify --train`: a record is compared with a model trained anew, where its weights are gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kept_weights import trained_by
from typer.testing import CliRunner

from vaegap.lab import experiments, provenance, verify
from vaegap.lab.cli import app
from vaegap.lab.experiments import Context
from vaegap.lab.protocols import again

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


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("experiment", ["gap_decomposition", "encoder_form", "generalization"])
def test_log_p_is_compared_too(tmp_path: Path, experiment: str, split: str) -> None:
    """Of training images always, of held-out ones where the protocol looks at them again."""
    known = {name: value for name, value in SMALL.items() if name in experiments.get(experiment).defaults}
    small = {"generalization": {"num_images": 4}, "encoder_form": {"family": "aux_flow"}}.get(experiment, {})
    record = experiments.run(experiment, known | small, "laptop", tmp_path)
    assert verify.verify_record(record).state == "agrees"
    published = (record.rows["metric"] == "log_p") & (record.rows["split"] == split) & (record.rows["image"] != "mean")
    shifted = record.rows.copy()
    shifted.loc[published, "value"] += 1.0
    seen = split == "train" or experiment == "generalization"
    verdict = verify.verify_record(replace(record, rows=shifted))
    assert verdict.state == ("differs" if seen else "agrees")
    assert "log_p" in verdict.reason or not seen


@pytest.mark.parametrize("wide", [0.0, 50.0])
def test_log_p_of_blocks_with_a_wide_base_is_left_alone(tmp_path: Path, wide: float) -> None:
    record = experiments.run("gap_decomposition", {**SMALL, "num_train": 52, "checked": 0}, "laptop", tmp_path)
    rows = record.rows
    rows.loc[rows["metric"] == "log_p_from_wide_base", "value"] = wide
    checked = replace(record, info={**record.info, "params": {**record.params, "checked": 3}}, rows=rows)
    context = Context("x", "laptop", record.params, tmp_path, tmp_path)
    again_now = again.log_p_again(context, checked, "train", "gaussian")
    assert [row["image"] for row in again_now] == (["50", "51"] if wide else [str(i) for i in range(20)])


def test_the_command(tmp_path: Path) -> None:
    record = experiments.run("gap_decomposition", SMALL, "laptop", tmp_path)
    for file in (tmp_path / "models").glob("*.safetensors"):
        file.unlink()
    said = CliRunner().invoke(app, ["verify", record.run_id, "--results", str(tmp_path)])
    assert said.exit_code == 1 and "vaegap verify --train" in " ".join(said.output.split())
    said = CliRunner().invoke(app, ["verify", "--train", record.run_id, "--results", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith(f"agrees   {record.run_id}")
