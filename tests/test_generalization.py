"""The run over epochs (section 5.5): wherever it is cut off, every epoch is measured on that epoch's model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from kept_weights import changed_and_lost_weights_are_noticed

from vaegap.errors import InputError
from vaegap.lab import experiments, tables, verify, zoo
from vaegap.lab.experiments import Context
from vaegap.lab.measured import table_of
from vaegap.lab.protocols import over_training
from vaegap.posteriors import FAMILIES
from vaegap.rounding import plus_minus

SMALL = {"num_images": 2, "fractions": [0.67, 1.0], "encoder": [20], "decoder": [20]}


pytestmark = pytest.mark.usefixtures("short_training")


def run(folder: Path) -> list[tuple[Any, ...]]:
    params = dict(experiments.resolve(experiments.get("generalization"), {}, "quick")) | SMALL
    folder.mkdir(parents=True, exist_ok=True)
    rows = over_training.compute_generalization(Context("x", "laptop", params, folder, folder))
    return [(r.get("split"), r.get("model"), r["metric"], r.get("image"), r["value"]) for r in rows]


def test_a_lost_block_is_measured_on_its_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")

    def cut(ctx: Context, vae: Any, x: Any, name: str, *rest: Any, real: Any = over_training.decompose) -> Any:
        if name.endswith("epoch3"):
            raise KeyboardInterrupt
        return real(ctx, vae, x, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(over_training, "decompose", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    (tmp_path / "cut" / "train-epoch2-0.safetensors").unlink()
    assert str(run(tmp_path / "cut")) == str(whole)


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(zoo, "train", never)
    assert str(run(tmp_path)) == str(whole)


def test_each_milestone_has_its_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table beside the log p-hat that it certifies, and for the ledger that of the milestone asked for."""
    record = experiments.run("generalization", SMALL, "laptop", tmp_path)
    widths = record.select(metric="bdmc_width").set_index("model")
    assert list(widths.index) == ["gaussian epoch 2", "gaussian epoch 3"]
    assert (widths["num_samples"] == 2).all() and widths["value"].nunique() == 2
    table = tables.milestones(record)
    assert list(table.index) == [(split, epoch) for split in ("test", "train") for epoch in (2, 3)]
    for epoch in (2, 3):
        said = plus_minus(*widths.loc[f"gaussian epoch {epoch}", ["value", "mcse"]])
        assert all(cell.startswith(said) for cell in table.xs(epoch, level="epoch")["BDMC width"])
        value = table_of(record, {"split": "train", "model": f"gaussian epoch {epoch}"})["bdmc_width"]
        assert (value == widths.loc[f"gaussian epoch {epoch}", "value"]).all()
    last = table_of(record, {"split": "test", "last_epoch": True})["bdmc_width"]
    assert (last == widths.loc["gaussian epoch 3", "value"]).all()
    rows = record.rows[record.rows["metric"] != "bdmc_width"]
    older = dataclasses.replace(record, rows=rows)
    assert set(tables.milestones(older)["BDMC width"]) == {"not measured"}
    monkeypatch.setattr(zoo, "train", None)  # nothing is trained for a record that is too old
    for weights in (tmp_path / "models").glob("*.safetensors"):
        weights.unlink()
    verdict = verify.verify_record(older, train=True)
    assert verdict.state == "cannot" and "--refresh" in verdict.reason
    with pytest.raises(InputError, match="--refresh"):
        over_training.verify_generalization(Context("x", "laptop", record.params, tmp_path, tmp_path), older)


@pytest.mark.parametrize("family", FAMILIES)
def test_milestones_of_every_family_can_be_shown(tmp_path: Path, family: str) -> None:
    small = {**SMALL, "family": family, "families": [family], "fractions": [1.0], "latent_dim": 4}
    table = tables.milestones(experiments.run("generalization", small, "quick", tmp_path))
    assert tables.ROWS[f"L_star_{family}"] in table


def test_its_record_is_verified_by_the_last_epoch(tmp_path: Path) -> None:
    record = experiments.run("generalization", SMALL, "laptop", tmp_path)
    verdict = verify.verify_record(record)
    assert verdict.state == "agrees", verdict
    assert verdict.rows == 2 * 2 * 4, "two sets of two images: L[q], L[q*] of two families, and log p̂"
    changed_and_lost_weights_are_noticed(record, factor=1.1)
