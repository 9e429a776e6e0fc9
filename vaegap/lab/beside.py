"""Our numbers beside those of others: the paper's tables, and what earlier reproductions stored (`published.yaml`)."""

from __future__ import annotations

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


def side_by_side(
    found: Mapping[str, Sequence[Record]], title: str, split: str = "train", root: Path | None = None
) -> pd.DataFrame:
    """The bounds and gaps of some models as others found them, and as we did (nats).

    Args:
        found: label -> records of one data set.
        title: the data set, as the pages call it.
        split: which of our images; all others' numbers are about training images.
        root: the project's.

    Returns:
        A row for each model and source, the last two ours: the mean over images and training runs, and its error: of
        bounds by Monte Carlo, of gaps the wider of the 95 % intervals over images and over training runs.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, str]] = {}
    for label, records in found.items():
        for content in _contents(root).values():
            values = content["columns"].get(f"{title}, {_plain(label)}")
            if values:
                pairs = zip(content["rows"], values, strict=True)
                rows[label, content["name"]] = {row: f"{v:.2f}" for row, v in pairs if v is not None}
        means, errors = _ours(list(records), split)
        rows[label, "ours"] = means or dict.fromkeys(_COLUMNS, "no run yet")
        rows[label, "error of ours"] = errors
    table = pd.DataFrame(rows, index=list(_COLUMNS)).rename(index=ROWS).T.fillna("–")
    return table.loc[[bool((row != "–").any()) for _, row in table.iterrows()]].rename_axis(columns=f"{title}, nats")


def sources(root: Path | None = None) -> Caption:
    """What stands under `side_by_side`: whose numbers these are, and whether somebody compared them with the print."""
    items = [(f"{c['name']}:", "", f"{c['source']}; {c['status']}") for c in _contents(root).values()]
    summary = "numbers of others: published.yaml, no run of ours; ours and their runs: the tables above"
    return Caption(f"{summary}. {'. '.join(' '.join(filter(None, item)) for item in items)}")


def _plain(label: str) -> str:
    for suffix in _PLAIN:
        label = label.removesuffix(suffix)
    return label


def _ours(records: list[Record], split: str) -> tuple[dict[str, str], dict[str, str]]:
    """Means and errors, to the same decimals; two at most, as the others'."""
    if not records:
        return {}, {}
    values = gap_table({"ours": records}, split)["ours"]
    means, errors = {}, {}
    for row in _COLUMNS:
        if (name := ROWS[row]) in values.index:
            one = values.loc[name]
            error = max(one[["images", "seeds"]].dropna()) if "gap" in name else one["mcse"]
            places = min(2, decimals(error))
            means[row], errors[row] = f"{one['mean']:.{places}f}", f"± {error:.{max(places, decimals(error))}f}"
    return means, errors


def _contents(root: Path | None) -> dict[str, dict[str, Any]]:
    import yaml

    return dict(yaml.safe_load(((root or find_root()) / "published.yaml").read_text(encoding="utf-8")))
