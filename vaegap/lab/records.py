"""Records: the table that a finished run leaves behind, checked when it is written and when it is read.

A record is one folder, `results/<run_id>/`, with `record.parquet` (one row a metric) and `run.json` (parameters and
provenance). The table carries a copy of that description inside, so that it alone decides whether the run is done: it
is put in place by one rename, and there is no moment at which half a record could be taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.lab import provenance
from vaegap.lab.errors import RecordError
from vaegap.lab.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "SCHEMA_VERSION", "Record", "canonical", "complete", "mend", "read", "write", "write_description"]

SCHEMA_VERSION = 1
COLUMNS: dict[str, str] = {  # name -> pandas type
    "run_id": "string",
    "experiment": "string",
    "claim": "string",  # the claim of the ledger that the row bears on, or ""
    "dataset": "string",
    "split": "string",
    "model": "string",
    "family": "string",
    "encoder": "string",
    "decoder": "string",
    "seed": "Int64",
    "profile": "string",
    "image": "string",  # "mean" over the images, or the position of one of them
    "metric": "string",
    "value": "float64",
    "mcse": "float64",  # Monte Carlo standard error, in the same unit
    "num_samples": "Int64",
    "khat": "float64",
    "ess": "float64",
    "bound": "string",  # "lower", "upper", "exact" or ""
    "unit": "string",
    "schema_version": "Int64",
}
_REQUIRED = ("run_id", "experiment", "profile", "image", "metric", "value", "unit", "schema_version")
_KEY = ("claim", "dataset", "split", "model", "family", "encoder", "decoder", "seed", "image", "metric", "num_samples")
_BOUNDS = {"lower", "upper", "exact", ""}


@dataclass(frozen=True)
class Record:
    """What a finished run left behind.

    Attributes:
        run_id: its name.
        rows: one row a metric, with the columns `COLUMNS`.
        info: experiment, profile, parameters, provenance and so on, as in run.json.
        folder: where it lies.
    """

    run_id: str
    rows: pd.DataFrame
    info: dict[str, Any]
    folder: Path

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return str(self.info["experiment"])

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of the run."""
        return dict(self.info["params"])

    @cached_property
    def changed(self) -> list[str]:
        """The modules whose code has changed since; empty where the record is fresh or has been verified."""
        verified = self.info.get("verified") or {}
        return provenance.changed_modules(verified.get("science") or self.info["science"])

    @property
    def stale(self) -> bool:
        """Whether code that the numbers may depend on has changed since they were computed or last verified."""
        return bool(self.changed)

    def select(self, **columns: Any) -> pd.DataFrame:
        """The rows in which each named column has the given value (or one of the given values).

        Example:
            >>> record.select(metric="elbo", image="mean")  # doctest: +SKIP
        """
        rows = self.rows
        for name, wanted in columns.items():
            column = rows[name]
            rows = rows[column.isin(wanted) if isinstance(wanted, list | tuple | set) else column == wanted]
        return rows

    def value(self, metric: str, **columns: Any) -> float:
        """The one value of a metric, over images by default.

        Raises:
            RecordError: no row or several rows fit.
        """
        rows = self.select(metric=metric, **{"image": "mean", **columns})
        if len(rows) != 1:
            raise RecordError(f"{self.run_id}: {len(rows)} rows fit metric={metric!r}, {columns}; give more columns")
        return float(rows["value"].iloc[0])

    def artifact(self, name: str) -> Path:
        """A file that the run kept beside its table, such as "model.safetensors".

        Raises:
            RecordError: it was not kept, or is not the one that the run wrote.
        """
        kept = self.info.get("artifacts", {})
        path = self.folder / name
        if name not in kept:
            raise RecordError(f"{self.run_id}: kept no {name}; it has {', '.join(kept) or 'no files'}")
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != kept[name]:
            raise RecordError(f"{path}: is missing or not the file that the run wrote. {_cure(self.folder)}")
        return path

    def caption(self) -> str:
        """One line on where the numbers come from, to stand beside a figure or table."""
        made = self.info.get("provenance", {})
        commit = (made.get("commit") or "no commit")[:9] + ("+" if made.get("dirty") else "")
        machine = made.get("accelerator") or f"{made.get('processor')}, {made.get('threads')} threads"
        parts = [f"run {self.run_id}", f"commit {commit}", f"profile {self.info['profile']}", str(machine)]
        parts.append(f"{self.info.get('wall_seconds', float('nan')):.0f} s")
        if self.stale:
            parts.append(f"code changed since: {', '.join(self.changed)}")
        return " · ".join(parts)


def read(folder: str | os.PathLike[str]) -> Record:
    """Read and check the record in a folder.

    Raises:
        RecordError: it is damaged, incomplete, of a newer version, or lies in the wrong folder.
    """
    folder = Path(folder)
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise RecordError("reading records needs pyarrow: pip install 'vaegap[lab]'") from None
    path = folder / "record.parquet"
    try:
        table = parquet.read_table(path, use_threads=False, page_checksum_verification=True)
        inside = (table.schema.metadata or {}).get(b"vaegap")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read ({str(error).splitlines()[0]}). {_cure(folder)}") from None
    if inside is None:
        raise RecordError(f"{path}: is not a record that vaegap wrote. {_cure(folder)}")
    info = json.loads(inside)
    _check_version(path, info.get("schema_version"))
    rows = table.to_pandas()
    rows = _check(rows, info, folder)
    beside = _beside(folder / "run.json")
    if beside.get("table_token") == info.get("table_token"):
        info["verified"] = beside.get("verified")
    return Record(info["run_id"], rows, info, folder)


