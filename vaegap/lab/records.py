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
from vaegap.lab.files import write_atomic, write_together
from vaegap.lab.schema import COLUMNS, SCHEMA_VERSION, canonical, check, complete, cure, describe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "SCHEMA_VERSION", "Record", "canonical", "complete", "mend", "read", "write", "write_description"]


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
    def readings(self) -> dict[Any, Any]:
        """What tables have computed from the rows, which never change: a bootstrap is drawn once a record."""
        return {}

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
            raise RecordError(f"{path}: is missing or not the file that the run wrote. {cure(self.folder)}")
        return path

    def caption(self) -> str:
        """One line on where the numbers come from, to stand beside a figure or table."""
        made = self.info.get("provenance", {})
        commit = (made.get("commit") or "no commit")[:9] + ("+" if made.get("dirty") else "")
        threads = made.get("threads") or 1
        machine = made.get("accelerator") or f"{made.get('processor')}, {threads} thread{'s' * (threads != 1)}"
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
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise RecordError("reading records needs pyarrow: pip install 'vaegap[lab]'") from None
    path = folder / "record.parquet"
    try:
        data = path.read_bytes()
        # without threads: starting them takes longer than such a small file, and Arrow may hang when they end
        with parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        inside = (table.schema.metadata or {}).get(b"vaegap")
        found = table.to_pandas(use_threads=False)
    except Exception as error:  # whatever Arrow and pandas make of damaged bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecordError(f"{path}: cannot be read ({reason}). {cure(folder)}") from None
    if inside is None:
        raise RecordError(f"{path}: is not a record that vaegap wrote. {cure(folder)}")
    info = describe(path, inside)
    rows = check(found, info, folder)
    beside = description_beside(folder / "run.json")
    if beside.get("table_token") == info.get("table_token"):
        if beside.get("table_sha256", digest := hashlib.sha256(data).hexdigest()) != digest:
            raise RecordError(f"{path}: is damaged, or was changed after the run wrote it. {cure(folder)}")
        mark = beside.get("verified")
        info["verified"] = mark if isinstance(mark, dict) and isinstance(mark.get("science"), dict) else None
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
    files = {folder / name: Path(source).read_bytes() for name, source in (artifacts or {}).items()}
    kept = {path.name: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    token = hashlib.sha256(os.urandom(16)).hexdigest()[:16]  # ties run.json to this very table
    full = {"schema_version": SCHEMA_VERSION, **canonical(info), "artifacts": kept, "table_token": token}
    table = check(table, full, folder)
    write_together({**files, folder / "record.parquet": _to_parquet(table, full)}, "the record")
    write_description(folder, {**full, "num_rows": len(table)})
    return read(folder)


def write_description(folder: Path, info: Mapping[str, Any]) -> None:
    """Write run.json, the description of a record that people (and `git diff`) read, with the table's digest."""
    digest = hashlib.sha256((folder / "record.parquet").read_bytes()).hexdigest()
    info = {**info, "table_sha256": digest}
    write_atomic(folder / "run.json", (json.dumps(info, indent=1) + "\n").encode(), "the record's description")


def description_beside(path: Path) -> dict[str, Any]:
    """What run.json says; nothing where it is missing or damaged, for the table is complete in itself."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mend(record: Record) -> None:
    """Write the run.json of a record whose process was killed before it came to that."""
    for leftover in record.folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    if description_beside(record.folder / "run.json").get("table_token") != record.info["table_token"]:
        write_description(record.folder, {**record.info, "num_rows": len(record.rows)})


def _to_parquet(table: pd.DataFrame, info: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrow = pa.Table.from_pandas(table, preserve_index=False, nthreads=1)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"vaegap": json.dumps(info).encode()})
    sink = pa.BufferOutputStream()
    parquet.write_table(arrow, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())
