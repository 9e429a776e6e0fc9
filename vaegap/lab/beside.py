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
from vaegap.rounding import plus_minus, unbroken

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["printed", "side_by_side", "sources"]

_PLAIN = (", 200-200", ", annealed")  # how pages call the standard model beside a changed one
_THEIRS = ("log_p", "L_star_aux_flow", "L_star_gaussian", "L_q", "approximation", "amortization", "inference")
_ROWS = (*_THEIRS, "bdmc_width")  # what certifies our log p̂


def side_by_side(found: Mapping[str, Sequence[Record]], title: str, root: Path | None = None) -> pd.DataFrame:
    """The bounds and gaps of some models on training images, as others found them and as we did (nats).

    Args:
        found: label -> records of one data set.
        title: the data set, as the pages call it.
        root: the project's.

    Returns:
        A row for each model and quantity, a column for each source that says anything of them, the last one ours: the
        mean over images and training runs ± half its 95 % interval, the wider of that over training runs and, of
        bounds, of the Monte Carlo error, of gaps, of that over images.
    """
    import pandas as pd

    columns: dict[str, dict[tuple[str, str], str]] = {}
    for content in _contents(root).values():
        for label in found:
            for row, value in _printed(content, title, label).items():
                columns.setdefault(content["name"], {})[label, row] = value
    columns["ours"] = {(label, row): cell for label, cells in _ours(found).items() for row, cell in cells.items()}
    index = [(label, row) for label in found for row in _ROWS if any((label, row) in c for c in columns.values())]
    table = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index) if index else None).fillna("–")
    table = table.rename(index=ROWS, level=1).rename_axis(columns=f"{title}, nats")
    table.attrs["fewer"] = [f"{label}, so far {images}" for label, _, _, images in getattr(found, "fewer", [])]
    return table


def sources(table: pd.DataFrame, root: Path | None = None) -> Caption:
    """What stands under `side_by_side`: whose numbers these are, and whether somebody compared them with the print."""
    said = [f"{c['name']}: {c['source']}; {c['status']}" for c in _contents(root).values() if c["name"] in table]
    ours = "ours: the runs of the tables above; ± half the wider of their 95 % intervals"
    fewer = table.attrs.get("fewer", [])
    return Caption(". ".join([*(said or ["nobody's numbers for these models are known to us"]), ours, *fewer]))


def printed(title: str, label: str, who: str = "paper", root: Path | None = None) -> tuple[str, dict[str, str]]:
    """What a source calls itself, and its numbers for one model as they were printed, by row.

    Args:
        title: the data set, as the pages call it.
        label: the model, as the pages call it.
        who: key of `published.yaml`.
        root: the project's.

    Example:
        >>> name, numbers = printed("MNIST", "q_FFG")
        >>> name, sorted(numbers)[:2]
        ('the paper (unverified)', ['L_q', 'L_star_aux_flow'])
    """
    content = _contents(root)[who]
    return content["name"], _printed(content, title, label)


def _printed(content: Mapping[str, Any], title: str, label: str) -> dict[str, str]:
    for suffix in _PLAIN:
        label = label.removesuffix(suffix)
    values = content["columns"].get(f"{title}, {label}", ())
    return {row: value for row, value in zip(content["rows"], values, strict=False) if value != "null"}


def _ours(found: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, str]]:
    """Means ± what they are known to, of every model."""
    table = gap_table(found)
    cells: dict[str, dict[str, str]] = {}
    for label, records in found.items():
        cells[label] = {} if records else dict.fromkeys(_THEIRS, "no run yet")
        for row in _ROWS if records else ():
            if (name := ROWS[row]) in table.index and not math.isnan(table.loc[name, (label, "mean")]):
                one = table[label].loc[name]
                own = one["images"] if "gap" in name else 1.96 * one["mcse"]  # a bound's, and a width's
                error = own if math.isnan(one["seeds"]) else max(own, one["seeds"])
                cells[label][row] = unbroken(plus_minus(one["mean"], error))
    return cells


def _contents(root: Path | None) -> dict[str, dict[str, Any]]:
    import yaml

    text = ((root or find_root()) / "published.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=yaml.BaseLoader))  # numbers stay as they were printed
