"""What a check of the claims ledger is evaluated on: the records that fit, as tables of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vaegap.lab.records import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["WHOLE_MODEL", "by_seed", "means", "table_of"]

_MODEL = ("family", "latent_dim", "encoder", "decoder", "activation", "architecture", "anneal", "frozen")
WHOLE_MODEL = {"active_units", "bdmc_width"}  # numbers that images do not have one by one


def by_seed(records: Iterable[Record], wanted: dict[str, Any]) -> dict[int, tuple[pd.DataFrame, str]]:
    """seed -> (per-image table with headline gaps, run id) of the records that fit.

    `rows` holds labels of rows (see `table_of`); everything else is compared with the run's parameters, and parameters
    of the model that are not named must have their experiment's defaults. Of several records of one model and seed that
    with the most images counts.
    """
    from vaegap.lab import experiments

    rows = dict(wanted.pop("rows", {"split": "train"}))
    name = wanted.pop("experiment", "gap_decomposition")
    usual = dict(experiments.get(name).defaults)
    found: dict[int, tuple[pd.DataFrame, str]] = {}
    for record in records:
        if record.experiment != name:
            continue
        model = [k for k in _MODEL if k in usual]
        asked: dict[str, Any] = {**{k: usual[k] for k in model}, **wanted}
        if any(record.params.get(k) != v for k, v in asked.items()):
            continue
        table, seed = table_of(record, rows), int(record.params["seed"])
        if len(table) > (len(found[seed][0]) if seed in found else 0):
            found[seed] = (table, record.run_id)
    return found


def table_of(record: Record, rows: Mapping[str, Any]) -> pd.DataFrame:
    """Bounds and headline gaps of every image (nats), and numbers of the whole model repeated; empty without any.

    Args:
        record: the record.
        rows: labels of its rows: split, model; `first_epoch: true` or `last_epoch: true` for the first or the last
            milestone; `first` for how many images.

    Returns:
        a row an image; what the record does not hold is no column.
    """
    import pandas as pd

    if record.experiment == "posterior_2d":
        part = record.select(metric="kl", **rows)
        part = part[part["image"] != "mean"].assign(image=lambda r: r["image"].astype(int))
        table = part.pivot(index="image", columns="family", values="value").sort_index().add_prefix("kl_")
        if {"kl_amortized", "kl_gaussian"} <= set(table.columns):
            excess = table["kl_amortized"] - 2 * table["kl_gaussian"]
            table["amortization_is_larger"] = (excess > 0).astype(float).where(excess.notna())
        return table
    if record.experiment == "certificates":  # one number a way of estimating
        one = record.select(metric="bdmc_width", **rows)
        if len(one) != 1:
            return pd.DataFrame()
        table = pd.DataFrame({"bdmc_width": [float(one["value"].iloc[0])] * int(record.params["num_simulated"])})
        table.attrs["mcse"] = {"bdmc_width": float(one["mcse"].iloc[0])}
        return table
    from vaegap.lab.protocols import gap_tables

    labels = {k: v for k, v in rows.items() if k not in ("first_epoch", "last_epoch", "first")}
    for which, end in (("first_epoch", min), ("last_epoch", max)):
        if rows.get(which):
            epochs = record.select(metric="L_q", **labels)["model"].unique()
            if not len(epochs):
                return pd.DataFrame()
            labels["model"] = end(epochs, key=lambda m: int(str(m).rsplit(" ", 1)[1]))
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
        if len(one) != 1:
            continue
        table[metric] = float(one["value"].iloc[0])
        if one["mcse"].notna().all():
            table.attrs.setdefault("mcse", {})[metric] = float(one["mcse"].iloc[0])
    return table


def means(table: pd.DataFrame, weights: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Column -> its mean over images, or one for each row of weights (R, N)."""
    values = table.to_numpy(dtype=float)
    means = values.mean(0) if weights is None else weights @ values
    return {name: means[..., i] for i, name in enumerate(table.columns)}
