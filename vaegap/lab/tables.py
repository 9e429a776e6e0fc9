"""Records side by side: the paper's tables, with errors over images and over seeds kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vaegap.lab.captions import caption, live, with_caption
from vaegap.lab.gathering import DATASETS, Found, collect
from vaegap.lab.records import Record
from vaegap.lab.seeds import over_seeds
from vaegap.rounding import plus_minus, unbroken

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "DATASETS",
    "ROWS",
    "Found",
    "bands",
    "caption",
    "claims_as_a_whole",
    "collect",
    "gap_figure",
    "gap_table",
    "headline",
    "ledger",
    "levels",
    "live",
    "means",
    "milestones",
    "show",
    "verdicts",
    "width_cell",
    "with_caption",
]

NOTHING = "no records of this profile yet"
WIDEST = 0.1  # nats: a log p̂ whose sandwich is wider is marked

ROWS = {
    "log_p": "log p̂(x)",
    "L_star_aux_flow": "L[q*_AF]",
    "L_star_encoder_form": "L[q*_AF], in the encoder's numbers",
    "L_star_full_gaussian": "L[q*_full]",
    "L_star_flow": "L[q*_flow]",
    "L_star_flow_on_z": "L[q*_flow on z]",
    "L_star_blind_aux_flow": "L[q*_blind AF]",
    "L_star_spline": "L[q*_spline]",
    "L_star_gaussian": "L[q*_FFG]",
    "L_q": "L[q]",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
    "approximation_encoder_form": "approximation gap, in the encoder's numbers",
    "amortization_encoder_form": "amortization gap, in the encoder's numbers",
    "inference": "inference gap",
    "bdmc_width": "BDMC width",
    "unfinished_ascents": "images with unfinished ascents, a run",
    "missed_modes": "images with a missed mode, of those looked at, a run",
}
_COUNTS = ("unfinished_ascents", "missed_modes")  # of images; no row where there is nothing to say


def headline(record: Record, split: str = "train", first: int | None = None, **labels: Any) -> pd.DataFrame:
    """`paired.summarize` of a record's first (or all) images; the own family's gaps also have their plain names."""
    key = ("headline", split, first, tuple(sorted(labels.items())))
    if key not in record.readings:
        record.readings[key] = _headline(record, split, first, **labels)
    summary: pd.DataFrame = record.readings[key].copy()
    return summary


def _headline(record: Record, split: str, first: int | None, **labels: Any) -> pd.DataFrame:
    from vaegap import paired
    from vaegap.lab.protocols import gap_tables

    summary = paired.summarize(*(table.iloc[:first] for table in gap_tables(record, split=split, **labels)))
    own = record.params["family"]
    for gap in ("approximation", "amortization"):
        if f"{gap}_{own}" in summary.index:
            summary.loc[gap] = summary.loc[f"{gap}_{own}"]
    width = record.select(metric="bdmc_width", **labels)
    if len(width):
        value, error = width[["value", "mcse"]].iloc[0]
        summary.loc["bdmc_width", ["mean", "mcse"]] = value, error
    for name in _COUNTS:
        counted = record.select(metric=name, split=split, **labels)["value"]
        if len(counted):  # records made before they were counted say nothing
            summary.loc[name, ["mean", "mcse"]] = counted.sum(), 0.0
    return summary


def headline_gaps(record: Record, split: str = "train") -> pd.DataFrame:
    """log p̂ and the three gaps of every image (N rows), for the encoder's own family."""
    from vaegap.lab.protocols import gap_tables

    key = ("gaps", split)
    if key not in record.readings:
        table, _ = gap_tables(record, split=split)
        own = record.params["family"]
        names = {f"approximation_{own}": "approximation", f"amortization_{own}": "amortization"}
        record.readings[key] = table[["log_p", "inference", *names]].rename(columns=names)
    gaps: pd.DataFrame = record.readings[key].copy()
    return gaps


