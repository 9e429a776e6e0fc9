"""What a page asks for: models, data sets and seeds, checked, and the records of them that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegap.lab import experiments, runs
from vaegap.lab.captions import DATASETS, Found
from vaegap.lab.records import Record

__all__ = ["DATASETS", "Found", "collect"]

_COUNTS = {"num_train": "training images", "num_heldout": "held-out images", "num_images": "images of each kind"}


def collect(
    models: Mapping[str, Mapping[str, Any]],
    profile: str,
    seeds: Sequence[int] = (0,),
    compute: bool = True,
    experiment: str = "gap_decomposition",
) -> Found:
    """Records of several models, over seeds.

    Args:
        models: label -> parameters of the experiment.
        profile: "quick", "laptop" or "paper".
        seeds: which ones.
        compute: compute records that are missing; otherwise a decomposition of the same model on fewer images stands
            in, and where there is none either, they are left out.
        experiment: its name.

    Returns:
        label -> the records that there are, seed by seed; its attribute `missing` names the others, and `fewer` those
        for which another stands in.
    """
    found = Found()
    for label, params in models.items():
        found[label] = []
        for seed in seeds:
            settings = {**params, "seed": seed}
            run = experiments.identify(experiment, settings, profile)
            record = experiments.run(experiment, settings, profile) if compute else runs.find(run)
            if record is None:
                record, images = _on_fewer(experiment, settings, profile)
                found.fewer += [(label, seed, run, images)] if record is not None else []
            if record is None:
                found.missing.append((label, seed, run))
            else:
                found[label].append(record)
    return found


def _on_fewer(experiment: str, settings: Mapping[str, Any], profile: str) -> tuple[Record | None, str]:
    """The record of a run that differs in measuring fewer images alone, of several that with the most; how many."""
    asked = experiments.resolve(experiments.get(experiment), settings, profile)
    counted = [name for name in _COUNTS if name in asked]

    def smaller(record: Record) -> bool:
        if record.experiment != experiment:
            return False
        own = {name: record.params[name] for name in (*counted, "checked") if name in asked}
        if any(own[name] > asked[name] for name in counted) or all(own[name] == asked[name] for name in counted):
            return False
        return experiments.identify(experiment, {**settings, **own}, profile) == record.run_id

    records = [record for record in runs.list_records() if smaller(record)]
    if not records:
        return None, ""
    most = max(records, key=lambda record: [record.params[name] for name in counted])
    return most, " and ".join(f"{most.params[name]:,} of {asked[name]:,} {_COUNTS[name]}" for name in counted)
