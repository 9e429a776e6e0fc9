"""Records side by side: the paper's tables, with errors over images and over seeds kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.lab.captions import Caption, caption, live, with_caption
from vaegap.lab.claims import t95
from vaegap.lab.files import find_root
from vaegap.lab.gathering import DATASETS, Found, collect
from vaegap.lab.records import Record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "DATASETS",
    "ROWS",
    "Found",
    "bands",
    "caption",
    "certificates",
    "collect",
    "estimates",
    "gap_figure",
    "gap_table",
    "headline",
    "ledger",
    "live",
    "milestones",
    "published",
    "show",
    "source",
    "verdicts",
    "with_caption",
]

ROWS = {
    "log_p": "log p̂(x)",
    "L_star_aux_flow": "L[q*_AF]",
    "L_star_full_gaussian": "L[q*_full]",
    "L_star_flow": "L[q*_flow]",
    "L_star_gaussian": "L[q*_FFG]",
    "L_q": "L[q]",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
    "inference": "inference gap",
    "bdmc_width": "BDMC width",
}


def headline(record: Record, split: str = "train", **labels: Any) -> pd.DataFrame:
    """`decomposition.summarize` of a record, with the gaps of the encoder's own family under their plain names."""
    from vaegap import decomposition
    from vaegap.lab.protocols import gap_tables

    summary = decomposition.summarize(*gap_tables(record, split=split, **labels))
    own = record.params["family"]
    for gap in ("approximation", "amortization"):
        if f"{gap}_{own}" in summary.index:
            summary.loc[gap] = summary.loc[f"{gap}_{own}"]
    width = record.select(metric="bdmc_width")
    if len(width):
        value, error = width[["value", "mcse"]].iloc[0]
        summary.loc["bdmc_width", ["mean", "mcse"]] = value, error
    return summary


def gap_table(found: Mapping[str, Sequence[Record]], split: str = "train", **labels: Any) -> pd.DataFrame:
    """The paper's Table 2 for any models: rows as in `ROWS`, and for each model five columns.

    Columns, in nats: mean (over images and seeds), mcse (Monte-Carlo error of one seed's mean), images (half width of
    the 95 % bootstrap interval over images, mean over seeds), seeds (half width of the 95 % t-interval over seeds; NaN
    for one), runs (how many).
    """
    import pandas as pd

    columns = {}
    for label, records in found.items():
        if not records:
            continue
        summaries = [headline(r, split, **labels) for r in records]
        means = pd.concat([s["mean"] for s in summaries], axis=1)
        count = len(records)
        columns[label] = pd.DataFrame(
            {
                "mean": means.mean(axis=1),
                "mcse": pd.concat([s["mcse"] for s in summaries], axis=1).mean(axis=1),
                "images": pd.concat([(s["ci_high"] - s["ci_low"]) / 2 for s in summaries], axis=1).mean(axis=1),
                "seeds": means.std(axis=1) * t95(count - 1) / math.sqrt(count) if count > 1 else math.nan,
                "runs": count,
            }
        )
    if not columns:
        return pd.DataFrame()
    table = pd.concat(columns, axis=1)
    return table.loc[[row for row in ROWS if row in table.index]].rename(index=ROWS)


