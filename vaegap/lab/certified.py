"""Tables of a "certificates" record: what each way to estimate log p(x) is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vaegap.lab.records import Record
from vaegap.lab.tables import NOTHING, width_cell
from vaegap.rounding import plus_minus

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["estimates", "oracles", "repeated", "sandwiches"]


def sandwiches(record: Record) -> pd.DataFrame:
    """The BDMC sandwich (nats) and the seconds it took, for each way to estimate log p(x), the narrowest first.

    A width above `tables.WIDEST` says so.
    """
    import pandas as pd

    rows = record.select(split="simulated")
    wide = rows.pivot(index="model", columns="metric", values="value").sort_values("bdmc_width")
    errors = rows.pivot(index="model", columns="metric", values="mcse").loc[wide.index]
    shown = pd.DataFrame(index=wide.index)
    for metric, title in (("bdmc_width", "width"), ("lower", "lower bound"), ("upper", "upper bound")):
        pairs = zip(wide[metric], errors[metric], strict=True)
        cell = width_cell if metric == "bdmc_width" else plus_minus
        shown[f"{title} (nats)"] = [cell(value, error) for value, error in pairs]
    shown["seconds"] = [f"{seconds:.0f}" for seconds in wide["seconds"]]
    return shown.rename_axis(index=None, columns=None)


def repeated(found: Mapping[str, Sequence[Record]]) -> pd.DataFrame | str:
    """The width of every way on every training run, a row a way and a column a run; a sentence without records.

    Args:
        found: model -> "certificates" records, one a seed.
    """
    import pandas as pd

    columns = {}
    for label, records in found.items():
        for record in records:
            widths = record.select(split="simulated", metric="bdmc_width").set_index("model")[["value", "mcse"]]
            cells = {way: width_cell(*row) for way, row in widths.iterrows()}
            columns[label, f"seed {record.params['seed']}"] = cells
    return pd.DataFrame(columns).fillna("–") if columns else NOTHING


def estimates(record: Record) -> pd.DataFrame:
    """log p̂ on real images by each estimator, of a "certificates" record: nats ± error, share of k̂ > 0.7, width."""
    values = record.select(split="train", metric="log_p").set_index("model").sort_values("value")
    heavy = record.select(metric="khat_above_0.7").set_index("model")["value"].rename("share with k̂ > 0.7")
    shown = values[["num_samples"]].rename(columns={"num_samples": "samples"}).astype(object)
    shown.insert(0, "log p̂ (nats)", [plus_minus(v, e) for v, e in values[["value", "mcse"]].to_numpy()])
    shown = shown.join(heavy.round(3).astype(object))
    widths = record.select(split="simulated", metric="bdmc_width").set_index("model")[["value", "mcse"]]
    for way, row in widths.iterrows():  # of the ways on simulated images one is used on real ones, too
        if str(way).startswith("q*_full"):
            shown.loc["AIS from q*_full", "BDMC width"] = width_cell(*row)
    return shown.where(shown.notna(), "–").rename_axis(index=None)  # annealing has neither samples nor k̂


def oracles(record: Record, title: str = "") -> pd.DataFrame | str:
    """What each estimator misses where log p(x) is known: mean of log p̂ − log p and its Monte Carlo error, nats.

    A column an oracle; the estimators stand in the order of the record, and last what the oracle itself is off by at
    most. A sentence where the record has none.
    """
    import pandas as pd

    rows = record.select(metric="log_p_error")
    if rows.empty:
        return f"{title}: the record is from before oracles were measured."
    cells = [plus_minus(value, error) for value, error in rows[["value", "mcse"]].to_numpy()]
    names = rows["split"].str.removeprefix("oracle, ")
    table = pd.DataFrame({"way": rows["model"].to_numpy(), "oracle": names.to_numpy(), "error": cells})
    order = list(dict.fromkeys(table["way"]))
    shown = table.pivot(index="way", columns="oracle", values="error").loc[order]
    unsure = record.select(metric="oracle_error").set_index("split")["value"]
    shown.loc["error of the oracle"] = [f"{unsure[f'oracle, {name}']:.1g}" for name in shown.columns]
    return shown.rename_axis(index=None, columns=f"{title}, nats")
