"""What a page asks for: models, data sets and seeds, checked, and the records of them that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegap.lab import experiments, runs
from vaegap.lab.captions import DATASETS, Found

__all__ = ["DATASETS", "Found", "collect"]


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
        compute: compute records that are missing; otherwise they are left out.
        experiment: its name.

    Returns:
        label -> the records that there are, seed by seed; its attribute `missing` names the others.
    """
    found = Found()
    for label, params in models.items():
        found[label] = []
        for seed in seeds:
            settings = {**params, "seed": seed}
            run = experiments.identify(experiment, settings, profile)
            record = experiments.run(experiment, settings, profile) if compute else runs.find(run)
            if record is None:
                found.missing.append((label, seed, run))
            else:
                found[label].append(record)
    return found