def show(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A `gap_table` to be read: one column a model, "mean ± images (± seeds)".

    Bounds carry their Monte-Carlo error instead: over images they vary by tens of nats, in the same way for all models.
    """
    import pandas as pd

    if table.empty:
        return pd.DataFrame({"": ["no records of this profile yet"]})
    out = {}
    for label in dict.fromkeys(table.columns.get_level_values(0)):
        cells = {}
        for row, values in table[label].dropna(subset="mean").iterrows():
            error = values["images"] if "gap" in str(row) else values["mcse"]
            text = f"{values['mean']:.{digits}f} ± {error:.{digits}f}"
            if not math.isnan(values["seeds"]):
                text += f" (± {values['seeds']:.{digits}f})"
            cells[row] = text
        cells["training runs"] = f"{table[label]['runs'].iloc[0]:.0f}"
        out[label] = cells
    return pd.DataFrame(out).fillna("")


def gap_figure(groups: Mapping[str, Found], splits: Mapping[str, str]) -> Figure | str:
    """Both gaps of every model as bars with their intervals over images, a panel for each group.

    Args:
        groups: title of a panel -> records by model.
        splits: "train" or "test" -> what these images are called under the bars.

    Returns:
        the figure, or a sentence where there are no records at all.
    """
    from matplotlib import pyplot as plt

    from vaegap import figures

    shown = {title: found for title, found in groups.items() if any(found.values())}
    if not shown:
        return "no records of this profile yet"
    widths = [sum(map(bool, found.values())) * len(splits) for found in shown.values()]
    size = (1.2 * len(widths) + 1.0 * sum(widths), 3.2)
    fig, axes = plt.subplots(1, len(shown), figsize=size, squeeze=False, width_ratios=widths, layout="constrained")
    for ax, (title, found) in zip(axes.flat, shown.items(), strict=True):
        gaps, spread = {}, {}
        for split, name in splits.items():
            table = gap_table(found, split)
            for label in dict.fromkeys(table.columns.get_level_values(0)):
                part = table[label].loc[["approximation gap", "amortization gap"]]
                gaps[f"{label}\n{name}"], spread[f"{label}\n{name}"] = tuple(part["mean"]), tuple(part["images"])
        figures.gap_bars(gaps, spread, ax=ax)
        ax.set_title(title)
    return fig


def published(name: str, root: Path | None = None) -> pd.DataFrame:
    """A table of published values, columns as printed there; `source` says what they are worth."""
    import pandas as pd

    content = _published(name, root)
    rows = pd.DataFrame(content["columns"]).T
    rows.columns = pd.Index([ROWS.get(c, c) for c in content["rows"]])
    return rows.T


def source(name: str, root: Path | None = None) -> Caption:
    """What stands under `published`: who printed the numbers, and whether somebody compared them with the print."""
    content = _published(name, root)
    return Caption(f"{content['source']} · {content['status']} · from published.yaml, no run of ours")


def _published(name: str, root: Path | None) -> dict[str, Any]:
    import yaml

    path = (root or find_root()) / "published.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))[name])


def bands(record: Record, split: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs, log p̂, L[q*] of the own family, and L[q] of a "generalization" record, for `figures.gap_bands`."""
    epochs, points = [], []
    for label in record.select(metric="L_q", split=split)["model"].unique():
        summary = headline(record, split, model=label)["mean"]
        epochs.append(int(str(label).rsplit(" ", 1)[1]))
        points.append([summary["log_p"], summary[f"L_star_{record.params['family']}"], summary["L_q"]])
    order = sorted(range(len(epochs)), key=epochs.__getitem__)
    log_p, best, amortized = ([points[i][k] for i in order] for k in range(3))
    return [epochs[i] for i in order], log_p, best, amortized


def milestones(record: Record) -> pd.DataFrame:
    """Gaps of a "generalization" record by epoch and split, in nats, with half widths over images."""
    import pandas as pd

    rows = []
    for split, label in record.select(metric="L_q", image="mean")[["split", "model"]].drop_duplicates().to_numpy():
        summary = headline(record, split, model=label)
        cells: dict[str, Any] = {"split": split, "epoch": int(str(label).rsplit(" ", 1)[1])}
        for gap in ("approximation", "amortization", "inference"):
            cells[gap] = summary.loc[gap, "mean"]
            cells[f"{gap} ±"] = (summary.loc[gap, "ci_high"] - summary.loc[gap, "ci_low"]) / 2
        rows.append(cells)
    return pd.DataFrame(rows).sort_values(["split", "epoch"]).set_index(["split", "epoch"])


def certificates(record: Record) -> pd.DataFrame:
    """Width of the BDMC sandwich (nats) and seconds for each way to estimate log p(x), of a "certificates" record."""
    rows = record.select(split="simulated")
    wide = rows.pivot(index="model", columns="metric", values="value")
    errors = rows[rows["metric"] == "bdmc_width"].set_index("model")["mcse"]
    wide.insert(0, "width", wide.pop("bdmc_width"))
    wide.insert(1, "width_mcse", errors)
    return wide.sort_values("width").rename_axis(index=None, columns=None).round(3)


def estimates(record: Record) -> pd.DataFrame:
    """log p̂ on real images by each estimator, of a "certificates" record: nats, error, share of images with k̂ > 0.7."""
    values = record.select(split="train", metric="log_p").set_index("model")[["value", "mcse", "num_samples"]]
    heavy = record.select(metric="khat_above_0.7").set_index("model")["value"].rename("share with k̂ > 0.7")
    return values.join(heavy).rename_axis(index=None).sort_values("value").round(3)


def verdicts(*ids: str, profile: str) -> pd.DataFrame:
    """The rows of the claims ledger that belong to some claims, computed from the records of a profile."""
    from vaegap.lab import claims

    table = claims.ledger(profile)
    return table[table["claim"].isin(ids)]


def ledger(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the claims ledger to be read: one row a check."""
    from vaegap.lab.claims import describe

    def span(bounds: tuple[float, float]) -> str:
        low, high = bounds
        if math.isinf(low):
            return f"below {high:g}"
        return f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"

    out = table[["claim", "check", "verdict"]].copy()
    out["value"] = [describe(row) for _, row in table.iterrows()]
    out["reproduced if"] = [span(bounds) for bounds in table["reproduced_if"]]
    return out.set_index(["claim", "check"])
