"""Our numbers beside those of others: the paper's tables, and what earlier reproductions stored (`published.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.lab.captions import Caption, with_caption
from vaegap.lab.files import find_root
from vaegap.lab.records import Record
from vaegap.lab.tables import ROWS, gap_table
from vaegap.rounding import plus_minus, unbroken

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["printed", "show", "side_by_side", "sources"]

_PLAIN = (", 200-200", ", annealed")  # how pages call the standard model beside a changed one
_USUAL = ("log_p", "L_star_aux_flow", "L_star_gaussian", "L_q", "approximation", "amortization", "inference")
_ROWS = (*_USUAL[:2], "L_star_flow", *_USUAL[2:], "bdmc_width")  # a width certifies our log p̂
_SPLITS = {"train": "training images", "test": "held-out images"}


def show(groups: Mapping[str, Mapping[str, Sequence[Record]]]) -> None:
    """Put `side_by_side` of every group on the page: of training images, and of held-out ones where others have any.

    Args:
        groups: title of a data set -> records by model.
    """
    for title, found in groups.items():
        for split in _SPLITS:
            table = side_by_side(found, title, split)
            if split == "train" or len(table.columns) > 1:
                with_caption(table, sources(table))


def side_by_side(
    found: Mapping[str, Sequence[Record]], title: str, split: str = "train", root: Path | None = None
) -> pd.DataFrame:
    """The bounds and gaps of some models, as others found them and as we did (nats).

    Args:
        found: label -> records of one data set.
        title: the data set, as the pages call it.
        split: whose images: "train" or "test".
        root: the project's.

    Returns:
        A row for each model and quantity, a column for each source that says anything of them, the last one ours: the
        mean over images and training runs ± half its 95 % interval, the wider of that over training runs and, of
        bounds, of the Monte Carlo error, of gaps, of that over images.
    """
    import pandas as pd

    columns: dict[str, dict[tuple[str, str], str]] = {}
    for content in _contents(root, split).values():
        for label in found:
            for row, value in _printed(content, title, label).items():
                columns.setdefault(content["name"], {})[label, row] = value
    columns["ours"] = {
        (label, row): cell for label, cells in _ours(found, split).items() for row, cell in cells.items()
    }
    index = [(label, row) for label in found for row in _ROWS if any((label, row) in c for c in columns.values())]
    table = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index) if index else None).fillna("–")
    table = table.rename(index=ROWS, level=1).rename_axis(columns=f"{title}, {_SPLITS[split]}, nats")
    table.attrs["split"] = split
    table.attrs["fewer"] = [f"{label}, so far {images}" for label, _, _, images in getattr(found, "fewer", [])]
    return table


def sources(table: pd.DataFrame, root: Path | None = None) -> Caption:
    """What stands under `side_by_side`: whose numbers these are, and whether somebody compared them with the print."""
    known = _contents(root, table.attrs["split"]).values()
    shown = [c for c in known if c["name"] in table and _says(c, table)]
    said = [f"{c['name']}: {c['source']}; {c['status']}" for c in shown]
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
    content = _contents(root, None)[who]
    return content["name"], _printed(content, title, label)


def _printed(content: Mapping[str, Any], title: str, label: str) -> dict[str, str]:
    for suffix in _PLAIN:
        label = label.removesuffix(suffix)
    values = content["columns"].get(f"{title}, {label}", ())
    return {row: value for row, value in zip(content["rows"], values, strict=False) if value != "null"}


def _ours(found: Mapping[str, Sequence[Record]], split: str) -> dict[str, dict[str, str]]:
    """Means ± what they are known to, of every model."""
    table = gap_table(found, split)
    cells: dict[str, dict[str, str]] = {}
    for label, records in found.items():
        cells[label] = {} if records else dict.fromkeys(_USUAL, "no run yet")
        for row in _ROWS if records else ():
            if (name := ROWS[row]) in table.index and not math.isnan(table.loc[name, (label, "mean")]):
                one = table[label].loc[name]
                own = one["images"] if "gap" in name else 1.96 * one["mcse"]  # a bound's, and a width's
                error = own if math.isnan(one["seeds"]) else max(own, one["seeds"])
                cells[label][row] = unbroken(plus_minus(one["mean"], error))
    return cells


def _says(content: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Whether it has numbers for the models of a table; one source may have several entries."""
    title = str(table.columns.name).partition(", ")[0]
    return any(_printed(content, title, label) for label in table.index.get_level_values(0))


def _contents(root: Path | None, split: str | None) -> dict[str, dict[str, Any]]:
    """What is stored of some images (None: of all)."""
    import yaml

    text = ((root or find_root()) / "published.yaml").read_text(encoding="utf-8")
    stored = yaml.load(text, Loader=yaml.BaseLoader)  # numbers stay as they were printed
    return {who: content for who, content in stored.items() if split in (None, content.get("split", "train"))}
