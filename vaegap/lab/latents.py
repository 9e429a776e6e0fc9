"""Gaps seen from the latent variables: how many a model uses, what falls to each, and the two of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vaegap.lab.captions import Found
from vaegap.lab.records import Record
from vaegap.lab.seeds import over_seeds
from vaegap.lab.tables import NOTHING, headline
from vaegap.rounding import plus_minus

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["active_units", "plane_gaps", "plane_table", "shares"]


def active_units(groups: Mapping[str, Found], split: str = "train") -> pd.DataFrame | str:
    """Active units, a row a model and a column a training run; a sentence where there are no runs.

    Source: Burda, Grosse & Salakhutdinov 2016, section 5.2: the variance of the posterior mean exceeds 0.01.
    """
    import pandas as pd

    units = {
        (title, label): {f"seed {r.params['seed']}": int(r.value("active_units", split=split)) for r in records}
        for title, found in groups.items()
        for label, records in found.items()
        if records
    }
    return pd.DataFrame(units).T.astype("Int64").astype(object).fillna("no run yet") if units else NOTHING


def shares(found: Found, split: str = "train", title: str = "") -> pd.DataFrame | str:
    """Active units and the approximation gap divided by their number, a row a model; a sentence without runs.

    An inactive latent has the prior as its posterior, which every family holds: only active ones can cost anything.

    Args:
        found: records by model.
        split: of the images.
        title: the data set, to stand above the labels.

    Returns:
        Columns: active units (of each training run), and nats a unit: mean ± half width of the interval over images,
        averaged over training runs (± that of the t-interval over them).
    """
    import pandas as pd

    rows = {}
    for label, records in found.items():
        units = [int(r.value("active_units", split=split)) for r in records]
        gaps = [headline(r, split).loc["approximation", ["mean", "ci_low", "ci_high"]].astype(float) for r in records]
        each = pd.Series([g["mean"] / u for g, u in zip(gaps, units, strict=True)], dtype=float)
        half = pd.Series([(g["ci_high"] - g["ci_low"]) / 2 / u for g, u in zip(gaps, units, strict=True)], dtype=float)
        if not units:
            continue
        rows[label] = {
            "active units": ", ".join(map(str, units)),
            "approximation gap per active unit (nats)": plus_minus(each.mean(), half.mean(), over_seeds(each.tolist())),
        }
    return pd.DataFrame(rows).T.rename_axis(columns=title or None) if rows else NOTHING


def plane_gaps(record: Record) -> pd.DataFrame:
    """Approximation, amortization and inference gap (nats) of each split and image of a "posterior_2d" record."""
    rows = record.select(metric="kl")
    wide = rows[rows["image"] != "mean"].pivot(index=["split", "image"], columns="family", values="value")
    wide["approximation"], wide["inference"] = wide["gaussian"], wide["amortized"]
    wide["amortization"] = wide["inference"] - wide["approximation"]
    gaps: pd.DataFrame = wide[["approximation", "amortization", "inference"]].rename_axis(columns=None)
    return gaps


def plane_table(found: Found) -> pd.DataFrame | str:
    """Gaps of "posterior_2d" records: "mean ± standard error, median" in nats, a row for each run and split.

    The last column tells how fine the grid is: the largest difference of log p(x) from every other point and from all.
    """
    import pandas as pd

    rows = {}
    for label, records in found.items():
        for record in records:
            for split, part in plane_gaps(record).groupby("split", sort=False):
                cells = {
                    f"{gap} gap, nats": f"{plus_minus(each.mean(), each.sem())}, median {each.median():.2f}"
                    for gap, each in part.items()
                }
                error = record.select(metric="quadrature_error", split=split)["value"].max()
                cells["grid: largest error of half its points, nats"] = f"{error:.1g}"
                rows[label, f"seed {record.params['seed']}", split] = cells
    return pd.DataFrame(rows).T if rows else NOTHING