def gap_table(found: Mapping[str, Sequence[Record]], split: str = "train", **labels: Any) -> pd.DataFrame:
    """The paper's Table 2 for any models: rows as in `ROWS`, and for each model six columns.

    All are read on the same images: the first ones, as many as every record has.

    Columns, in nats: mean (over images and seeds), mcse (Monte-Carlo error of one seed's mean), images (half width of
    the 95 % bootstrap interval over images, mean over seeds), seeds (half width of the 95 % t-interval over seeds; NaN
    for one), farthest (the largest size that a seed has), runs (how many), num_images.
    """
    import pandas as pd

    columns = {}
    counts = {_num_images(r, split, **labels) for records in found.values() for r in records}
    first = min(counts) if len(counts) > 1 else None
    for label, records in found.items():
        if not records:
            continue
        summaries = [headline(r, split, first, **labels) for r in records]
        means = pd.concat([s["mean"] for s in summaries], axis=1)
        columns[label] = pd.DataFrame(
            {
                "mean": means.mean(axis=1),
                "mcse": pd.concat([s["mcse"] for s in summaries], axis=1).mean(axis=1),
                "images": pd.concat([(s["ci_high"] - s["ci_low"]) / 2 for s in summaries], axis=1).mean(axis=1),
                "seeds": means.apply(lambda row: over_seeds(row.dropna().tolist()), axis=1),
                "farthest": means.abs().max(axis=1),
                "runs": len(records),
                "num_images": min(counts),
            }
        )
    if not columns:
        return pd.DataFrame()
    table = pd.concat(columns, axis=1)
    table = table.drop(index=[c for c in _COUNTS if c in table.index and not table.loc[c, (slice(None), "mean")].any()])
    return table.loc[[row for row in ROWS if row in table.index]].rename(index=ROWS)


def _num_images(record: Record, split: str, **labels: Any) -> int:
    return int((record.select(metric="L_q", split=split, **labels)["image"] != "mean").sum())


def show(table: pd.DataFrame, title: str = "") -> pd.DataFrame | str:
    """A `gap_table` to be read: one column a model, "mean ± images (± seeds)"; a sentence where there is nothing.

    Decimals follow from the errors (`rounding.plus_minus`). Bounds carry their Monte-Carlo error instead: over images
    they vary by tens of nats, in the same way for all models. A width above `WIDEST`, of any training run, says so.
    """
    import pandas as pd

    if table.empty:
        return f"{title}: {NOTHING}" if title else NOTHING
    out = {}
    for label in dict.fromkeys(table.columns.get_level_values(0)):
        cells = {}
        for row, values in table[label].dropna(subset="mean").iterrows():
            if row in [ROWS[name] for name in _COUNTS]:
                cells[row] = f"{values['mean']:.1f}"
                continue
            error = values["images"] if "gap" in str(row) else values["mcse"]
            cells[row] = plus_minus(values["mean"], error, values["seeds"])
        width = table[label]["farthest"].get(ROWS["bdmc_width"], math.nan)
        if too_wide(width):  # of one training run is enough
            cells[ROWS["bdmc_width"]] += too_wide(width)
        cells["images"] = f"{table[label]['num_images'].iloc[0]:,.0f}"
        cells["training runs"] = f"{table[label]['runs'].iloc[0]:.0f}"
        out[label] = cells
    order = [*ROWS.values(), "images", "training runs"]
    table = pd.DataFrame(out).fillna("").map(unbroken)
    return table.loc[[row for row in order if row in table.index]].rename_axis(
        columns=f"{title}, nats" if title else "nats"
    )


