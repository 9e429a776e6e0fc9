"""What a page asks for: models, data sets and seeds, checked, and the records of them that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegap.lab import experiments, runs
from vaegap.lab.captions import DATASETS, Found
from vaegap.lab.records import Record

__all__ = ["DATASETS", "Found", "collect"]

_COUNTS = ("num_train", "num_heldout")


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
        compute: compute records that are missing; otherwise one of the same model on fewer images stands in, and where
            there is none either, they are left out.
        experiment: its name.

    Returns:
        label -> the records that there are, seed by seed; its attribute `missing` names the others, and `fewer` says of
        how many images those are that stand in.
    """
    found = Found()
    for label, params in models.items():
        found[label] = []
        for seed in seeds:
            settings = {**params, "seed": seed}
            run = experiments.identify(experiment, settings, profile)
            record = experiments.run(experiment, settings, profile) if compute else runs.find(run)
            if record is None:
                record, images = _with_fewer(experiment, settings, profile)
                found.fewer |= {f"{label}, seed {seed}": images} if images else {}
            if record is None:
                found.missing.append((label, seed, run))
            else:
                found[label].append(record)
    return found


def _with_fewer(experiment: str, settings: Mapping[str, Any], profile: str) -> tuple[Record | None, str]:
    """The record of a run that differs in measuring fewer images, and how many; of several that with the most."""
    asked = experiments.resolve(experiments.get(experiment), settings, profile)
    if not set(_COUNTS) <= set(asked):
        return None, ""
    same = [
        record
        for record in runs.list_records()
        if (record.experiment, record.info["profile"]) == (experiment, profile)
        and all(record.params.get(name) == value for name, value in asked.items() if name not in (*_COUNTS, "checked"))
        and all(record.params[name] <= asked[name] for name in _COUNTS)
    ]
    if not same:
        return None, ""
    record = max(same, key=lambda one: one.params["num_train"])
    train, heldout = (f"{record.params[name]:,} of {asked[name]:,}" for name in _COUNTS)
    return record, f"{train} training and {heldout} held-out images so far"
