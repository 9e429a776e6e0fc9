"""What records say, in sentences: every number and every "more" is read from them, none is typed.

Numbers are rounded to the first digit of their 95 % intervals, which stand in the tables, losses of one model at
least to a tenth of a nat; a difference is named only where it is larger than its own interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vaegap.lab.captions import Found
from vaegap.lab.records import Record
from vaegap.lab.seeds import over_seeds
from vaegap.lab.tables import NOTHING, headline, headline_gaps
from vaegap.rounding import decimals

if TYPE_CHECKING:
    import pandas as pd

    Runs = Mapping[int, pd.DataFrame]

__all__ = ["Words", "compared", "notes", "over_training", "rounded"]

_TOP = "log p̂(x)"
_CAUSES = ("amortization", "encoder"), ("approximation", "family")
_SPLITS = {"train": "training", "test": "held-out"}


class Words(str):
    """Markdown that notebooks show as such."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def rounded(value: float, half: float) -> str:
    """A number at the first digit of its half interval.

    Example:
        >>> rounded(2.30491, 0.0281), rounded(7.79, 0.76), rounded(2.0, float("nan"))
        ('2.30', '7.8', '2.00')
    """
    places = decimals(half, default=3)
    return f"{value:.{max(places - 1, 0)}f}"


def compared(groups: Mapping[str, Found], against: Mapping[str, str] | None = None) -> Words:
    """The gaps of several models in words, on training and on held-out images, and how the models differ.

    Models are read on the same images, the first ones, as many as all of them were measured on, and compared as the
    ledger's checks are: on the seeds that both have, image by image.

    Args:
        groups: title of a group -> records by model.
        against: model -> the model of its group that it is compared with; None compares all with the first.

    Returns:
        A list, a point for each group and kind of images. A difference must exceed the wider of its intervals over
        images and over training runs.
    """
    points = []
    for title, found in groups.items():
        for split, name in _SPLITS.items():
            models = {label: _tables(records, split) for label, records in found.items() if records}
            if not models:
                continue
            fewest = min(len(table) for model in models.values() for table in model.values())
            models = {k: {seed: t.iloc[:fewest] for seed, t in model.items()} for k, model in models.items()}
            first, *others = models
            pairs = dict.fromkeys(others, first) if against is None else against
            points.append(f"- **{title}, {name} images**")
            points += [f"  - {_split(label, model)}" for label, model in models.items()]
            points += [
                f"  - {_difference(label, models[label], other, models[other])}"
                for label, other in pairs.items()
                if label in models and other in models
            ]
    return Words("\n".join(points) or NOTHING)


def notes(ledger: pd.DataFrame) -> Words:
    """What verdicts of a claims ledger do not tell by themselves, a point for each such caveat."""
    told = ledger[ledger["caveat"] != ""]
    points = []
    for caveat, checks in told.groupby("caveat", sort=False):
        names = "; ".join(f"{claim}, {check}" for claim, check in checks[["claim", "check"]].to_numpy())
        names = names.replace("*", r"\*")  # of q*: else the rest would be set in italics
        points.append(f"- **{names}.** {caveat}")
    return Words("\n".join(points))


def over_training(found: Mapping[str, list[Record]]) -> Words:
    """How the gaps of "generalization" records moved from the first milestone to the last, in words."""
    points = []
    for label, records in found.items():
        for record in records:
            epochs = sorted(int(str(m).rsplit(" ", 1)[1]) for m in record.select(metric="L_q")["model"].unique())
            stages = {s: {e: _milestone(record, s, e) for e in epochs} for s in _SPLITS}
            points.append(f"- **{label}, seed {record.params['seed']}**")
            points += [f"  - {_moved(name, stages[split])}" for split, name in _SPLITS.items()]
            points.append(f"  - {_unseen(stages['train'][epochs[-1]], stages['test'][epochs[-1]])}")
    return Words("\n".join(points) or NOTHING)


def _tables(records: Sequence[Record], split: str) -> Runs:
    """Seed -> log p̂ and the gaps of every image."""
    return {int(r.params["seed"]): headline_gaps(r, split) for r in records}


