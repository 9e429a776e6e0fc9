"""What the paper's own schedule changes: the same models in two profiles, measured on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaegap.lab.beside import printed
from vaegap.lab.records import Record
from vaegap.lab.seeds import t95
from vaegap.lab.tables import NOTHING, ROWS, too_wide
from vaegap.rounding import plus_minus, unbroken

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["beside_the_print", "changes"]

_ROWS = ("log_p", "L_star_aux_flow", "L_star_full_gaussian", "L_star_gaussian", "L_q")
_GAPS = ("approximation", "amortization", "inference")


def changes(short: Sequence[Record], long: Sequence[Record], split: str = "train") -> pd.DataFrame:
    r"""Bounds and gaps of one model trained on two schedules, and how far these differ (nats).

    All are read on the same images, the first ones, as many as every run has. Training runs on one schedule differ,
    too: the change is known to ± t s √(1/n + 1/m), where n and m runs on either schedule have the pooled standard
    deviation s, and t is the 97.5 % quantile with n + m − 2 degrees of freedom. `half` is the wider of that and of the
    95 % interval over images, paired.

    Args:
        short: records of the first schedule, one a training seed; at least one.
        long: records of the second.
        split: "train" or "test".

    Returns:
        a row for each bound and gap; columns short, long, change, half. `half` is NaN for one run of each, which say
        nothing of how runs differ.
    """
    import pandas as pd

    each = [[_bounds(record, split) for record in records] for records in (short, long)]
    fewest = min(len(table) for tables in each for table in tables)
    rows = {}
    for row in [row for row in (*_ROWS, *_GAPS) if all(row in t for tables in each for t in tables)]:
        before, after = (
            pd.concat([t[row].iloc[:fewest] for t in tables], axis=1, ignore_index=True) for tables in each
        )
        change = after.mean(axis=1) - before.mean(axis=1)
        images = 1.96 * change.std() / math.sqrt(fewest)
        half = max(images, _between(before.mean(), after.mean())) if len(short) + len(long) > 2 else math.nan
        levels = {"short": before.mean().mean(), "long": after.mean().mean()}
        rows[row] = {**levels, "change": levels["long"] - levels["short"], "half": half}
    return pd.DataFrame(rows).T


def beside_the_print(
    short: Mapping[str, Sequence[Record]], long: Mapping[str, Sequence[Record]], title: str, root: Path | None = None
) -> pd.DataFrame | str:
    """`changes` of every model on training images, to be read, beside the paper's transcribed numbers.

    Args:
        short, long: label -> records of the two schedules.
        title: the data set, as the pages call it.
        root: the project's.

    Returns:
        a row for each model and quantity, or a sentence where no model has runs on both schedules. The last column
        says whether the longer training brings the number closer to the transcribed one, where there is one and the
        change is larger than `half`; "not known" where neither schedule has two runs.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, str]] = {}
    for label in [label for label in short if short[label] and long.get(label)]:
        name, numbers = printed(title, label, root=root)
        profiles = [f"{records[label][0].info['profile']} profile" for records in (short, long)]
        for row, one in changes(short[label], long[label]).iterrows():
            theirs = numbers.get(str(row))
            before, after = (plus_minus(one[key], one["half"]).partition(" ")[0] for key in ("short", "long"))
            rows[label, ROWS[str(row)]] = {
                name: theirs or "–",
                profiles[0]: before,
                profiles[1]: after,
                "change": unbroken(plus_minus(one["change"], one["half"])),
                "where to": _direction(one, theirs),
            }
        widths = (_width(records[label]) for records in (short, long))
        rows[label, ROWS["bdmc_width"]] = {name: "–", **dict(zip(profiles, widths, strict=True))}
    if not rows:
        return f"{title}: {NOTHING}"
    return pd.DataFrame(rows).T.fillna("–").rename_axis(columns=f"{title}, nats")


def _width(records: Sequence[Record]) -> str:
    """The mean width of the sandwiches that certify log p̂, and its Monte Carlo error; marked if any is too wide."""
    found = [record.select(metric="bdmc_width", split="simulated").iloc[0] for record in records]
    errors = [float(one["mcse"]) for one in found]
    values = [float(one["value"]) for one in found]
    cell = plus_minus(sum(values) / len(values), math.hypot(*errors) / len(errors))
    return cell + too_wide(*values)


def _direction(one: pd.Series, theirs: str | None) -> str:
    if math.isnan(one["half"]):
        return "not known"
    if not abs(one["change"]) > one["half"]:
        return "not clear"
    if theirs is None:
        return "up" if one["change"] > 0 else "down"
    before, after = (abs(one[key] - float(theirs)) for key in ("short", "long"))
    return "closer" if after < before else "farther"


def _between(before: pd.Series, after: pd.Series) -> float:
    """Half width of the 95 % t-interval of the difference between two means over training runs."""
    n, m = len(before), len(after)
    pooled = sum(((values - values.mean()) ** 2).sum() for values in (before, after)) / (n + m - 2)
    return float(t95(n + m - 2) * math.sqrt(pooled * (1 / n + 1 / m)))


def _bounds(record: Record, split: str) -> pd.DataFrame:
    """Bounds and gaps of every image, the gaps of the encoder's own family under their plain names."""
    from vaegap.lab.protocols import gap_tables

    table, _ = gap_tables(record, split=split)
    own = record.params["family"]
    return table.rename(columns={f"{gap}_{own}": gap for gap in ("approximation", "amortization")})
