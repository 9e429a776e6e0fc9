"""What a page asks for: models, data sets and seeds, checked, and the records of them that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegap.lab import experiments, runs
from vaegap.lab.captions import Found
from vaegap.lab.parameters import ParameterError

__all__ = ["DATASETS", "Found", "at_least", "collect", "some_of"]

DATASETS = {
    "mnist-5k": "5,000 digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "3-bit CIFAR-10",
}
"""Data sets, as the pages call them."""


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

    Raises:
        ParameterError: there is no model or no seed to ask for.
    """
    some_of("seeds", seeds)
    some_of("models", list(models))
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


def some_of(name: str, values: Sequence[Any], limit: int | None = None) -> None:
    """Refuse an empty list, one that names something twice and, with a limit, positions beyond it.

    Raises:
        ParameterError: the message names the parameter, what was given and what is expected.
    """
    if not values:
        raise ParameterError(f"parameter {name!r} is an empty list; name at least one")
    if len(set(values)) < len(values):
        raise ParameterError(f"parameter {name!r} names something twice: {list(values)}")
    if limit is not None and not all(0 <= v < limit for v in values):
        raise ParameterError(f"parameter {name!r} must be positions from 0 to {limit - 1}, not {list(values)}")


def at_least(least: int, **values: int | None) -> None:
    """Refuse numbers that are too small; None stands for a default.

    Raises:
        ParameterError: the message names the parameter, what was given and what is expected.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ParameterError(f"parameter {name!r} must be at least {least}, not {value}")
