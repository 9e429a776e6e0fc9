"""What a record's table and its description look like, and what is refused.

Everything that is read from a disk may be damaged or made by others, so nothing of it is used before it was looked at.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.lab.errors import RecordError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "SCHEMA_VERSION", "canonical", "check", "complete", "cure", "describe"]

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
_DESCRIBED: dict[str, type] = {"run_id": str, "experiment": str, "profile": str, "params": dict, "science": dict}
_DESCRIBED |= {"artifacts": dict, "table_token": str}


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


def cure(folder: Path) -> str:
    """What to do about a record that cannot be used."""
    return (
        f"If it is a published one, get it back (git checkout -- {folder.name}, in {folder.parent}); else delete it "
        f"(rm -r {shlex.quote(str(folder))}) and run it again."
    )


def describe(path: Path, text: bytes) -> dict[str, Any]:
    """The description inside a table, after a look at it.

    Raises:
        RecordError: it is of a newer version, truncated, or without something that records have.
    """
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise RecordError(f"{path}: the description inside is damaged. {cure(path.parent)}")
    _check_version(path, info.get("schema_version"))
    wrong = [name for name, kind in _DESCRIBED.items() if not isinstance(info.get(name), kind)]
    if wrong:
        raise RecordError(f"{path}: the description inside has no valid {', '.join(wrong)}. {cure(path.parent)}")
    return info


def _check_version(path: Path, version: Any) -> None:
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: was written by a newer vaegap (schema version {version}; this one reads up to {SCHEMA_VERSION}). "
            "Update the package: git pull, or pip install --upgrade vaegap."
        )
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: has the schema version {version!r}, not {SCHEMA_VERSION}. {cure(path.parent)}")


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


def check(rows: pd.DataFrame, info: Mapping[str, Any], folder: Path) -> pd.DataFrame:
    """Refuse a table that is not one run's complete record."""
    problems = []
    missing = [name for name in COLUMNS if name not in rows]
    if missing:
        problems.append(f"it has no columns {', '.join(missing)}")
    elif not len(rows):
        problems.append("it has no rows")
    else:
        rows = _typed(rows, folder)
        wrong = [name for name in ("run_id", "experiment", "profile") if (rows[name] != info.get(name)).any()]
        problems += [f"{name} differs from the description's {info.get(name)!r}" for name in wrong]
        problems += [f"{name} is empty in some row" for name in _REQUIRED if name != "value" and _blank(rows[name])]
        problems += [] if rows["bound"].isin(_BOUNDS).all() else ["bound must be lower, upper, exact or empty"]
        problems += ["all its values are NaN"] if rows["value"].isna().all() else []
        twice = rows.duplicated(list(_KEY))
        if twice.any():
            problems.append(f"two rows for {rows.loc[twice.idxmax(), ['metric', 'image', 'family']].to_dict()}")
    if info.get("run_id") != folder.name:
        problems.append(f"it belongs to the run {info.get('run_id')}")
    if problems:
        raise RecordError(f"{folder / 'record.parquet'}: not a valid record: {'; '.join(problems)}. {cure(folder)}")
    return rows


def _typed(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    try:
        return rows.astype(COLUMNS)
    except (ValueError, TypeError) as error:
        raise RecordError(
            f"{folder / 'record.parquet'}: a column holds values of the wrong type ({error}). {cure(folder)}"
        ) from None


def _absent(value: Any) -> bool:
    """None, pandas' NA, or NaN."""
    return value is None or str(value) == "<NA>" or (isinstance(value, float) and value != value)


def _blank(column: pd.Series) -> bool:
    return bool((column.isna() | (column.astype("string") == "")).any())