def write(
    results: str | os.PathLike[str],
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    info: Mapping[str, Any],
    artifacts: Mapping[str, Path] | None = None,
) -> Record:
    """Check a finished run's rows and put its record in place; the table comes last, by one rename.

    Args:
        results: the folder of the records.
        rows: one mapping a metric; columns that are the same for all rows may be left out.
        info: run_id, experiment, profile, params, data, version, science, provenance, wall_seconds.
        artifacts: files to keep beside the table, by name.

    Raises:
        RecordError: the rows are not valid.
        StorageError: the folder cannot be written to.
    """
    folder = Path(results) / info["run_id"]
    table = complete(rows, info)
    for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    kept = {}
    for name, source in (artifacts or {}).items():
        data = Path(source).read_bytes()
        kept[name] = hashlib.sha256(data).hexdigest()
        write_atomic(folder / name, data, "a file of the record")
    token = hashlib.sha256(os.urandom(16)).hexdigest()[:16]  # ties run.json to this very table
    full = {"schema_version": SCHEMA_VERSION, **canonical(info), "artifacts": kept, "table_token": token}
    table = _check(table, full, folder)
    write_atomic(folder / "record.parquet", _to_parquet(table, full), "the record")
    write_description(folder, {**full, "num_rows": len(table)})
    return read(folder)


def write_description(folder: Path, info: Mapping[str, Any]) -> None:
    """Write run.json, the description of a record that people (and `git diff`) read."""
    write_atomic(folder / "run.json", (json.dumps(info, indent=1) + "\n").encode(), "the record's description")


def canonical(value: Any) -> Any:
    """A parameter as JSON knows it: tuples become lists, NumPy's numbers plain ones, paths text.

    Raises:
        TypeError: it is something that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(name): canonical(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return canonical(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a run's parameter must be text, a number, a list or a mapping of them, not {value!r}")


def _cure(folder: Path) -> str:
    return (
        f"If it is a published one, get it back (git checkout -- {folder.name}, in {folder.parent}); else delete it "
        f"(rm -r {folder}) and run it again."
    )


def _check_version(path: Path, version: Any) -> None:
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: was written by a newer vaegap (schema version {version}; this one reads up to {SCHEMA_VERSION}). "
            "Update the package: git pull, or pip install --upgrade vaegap."
        )
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: has the schema version {version!r}, not {SCHEMA_VERSION}. {_cure(path.parent)}")


def _beside(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # the table is complete in itself
    return found if isinstance(found, dict) else {}


def mend(record: Record) -> None:
    """Write the run.json of a record whose process was killed before it came to that."""
    for leftover in record.folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    if _beside(record.folder / "run.json").get("table_token") != record.info["table_token"]:
        write_description(record.folder, {**record.info, "num_rows": len(record.rows)})


def complete(rows: pd.DataFrame | Iterable[Mapping[str, Any]], info: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with all columns, in order and typed; what is the same for the whole run comes from its parameters."""
    import pandas as pd

    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame([dict(row) for row in rows], dtype=object)
    unknown = [str(name) for name in table.columns if name not in COLUMNS]
    if unknown:
        raise RecordError(f"{info['run_id']}: no such columns: {', '.join(unknown)}; a record has {', '.join(COLUMNS)}")
    fixed = {name: info[name] for name in ("run_id", "experiment", "profile")} | {"schema_version": SCHEMA_VERSION}
    params = {name: info["params"].get(name) for name in ("dataset", "split", "model", "family", "seed")}
    usual = {name: "" for name, kind in COLUMNS.items() if kind == "string"} | {"image": "mean"}
    usual |= {name: value for name, value in params.items() if not isinstance(value, list | dict | type(None))}
    for name in COLUMNS:
        given = list(table[name]) if name in table and name not in fixed else [None] * len(table)
        default = fixed.get(name, usual.get(name))
        table[name] = pd.Series([default if _absent(value) else value for value in given], table.index, dtype=object)
    table["image"] = table["image"].map(lambda image: str(image).removesuffix(".0"))  # 7.0, where a column had gaps
    try:
        return table[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{info['run_id']}: a column holds values of the wrong type: {error}") from None


def _check(rows: pd.DataFrame, info: Mapping[str, Any], folder: Path) -> pd.DataFrame:
    """Refuse a table that is not one run's complete record."""
    problems = []
    missing = [name for name in COLUMNS if name not in rows]
    if missing:
        problems.append(f"it has no columns {', '.join(missing)}")
    elif not len(rows):
        problems.append("it has no rows")
    else:
        rows = rows.astype(COLUMNS)
        wrong = [name for name in ("run_id", "experiment", "profile") if (rows[name] != info.get(name)).any()]
        problems += [f"{name} differs from the description's {info.get(name)!r}" for name in wrong]
        problems += [f"{name} is empty in some row" for name in _REQUIRED if name != "value" and _blank(rows[name])]
        problems += [] if rows["bound"].isin(_BOUNDS).all() else ["bound must be lower, upper, exact or empty"]
        twice = rows.duplicated(list(_KEY))
        if twice.any():
            problems.append(f"two rows for {rows.loc[twice.idxmax(), ['metric', 'image', 'family']].to_dict()}")
    if info.get("run_id") != folder.name:
        problems.append(f"it belongs to the run {info.get('run_id')}")
    if problems:
        raise RecordError(f"{folder / 'record.parquet'}: not a valid record: {'; '.join(problems)}. {_cure(folder)}")
    return rows


def _absent(value: Any) -> bool:
    """None, pandas' NA, or NaN."""
    return value is None or str(value) == "<NA>" or (isinstance(value, float) and value != value)


def _blank(column: pd.Series) -> bool:
    return bool((column.isna() | (column.astype("string") == "")).any())


def _to_parquet(table: pd.DataFrame, info: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"vaegap": json.dumps(info).encode()})
    sink = pa.BufferOutputStream()
    parquet.write_table(arrow, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())
