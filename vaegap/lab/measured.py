"""What a check of the claims ledger is evaluated on: the records that fit, as tables of images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vaegap.lab.records import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["by_seed", "means", "table_of"]


def by_seed(records: Iterable[Record], wanted: dict[str, Any]) -> dict[int, tuple[pd.DataFrame, str]]:
    """seed -> (per-image table with headline gaps, run id) of the records that fit.

    `rows` holds labels of rows (split, model, ...); everything else is compared with the run's parameters, and
    parameters that are not named must have their experiment's defaults.
    """
    from vaegap.lab import experiments

    rows = dict(wanted.pop("rows", {"split": "train"}))
    name = wanted.pop("experiment", "gap_decomposition")
    usual = dict(experiments.get(name).defaults)
    found = {}
    for record in records:
        if record.experiment != name:
            continue
        model = [
            k for k in ("family", "latent_dim", "encoder", "decoder", "activation", "anneal", "frozen") if k in usual
        ]
        asked: dict[str, Any] = {**{k: usual[k] for k in model}, **wanted}
        if any(record.params.get(k) != v for k, v in asked.items()):
            continue
        table = table_of(record, rows)
        if len(table):
            found[int(record.params["seed"])] = (table, record.run_id)
    return found


def table_of(record: Record, rows: Mapping[str, Any]) -> pd.DataFrame:
    """Bounds and headline gaps of every image (nats), and numbers of the whole model repeated; empty without any.

    Args:
        record: the record.
        rows: labels of its rows: split, model; `last_epoch: true` for the last milestone; `first` for how many images.
    """
    import pandas as pd

    if record.experiment == "posterior_2d":
        part = record.select(metric="kl", **rows)
        part = part[part["image"] != "mean"].assign(image=lambda r: r["image"].astype(int))
        return part.pivot(index="image", columns="family", values="value").sort_index().add_prefix("kl_")
    from vaegap.lab.protocols import gap_tables

    labels = {k: v for k, v in rows.items() if k not in ("last_epoch", "first")}
    if rows.get("last_epoch"):
        epochs = record.select(metric="L_q", **labels)["model"].unique()
        labels["model"] = max(epochs, key=lambda m: int(str(m).rsplit(" ", 1)[1]))
    if record.select(metric="L_q", **labels).empty:
        return pd.DataFrame()
    table, _ = gap_tables(record, **labels)
    table = table.iloc[: rows.get("first")].copy()
    own = record.params["family"]
    for gap in ("approximation", "amortization"):
        if f"{gap}_{own}" in table:
            table[gap] = table[f"{gap}_{own}"]
    made = {"model": labels["model"]} if "model" in labels else {}  # each milestone has a width of its own
    for metric, where in (("active_units", {"split": rows.get("split", "train")}), ("bdmc_width", made)):
        one = record.select(metric=metric, **where)
        table[metric] = float(one["value"].iloc[0]) if len(one) == 1 else math.nan
        if len(one) == 1 and one["mcse"].notna().all():
            table.attrs.setdefault("mcse", {})[metric] = float(one["mcse"].iloc[0])
    return table


def means(table: pd.DataFrame, weights: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Column -> its mean over images, or one for each row of weights (R, N)."""
    values = table.to_numpy(dtype=float)
    means = values.mean(0) if weights is None else weights @ values
    return {name: means[..., i] for i, name in enumerate(table.columns)}
