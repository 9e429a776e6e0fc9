"""Clear or confirm the mark on stale records: compute some of their numbers anew, from the weights they kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from vaegap.errors import InputError
from vaegap.lab import checkpoints, experiments, provenance, records, zoo
from vaegap.lab.errors import LabError, RecordError
from vaegap.lab.experiments import Context, Experiment
from vaegap.lab.files import find_results
from vaegap.lab.records import Record

__all__ = ["Verdict", "verify", "verify_record"]

_KEY = ["claim", "dataset", "split", "model", "family", "encoder", "decoder", "seed", "image", "metric"]
_ABSOLUTE = 1e-3  # differences below this many nats count as rounding
_CHANCE = 1e-3  # of a false alarm, for a record as a whole


@dataclass(frozen=True)
class Verdict:
    """How a record fared.

    Attributes:
        run_id: the record.
        state: "agrees" (and its mark is cleared), "differs", "cannot" (what it needs is missing or damaged), or
            "skipped" (records of this experiment keep nothing to compute from).
        rows: how many numbers were compared.
        largest: the largest difference, in standard errors of the difference.
        reason: what differs, or why it could not be done.
    """

    run_id: str
    state: str
    rows: int = 0
    largest: float = math.nan
    reason: str = ""


def verify(
    found: Iterable[Record] | None = None,
    results: str | os.PathLike[str] | None = None,
    everything: bool = False,
    train: bool = False,
) -> Iterator[Verdict]:
    """Verify records one after the other: those that are stale, or all.

    Args:
        found: the records; all in the results folder where it is not given.
        results: that folder.
        everything: verify fresh records as well.
        train: train models anew whose weights are not here.

    Yields:
        One verdict a record.
    """
    from vaegap.lab import runs

    for folder in runs.list_folders(results) if found is None else [record.folder for record in found]:
        try:
            record = records.read(folder)
        except RecordError as error:  # the others can be verified all the same
            yield Verdict(folder.name, "cannot", reason=str(error))
            continue
        if everything or record.stale:
            yield verify_record(record, train)


def verify_record(record: Record, train: bool = False) -> Verdict:
    """Compute some numbers of a record anew; where they agree within their errors, note it in its run.json.

    A difference counts if it is larger than chance allows: more standard errors than one comparison in a thousand such
    records would show. A model trained anew must therefore be the record's own, up to rounding: that of another seed
    is ten standard errors away on most images, and a hundred on some.

    Args:
        record: which.
        train: train its model anew where the weights are not here.
    """
    name = record.run_id
    try:
        experiment = experiments.get(record.experiment)
        if experiment.verify is None:
            why = experiment.cannot_verify or "it keeps nothing to compute its numbers from"
            reason = (
                f"{experiment.name} cannot be verified, for {why}; its mark goes when it is computed again (--refresh)"
            )
            return Verdict(name, "skipped", reason=reason)
        with TemporaryDirectory() as scratch:
            work = find_results(scratch)
            profile = str(record.info["profile"])
            context = Context(name, profile, record.params, work, record.folder.parent)
            model = _model_trained(experiment, context, record, train)
            fresh = records.complete(experiment.verify(context, record), record.info)
    except (LabError, InputError) as error:
        return Verdict(name, "cannot", reason=str(error))
    both = fresh.merge(record.rows, on=_KEY, suffixes=("", "_then"))
    if not len(both):
        return Verdict(name, "cannot", reason="none of the recomputed rows is in the record")
    difference = (both["value"] - both["value_then"]).abs()
    spread = (both["mcse"].fillna(0.0) ** 2 + both["mcse_then"].fillna(0.0) ** 2) ** 0.5
    score = (difference - _ABSOLUTE).clip(lower=0.0) / spread.where(spread > 0, 1e-300)
    worst = float(score.max())
    limit = math.sqrt(2 * math.log(2 * len(both) / _CHANCE))
    if not worst <= limit:  # NaN does not agree with anything
        row = both.loc[score.fillna(math.inf).idxmax()]
        reason = f"{row['metric']} of image {row['image']}: {row['value_then']:.4f} then, {row['value']:.4f} now"
        return Verdict(name, "differs", len(both), worst, reason)
    try:
        _clear(record, len(both), worst, model)
    except LabError as error:  # a folder that cannot be written to, say
        return Verdict(name, "cannot", len(both), worst, str(error))
    return Verdict(name, "agrees", len(both), worst)


def _model_trained(experiment: Experiment, context: Context, record: Record, train: bool) -> dict[str, Any] | None:
    """Which code trained the model that the record is compared with: another than its own, where it was trained anew.

    Raises:
        InputError: its weights are not here, and nobody asked to train it; or the record is too old to be verified.
    """
    if experiment.needs and record.select(metric=experiment.needs).empty:
        raise InputError(f"it holds no {experiment.needs}, which is measured today: vaegap run --refresh")
    if experiment.weights is None or record.info.get("artifacts"):
        return None  # the record keeps the weights itself, or needs none
    files = experiment.weights(context)
    gone = [str(file) for file in files if not file.exists()]
    if gone:
        if not train or experiment.train is None:
            raise InputError(
                f"{' and '.join(gone)} not found. `vaegap verify --train {record.run_id}` trains anew, which takes "
                "minutes; `vaegap run --refresh` computes the whole record again"
            )
        experiment.train(context)
    return zoo.origin_of(checkpoints.load(files[-1])[1])


def _clear(record: Record, rows: int, largest: float, model: dict[str, Any] | None) -> None:
    now = provenance.science_modules()
    mark = {
        # what computes these numbers today, which may be spread over other modules than when the record was made
        "science": experiments.loaded(now),
        "rows": rows,
        "largest_deviation": largest,
        "model_trained": model,
        "commit": provenance.collect()["commit"],
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    description = records.description_beside(record.folder / "run.json")
    if description.get("table_token") != record.info["table_token"]:
        description = {name: value for name, value in record.info.items() if name != "verified"}
    records.write_description(record.folder, {**description, "verified": mark})
