"""Records: what is damaged or not valid is refused, on reading and on writing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from toy_runs import CALLS, TOY

from vaegap.lab import records, runs, schema
from vaegap.lab.errors import RecordError, StorageError
from vaegap.lab.experiments import run

pytestmark = pytest.mark.usefixtures("fresh_calls")


def break_table(folder: Path) -> None:
    data = bytearray((folder / "record.parquet").read_bytes())
    data[40] ^= 255
    (folder / "record.parquet").write_bytes(bytes(data))


def truncate_table(folder: Path) -> None:
    (folder / "record.parquet").write_bytes((folder / "record.parquet").read_bytes()[:-100])


def foreign_table(folder: Path) -> None:
    pd.DataFrame({"metric": ["elbo"], "value": [1.0]}).to_parquet(folder / "record.parquet")


def rename_folder(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("toy-quick-000000000000"))
    shutil.rmtree(folder)


def rewrite(change: Callable[[dict[str, Any], pd.DataFrame], Any]) -> Callable[[Path], None]:
    """Damage that parquet's own checks do not see: `change` gets the description and the rows."""

    def damage(folder: Path) -> None:
        table = parquet.read_table(folder / "record.parquet")
        info, rows = json.loads(table.schema.metadata[b"vaegap"]), table.to_pandas()
        text = change(info, rows)
        text = text if isinstance(text, bytes) else json.dumps(info).encode()
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"vaegap": text})
        parquet.write_table(table, folder / "record.parquet")

    return damage


def words(info: dict[str, Any], rows: pd.DataFrame) -> None:
    rows["value"] = rows["value"].astype(str) + "x"


def all_nan(info: dict[str, Any], rows: pd.DataFrame) -> None:
    rows["value"] = np.nan


@pytest.mark.parametrize(
    ("damage", "needed"),
    [
        (rewrite(lambda info, rows: json.dumps(info).encode()[:-20]), "description inside is damaged"),
        (rewrite(lambda info, rows: b"[]"), "description inside is damaged"),
        (rewrite(lambda info, rows: info.pop("run_id")), "no valid run_id"),
        (rewrite(lambda info, rows: info.pop("science")), "no valid science"),
        (rewrite(lambda info, rows: info.update(params=3)), "no valid params"),
        (rewrite(words), "values of the wrong type"),
        (rewrite(all_nan), "all its values are NaN"),
        (break_table, "cannot be read|not a valid record"),
        (truncate_table, "cannot be read"),
        (foreign_table, "not a record that vaegap wrote"),
        (rename_folder, "belongs to the run"),
    ],
)
def test_damaged_records_are_refused(damage: Callable[[Path], None], needed: str, tmp_path: Path) -> None:
    folder = run(TOY, results=tmp_path).folder
    damage(folder)
    (folder,) = tmp_path.glob("toy*")
    with pytest.raises(RecordError, match=needed) as caught:
        records.read(folder)
    assert "rm -r" in str(caught.value)
    assert runs.state(folder.name, tmp_path) == "invalid"


def hand_edit(info: dict[str, Any], rows: pd.DataFrame) -> None:
    rows.loc[rows.metric == rows.metric.iloc[0], "value"] += 1.0


def another_commit(info: dict[str, Any], rows: pd.DataFrame) -> None:
    info["science"] = {**info["science"], "vaegap.bounds": "0" * 16}


@pytest.mark.parametrize("change", [hand_edit, another_commit])
def test_a_table_that_was_changed_after_the_run_is_refused(change: Callable[..., Any], tmp_path: Path) -> None:
    folder = run(TOY, results=tmp_path).folder
    rewrite(change)(folder)
    with pytest.raises(RecordError, match="damaged, or was changed"):
        records.read(folder)


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    path = record.folder / "record.parquet"
    whole, rng, token = path.read_bytes(), np.random.default_rng(0), record.info["table_token"].encode()
    for place in rng.choice(len(whole), 200, replace=False).tolist():
        if token in whole[max(0, place - len(token)) : place + len(token)]:
            continue  # run.json then belongs to another table and is not asked
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        with pytest.raises(RecordError):
            records.read(record.folder)


def test_a_rewrite_that_fails_leaves_the_record_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    record = run(TOY, results=tmp_path)
    info = {k: v for k, v in record.info.items() if k not in ("artifacts", "table_token", "verified")}
    records.write(tmp_path, record.rows, info, {"model.bin": tmp_path / "old"})
    monkeypatch.setattr(records, "_to_parquet", lambda *_: [][0])  # no bytes: whatever fails before the renames
    with pytest.raises(IndexError):
        records.write(tmp_path, record.rows, info, {"model.bin": tmp_path / "new"})
    monkeypatch.undo()
    real = os.fsync

    def full_disk(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith(".record.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="disk is full"):
        records.write(tmp_path, record.rows, info, {"model.bin": tmp_path / "new"})
    monkeypatch.undo()
    assert records.read(record.folder).artifact("model.bin").read_bytes() == b"old"
    assert not list(record.folder.glob(".*.tmp"))


def test_record_of_a_newer_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(records, "SCHEMA_VERSION", 2)
    name = run(TOY, results=tmp_path).run_id
    monkeypatch.undo()
    with pytest.raises(RecordError, match=r"newer vaegap \(schema version 2.*git pull"):
        run(TOY, results=tmp_path)
    assert runs.state(name, tmp_path) == "invalid"
    assert (tmp_path / name / "record.parquet").exists(), "nothing is lost"


@pytest.mark.parametrize("text", ["[]", '{"ver', '{"table_token": 1}'])
def test_damaged_description_beside_the_table_is_no_loss(text: str, tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    (record.folder / "run.json").write_text(text)
    assert not records.read(record.folder).stale
    token = record.info["table_token"]
    (record.folder / "run.json").write_text(json.dumps({"table_token": token, "verified": ["x"]}))
    assert not records.read(record.folder).stale


def test_missing_description_is_no_loss(tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    (record.folder / "run.json").unlink()
    assert run(TOY, results=tmp_path).info["science"] == record.info["science"]
    assert len(CALLS) == 1


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([], "no rows"),
        ([{"metric": "elbo", "value": 1.0, "unit": "nats", "colour": "red"}], "no such columns: colour"),
        ([{"metric": "elbo", "value": "high", "unit": "nats"}], "wrong type"),
        ([{"metric": "elbo", "value": 1.0}], "unit is empty"),
        ([{"metric": "elbo", "value": 1.0, "unit": "nats", "bound": "sideways"}], "bound must be"),
        ([{"metric": "elbo", "value": v, "unit": "nats"} for v in (1.0, 2.0)], "two rows for"),
    ],
)
def test_invalid_rows_are_refused_on_writing(rows: list[dict[str, Any]], needed: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=needed):
        run(TOY, results=tmp_path, compute=lambda ctx: rows)
    assert not list(tmp_path.glob("toy*/record.parquet"))


def test_artifact_is_checked(tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    with pytest.raises(RecordError, match=r"kept no model\.safetensors; it has weights\.bin"):
        record.artifact("model.safetensors")
    (record.folder / "weights.bin").write_bytes(b"other")
    with pytest.raises(RecordError, match="not the file that the run wrote"):
        record.artifact("weights.bin")


def test_the_cure_can_be_pasted_where_a_folder_has_a_space(tmp_path: Path) -> None:
    folder = run(TOY, results=tmp_path / "my results").folder
    truncate_table(folder)
    with pytest.raises(RecordError, match=re.escape(f"rm -r '{folder}'")):
        records.read(folder)
