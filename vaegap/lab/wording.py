"""What records say, in sentences: every number and every "larger" is read from them, none is typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vaegap.lab.captions import Found
from vaegap.lab.records import Record
from vaegap.lab.tables import NOTHING, gap_table, headline
from vaegap.rounding import plus_minus

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Words", "compared", "over_training", "split_of_gap"]

_FAMILY, _ENCODER, _ALL, _TOP = "approximation gap", "amortization gap", "inference gap", "log p̂(x)"


class Words(str):
    """Markdown that notebooks show as such."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def compared(groups: Mapping[str, Found], splits: Mapping[str, str], against: Mapping[str, str] | None = None) -> Words:
    """The gaps of several models in words, and how they differ.

    Args:
        groups: title of a group -> records by model.
        splits: "train" or "test" -> what these images are called.
        against: model -> the model of its group that it is compared with; None compares all with the first.

    Returns:
        A list: one point a group and kind of images. A difference within the wider of its 95 % intervals, over images
        or over seeds, is called none.
    """
    points = []
    for title, found in groups.items():
        for split, name in splits.items():
            table = gap_table(found, split)
            if table.empty:
                continue
            models = {label: table[label] for label in dict.fromkeys(table.columns.get_level_values(0))}
            first, *others = models
            pairs = dict.fromkeys(others, first) if against is None else against
            said = [split_of_gap(label, model) for label, model in models.items()]
            said += [
                _difference(label, models[label], other, models[other])
                for label, other in pairs.items()
                if label in models and other in models
            ]
            points.append(f"- **{title}, {name} images.** " + " ".join(said))
    return Words("\n".join(points) or NOTHING)


def split_of_gap(label: str, model: pd.DataFrame) -> str:
    """Whose fault the inference gap is, for one model's columns of a `tables.gap_table`."""
    total, family, encoder = (float(model.loc[row, "mean"]) for row in (_ALL, _FAMILY, _ENCODER))
    half = _half(model, _ENCODER) + _half(model, _FAMILY)
    larger = "family" if family > encoder else "encoder"
    verdict = f"more to the {larger}" if abs(family - encoder) > half else "about as much to either"
    text = f"*{label}* loses {_number(model, _ALL)} nats, {verdict}: {_number(model, _FAMILY)} to its family and "
    text += f"{_number(model, _ENCODER)} to its encoder"
    return text + (f" ({encoder / total:.0%} of it)." if 0 < encoder < total else ".")


def over_training(records: Mapping[str, list[Record]]) -> Words:
    """How the gaps of "generalization" records moved from the first milestone to the last, in words."""
    points = []
    for label, runs in records.items():
        for record in runs:
            said = [_moved(record, split, name) for split, name in (("train", "training"), ("test", "held-out"))]
            said.append(_unseen(record))
            points.append(f"- **{label}, seed {record.params['seed']}.** " + " ".join(filter(None, said)))
    return Words("\n".join(points) or NOTHING)


def _moved(record: Record, split: str, name: str) -> str:
    stages = {}
    for label in record.select(metric="L_q", split=split)["model"].unique():
        stages[int(str(label).rsplit(" ", 1)[1])] = headline(record, split, model=label)
    if len(stages) < 2:
        return ""
    first, last = min(stages), max(stages)
    parts = []
    for gap, plain in (("amortization", _ENCODER), ("approximation", _FAMILY)):
        before, after = stages[first].loc[gap], stages[last].loc[gap]
        change = after["mean"] - before["mean"]
        error = math.hypot(*((s["ci_high"] - s["ci_low"]) / 2 for s in (before, after)))
        word = "stays within its error" if abs(change) <= error else "grows" if change > 0 else "shrinks"
        ends = f"from {_with_interval(before)} to {_with_interval(after)} nats"
        parts.append(f"the {plain} {word}, {ends}")
    best = max(stages, key=lambda epoch: stages[epoch].loc["log_p", "mean"])
    top = "rises to the last milestone" if best == last else f"is highest after epoch {best} and falls from there"
    return f"On {name} images, from epoch {first} to {last}: {parts[0]}; {parts[1]}; log p̂(x) {top}."


def _unseen(record: Record) -> str:
    """What held-out images cost more than training ones at the last milestone, by cause."""
    epochs = [int(str(label).rsplit(" ", 1)[1]) for label in record.select(metric="L_q")["model"].unique()]
    if not epochs:
        return ""
    label = f"{record.params['family']} epoch {max(epochs)}"
    seen, unseen = (headline(record, split, model=label) for split in ("train", "test"))
    parts = []
    for gap, cause in (("amortization", "encoder"), ("approximation", "family")):
        change = unseen.loc[gap, "mean"] - seen.loc[gap, "mean"]
        error = math.hypot(*((s.loc[gap, "ci_high"] - s.loc[gap, "ci_low"]) / 2 for s in (seen, unseen)))
        if abs(change) <= error:
            parts.append(f"no more to the {cause} beyond the error")
        else:
            parts.append(f"{plus_minus(abs(change), error)} nats {'more' if change > 0 else 'less'} to the {cause}")
    return f"At the end, held-out images lose {parts[0]} than training images do, and {parts[1]}."


def _difference(label: str, model: pd.DataFrame, first: str, reference: pd.DataFrame) -> str:
    parts = []
    for row, name in ((_FAMILY, f"the {_FAMILY}"), (_ENCODER, f"the {_ENCODER}"), (_TOP, _TOP)):
        change = float(model.loc[row, "mean"] - reference.loc[row, "mean"])
        error = math.hypot(_half(model, row), _half(reference, row))
        if not abs(change) > error:
            parts.append(f"{name} does not differ beyond its error")
        else:
            parts.append(f"{name} is {plus_minus(abs(change), error)} {'higher' if change > 0 else 'lower'}")
    return f"Against *{first}*, *{label}*: " + ", ".join(parts[:-1]) + f", and {parts[-1]}."


def _half(model: pd.DataFrame, row: str) -> float:
    """The wider half interval of a row: over images (for a bound, twice its Monte Carlo error) or over seeds."""
    values = model.loc[row]
    images = values["images"] if row.endswith("gap") else 2 * values["mcse"]
    return float(max(images, values["seeds"])) if not math.isnan(values["seeds"]) else float(images)


def _number(model: pd.DataFrame, row: str) -> str:
    return plus_minus(float(model.loc[row, "mean"]), _half(model, row))


def _with_interval(values: pd.Series) -> str:
    return plus_minus(values["mean"], (values["ci_high"] - values["ci_low"]) / 2)