def _mean(values: Mapping[int, pd.Series]) -> tuple[float, float]:
    """Mean over seeds and images, and the wider of the half intervals over images and over seeds."""
    import pandas as pd

    each = pd.concat(values, axis=1)
    images = 1.96 * each.mean(axis=1).std() / math.sqrt(len(each))
    means = each.mean()
    seeds = over_seeds(means.tolist())
    return float(means.mean()), float(images if math.isnan(seeds) else max(images, seeds))


def _tenths(value: float, half: float) -> str:
    """As `rounded`, but at least to a tenth: parts of a sum should add up to it."""
    return f"{value:.1f}" if half >= 0.95 else rounded(value, half)


def _split(label: str, model: Runs) -> str:
    """Whose fault the inference gap is."""
    (total, wide), (family, narrow), (encoder, half) = (
        _mean({seed: t[gap] for seed, t in model.items()}) for gap in ("inference", "approximation", "amortization")
    )
    change, error = _mean({seed: t["amortization"] - t["approximation"] for seed, t in model.items()})
    clear = abs(change) > error
    verdict = f"more of it to its {'encoder' if change > 0 else 'family'}" if clear else "not clear to which more"
    share = f" ({100 * encoder / total:.0f} %)" if 0 < encoder < total else ""
    return (
        f"*{label}* loses {_tenths(total, wide)} nats, {verdict}: {_tenths(family, narrow)} to the "
        f"family, {_tenths(encoder, half)} to the encoder{share}."
    )


def _difference(label: str, model: Runs, other: str, reference: Runs) -> str:
    common = sorted(set(model) & set(reference))
    if not common:
        return f"*{label}* and *{other}* have no training seed in common yet."
    change = {
        row: _mean({seed: model[seed][row] - reference[seed][row] for seed in common})
        for row in ("inference", "approximation", "amortization", "log_p")
    }
    total, family, encoder = (_more_or_less(*change[row]) for row in ("inference", "approximation", "amortization"))
    (top, half), seeds = change["log_p"], f"{len(common)} seed{'s' * (len(common) > 1)}"
    level = f"is not clearly different (± {rounded(half, half)} nats)"
    if abs(top) > half:
        level = f"is {rounded(abs(top), half)} nats {'higher' if top > 0 else 'lower'}"
    return (
        f"Against *{other}* ({seeds}), *{label}* loses {total} in all: {family} to its family, and {encoder} to its "
        f"encoder; its {_TOP} {level}."
    )


def _milestone(record: Record, split: str, epoch: int) -> pd.DataFrame:
    return headline(record, split, model=f"{record.params['family']} epoch {epoch}")


def _moved(name: str, stages: Mapping[int, pd.DataFrame]) -> str:
    first, last = min(stages), max(stages)
    if first == last:
        return f"On {name} images there is one milestone, epoch {last}: nothing to compare."
    parts = []
    for gap, cause in _CAUSES:
        (before, wide), (after, narrow) = (_with_half(stages[epoch], gap) for epoch in (first, last))
        same = abs(after - before) <= math.hypot(wide, narrow)
        word = "does not clearly move" if same else "grows" if after > before else "shrinks"
        parts.append(f"what the {cause} costs {word}, from {rounded(before, wide)} to {rounded(after, narrow)} nats")
    best = max(stages, key=lambda epoch: stages[epoch].loc["log_p", "mean"])
    top = "is highest at the end" if best == last else f"is highest at epoch {best} and lower at the end"
    return f"On {name} images, from epoch {first} to epoch {last}, {parts[0]}; {parts[1]}; {_TOP} {top}."


def _unseen(seen: pd.DataFrame, unseen: pd.DataFrame) -> str:
    """What held-out images cost more than training ones, by cause."""
    parts = []
    for gap, cause in _CAUSES:
        (here, narrow), (there, wide) = _with_half(seen, gap), _with_half(unseen, gap)
        parts.append(f"{_more_or_less(there - here, math.hypot(narrow, wide))} to the {cause}")
    return f"At the end, held-out images lose {parts[0]}, and {parts[1]}, compared with training images."


def _more_or_less(change: float, half: float) -> str:
    if not abs(change) > half:
        return f"not clearly more or less (± {rounded(half, half)} nats)"
    return f"{rounded(abs(change), half)} nats {'more' if change > 0 else 'less'}"


def _with_half(summary: pd.DataFrame, row: str) -> tuple[float, float]:
    mean, low, high = summary.loc[row, ["mean", "ci_low", "ci_high"]]
    return float(mean), float(high - low) / 2
