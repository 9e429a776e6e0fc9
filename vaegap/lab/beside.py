"""Our numbers beside those of others: the paper's tables, and what earlier reproductions stored (`published.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.lab.captions import Caption
from vaegap.lab.files import find_root
from vaegap.lab.records import Record
from vaegap.lab.tables import ROWS, gap_table
from vaegap.rounding import decimals

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["side_by_side", "sources"]

_PLAIN = (", 200-200", ", annealed")  # how pages call the standard model beside a changed one
_COLUMNS = ("log_p", "L_star_aux_flow", "L_star_gaussian", "L_q", "approximation", "amortization", "inference")


def side_by_side(found: Mapping[str, Sequence[Record]], title: str, root: Path | None = None) -> pd.DataFrame:
    """The bounds and gaps of some models on training images, as others found them and as we did (nats).

    Args:
        found: label -> records of one data set.
        title: the data set, as the pages call it.
        root: the project's.

    Returns:
        A row for each model and source, the last two ours: the mean over images and training runs, and the half width
        of its 95 % interval, the wider of that over training runs and, of bounds, of the Monte Carlo error, of gaps,
        of that over images.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, str]] = {}
    for label, records in found.items():
        for content in _contents(root).values():
            values = content["columns"].get(f"{title}, {_plain(label)}")
            if values:
                pairs = zip(content["rows"], values, strict=True)
                rows[label, content["name"]] = {row: printed for row, printed in pairs if printed != "null"}
        means, errors = _ours(list(records))
        rows[label, "ours"] = means or dict.fromkeys(_COLUMNS, "no run yet")
        rows[label, "95 % of ours"] = errors
    table = pd.DataFrame(rows, index=list(_COLUMNS)).rename(index=ROWS).T.fillna("–")
    return table.loc[[bool((row != "–").any()) for _, row in table.iterrows()]].rename_axis(columns=f"{title}, nats")


def sources(table: pd.DataFrame, root: Path | None = None) -> Caption:
    """What stands under `side_by_side`: whose numbers these are, and whether somebody compared them with the print."""
    shown = set(table.index.get_level_values(1))
    said = [f"{c['name']}: {c['source']}; {c['status']}" for c in _contents(root).values() if c["name"] in shown]
    ours = "ours: the runs of the tables above; the last row is the wider of their 95 % intervals"
    return Caption(". ".join([*(said or ["nobody's numbers for these models are known to us"]), ours]))


def _plain(label: str) -> str:
    for suffix in _PLAIN:
        label = label.removesuffix(suffix)
    return label


def _ours(records: list[Record]) -> tuple[dict[str, str], dict[str, str]]:
    """Means, to two decimals at most, as the others'; and what they are known to."""
    if not records:
        return {}, {}
    values = gap_table({"ours": records})["ours"]
    means, errors = {}, {}
    for row in _COLUMNS:
        if (name := ROWS[row]) in values.index:
            one = values.loc[name]
            own = one["images"] if "gap" in name else 1.96 * one["mcse"]
            error = own if math.isnan(one["seeds"]) else max(own, one["seeds"])
            means[row] = f"{one['mean']:.{min(2, decimals(error))}f}"
            errors[row] = f"± {error:.{decimals(error)}f}"
    return means, errors


def _contents(root: Path | None) -> dict[str, dict[str, Any]]:
    import yaml

    text = ((root or find_root()) / "published.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=yaml.BaseLoader))  # numbers stay as they were printed