def levels(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of a `headline` to be read: "mean ± Monte Carlo error" in nats and the interval over images, if it has one.

    Counts of images stand only where there are any.
    """
    import pandas as pd

    rows = {}
    for name, row in summary.iterrows():
        if name in _COUNTS and not row["mean"]:
            continue
        plain = str(name).partition("_")[0]
        label = ROWS.get(str(name)) or (f"{plain} gap" if plain in ("approximation", "amortization") else str(name))
        value = f"{row['mean']:.0f}" if name in _COUNTS else plus_minus(row["mean"], row["mcse"])
        interval = "" if math.isnan(row["ci_low"]) else f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        rows[label] = {"mean ± mcse": value, "95 % over images": interval}
    return pd.DataFrame(rows).T.rename_axis(columns="nats")


def means(groups: Any) -> pd.DataFrame:
    """Means over images of grouped values: "mean ± standard error" and the number of images, a row a group."""
    table: pd.DataFrame = groups.agg(["mean", "sem", "count"])
    table.insert(0, "mean ± standard error", [plus_minus(m, e) for m, e in table[["mean", "sem"]].to_numpy()])
    return table.drop(columns=["mean", "sem"]).rename(columns={"count": "images"})


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
        return NOTHING
    bars = [sum(map(bool, found.values())) * len(splits) for found in shown.values()]
    # One row as long as it can be read at half its width; otherwise a panel a row.
    if sum(bars) <= 4:
        size, shape, ratios = (1.2 * len(bars) + 0.9 * sum(bars), 3.0), (1, len(bars)), bars
    else:
        size, shape, ratios = (max(4.8, 1.2 + 0.9 * max(bars)), 2.7 * len(bars)), (len(bars), 1), [1]
    fig, axes = plt.subplots(*shape, figsize=size, squeeze=False, width_ratios=ratios, layout="constrained")
    for ax, (title, found) in zip(axes.flat, shown.items(), strict=True):
        gaps, spread = {}, {}
        for split, name in splits.items():
            table = gap_table(found, split)
            for label in dict.fromkeys(table.columns.get_level_values(0)):
                part = table[label].loc[["approximation gap", "amortization gap"]]
                under = f"{label.replace(', ', chr(10))}\n{name}"  # in one line, neighbours would run together
                gaps[under], spread[under] = tuple(part["mean"]), tuple(part["images"])
        figures.gap_bars(gaps, spread, ax=ax)
        ax.set_title(title)
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    return fig


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
    """Gaps and bounds of a "generalization" record by split and epoch, nats.

    Gaps carry the half width of their interval over images, bounds their Monte Carlo error. Behind log p̂ stands the
    BDMC width on images that the model made at that epoch, the same for both splits; a width above `WIDEST` says so.
    """
    import pandas as pd

    rows = []
    for split, label in record.select(metric="L_q", image="mean")[["split", "model"]].drop_duplicates().to_numpy():
        summary = headline(record, split, model=label)
        cells: dict[str, Any] = {"split": split, "epoch": int(str(label).rsplit(" ", 1)[1])}
        for gap in ("approximation", "amortization", "inference"):
            mean, low, high = summary.loc[gap, ["mean", "ci_low", "ci_high"]]
            cells[gap] = plus_minus(mean, (high - low) / 2)
        for row in ("log_p", "bdmc_width", f"L_star_{record.params['family']}", "L_q"):
            cell = width_cell if row == "bdmc_width" else plus_minus
            measured = row in summary.index
            cells[ROWS[row]] = cell(*summary.loc[row, ["mean", "mcse"]]) if measured else "not measured"
        rows.append(cells)
    return pd.DataFrame(rows).sort_values(["split", "epoch"]).set_index(["split", "epoch"])


def width_cell(width: float, error: float) -> str:
    """A BDMC width to be read; one above `WIDEST` says so."""
    return plus_minus(width, error) + too_wide(width)


def too_wide(*widths: float) -> str:
    """What a cell says where any of its BDMC widths is above `WIDEST`; a sandwich that is upside down is as bad."""
    return f" (above {WIDEST})" if any(abs(width) > WIDEST for width in widths) else ""


def verdicts(*ids: str, profile: str) -> pd.DataFrame:
    """The rows of the claims ledger that belong to some claims, computed from the records of a profile."""
    from vaegap.lab import claims

    return claims.ledger(profile, only=ids)


def claims_as_a_whole(table: pd.DataFrame) -> pd.DataFrame:
    """The verdict on every claim of a ledger as a whole, to be read (`claims.overall`)."""
    from vaegap.lab import claims

    shown = claims.overall(table).rename(columns={"with added": "verdict with the added checks"})
    shown.attrs["words"] = True  # for `with_caption`: cells to be read, not compared
    return shown


def ledger(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the claims ledger to be read: one row a check; `wording.notes` has what "note below" points to."""
    from vaegap.lab import claims

    def span(bounds: tuple[float, float]) -> str:
        low, high = bounds
        if math.isinf(low):
            return f"below {high:g}"
        return f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"

    out = table[["claim", "check", "verdict"]].copy()
    out["check"] += ["\n(added after the first runs)" if added else "" for added in table["added"]]
    out["check"] += ["\n(note below)" if caveat else "" for caveat in table["caveat"]]
    rows = [row for _, row in table.iterrows()]
    out["verdict"] = [claims.decided(row) for row in rows]
    out["reproduced if"] = [f"{row['measured']}\n{span(row['reproduced_if'])}".strip() for row in rows]
    said = ["\n".join(filter(None, [*claims.said(row), claims.published(row)])) for row in rows]
    said = [text.replace("transcription unverified", "unverified") for text in said]  # the page says of what
    out["value"] = [text.replace(", ", ",\N{NO-BREAK SPACE}") or "–" for text in said]  # an interval stays on one line
    out = out.set_index(["claim", "check"])
    out.attrs["words"] = True  # for `with_caption`: cells to be read, not compared
    return out
