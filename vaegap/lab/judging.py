"""The verdict on one check of the claims ledger: an expression over models' means, evaluated on records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vaegap.lab.expressions import evaluate, names
from vaegap.lab.measured import WHOLE_MODEL, by_seed, means
from vaegap.lab.records import Record
from vaegap.lab.seeds import over_seeds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Tables = Mapping[str, pd.DataFrame]

__all__ = ["UNDECIDED", "VERDICTS", "Check", "Verdict", "judge"]

UNDECIDED = "undecided at this scale"
VERDICTS = ("reproduced", "same direction", "not reproduced", UNDECIDED)

_RESAMPLES = 1000


@dataclass(frozen=True)
class Check:
    """One measurable part of a claim.

    Attributes:
        name: what it is about, e.g. "MNIST, q_FFG".
        value: the expression, e.g. "A.amortization / A.inference".
        of: letter -> what to look for among the records' parameters, plus "experiment" (a decomposition, if it is left
            out) and "rows", as `measured.table_of` takes them.
        reproduced: (low, high) that the whole interval must lie in.
        direction: the weaker (low, high).
        published: the paper's value, or None where it is not known.
        verified: whether the published value was checked against the paper itself.
        measured: what the value is, in words, with its unit.
        added: whether it was written when records were there already, so that they may have suggested it.
        caveat: what its verdict alone does not tell.
    """

    name: str
    value: str
    of: Mapping[str, Mapping[str, Any]]
    reproduced: tuple[float, float]
    direction: tuple[float, float]
    published: float | None = None
    verified: bool = False
    measured: str = ""
    added: bool = False
    caveat: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the records say of one check.

    Attributes:
        check: the check.
        verdict: one of `VERDICTS`.
        value: mean over seeds; NaN without records, or where an image's number is not finite.
        images: 95 % bootstrap interval over images; NaN for a count, which does not vary over them.
        seeds: 95 % t-interval over seeds, or None for fewer than two.
        num_seeds: seeds behind it.
        run_ids: the records it rests on.
        together: the verdict if both kinds of chance were added in quadrature.
        lacking: there are runs of all its models, but none of a seed in which all that it asks for was measured.
        num_images: images behind it; the fewest, where training runs or splits do not have as many.
    """

    check: Check
    verdict: str
    value: float = math.nan
    images: tuple[float, float] = (math.nan, math.nan)
    seeds: tuple[float, float] | None = None
    num_seeds: int = 0
    run_ids: list[str] = field(default_factory=list)
    together: str = ""
    lacking: bool = False
    num_images: int = 0

    @property
    def chance(self) -> str:
        """What the first interval is over: "500 images", or the "Monte Carlo" error of numbers of a whole model."""
        whole = {name for _, name in names(self.check.value)} <= WHOLE_MODEL
        return "Monte Carlo" if whole else f"{self.num_images:,} images"


def judge(check: Check, records: Iterable[Record]) -> Verdict:
    """Evaluate a check on records, seed by seed, and give the verdict.

    There are two intervals: over images (bootstrap, the same resampled images for every model and training run measured
    on them; numbers of a whole model, such as BDMC's width, vary by their Monte Carlo error instead) and over seeds
    (Student's t). The verdict rests on the lower of their lows and the higher of their highs, which is no joint
    interval: neither kind covers the other's chance. "Reproduced" needs all of it inside the first interval of the
    criterion, "same direction" inside the second; "not reproduced" needs all of it outside the second. Anything else is
    undecided, and so is a value without any interval: a count of one run. Models are compared on the seeds that all of
    them have, where all that the check asks for was measured, and on the images that they have in common. A number that
    is not finite decides nothing.
    """
    import numpy as np

    found = {letter: by_seed(records, dict(wanted)) for letter, wanted in check.of.items()}
    common = sorted(set.intersection(*(set(f) for f in found.values()))) if found else []
    asked = names(check.value)
    seeds = [s for s in common if all(name in found[letter][s][0] for letter, name in asked)]
    if not seeds:
        return Verdict(check, UNDECIDED, lacking=bool(found) and all(found.values()))
    tables = [_on_common_images({letter: found[letter][seed][0] for letter in found}, check) for seed in seeds]
    with np.errstate(invalid="ignore"):  # infinities in columns that the check does not ask for
        points = [float(evaluate(check.value, {k: means(t) for k, t in one.items()})) for one in tables]
        clouds = _clouds(check, tables)
    value, used = float(np.mean(points)), sorted({found[letter][seed][1] for letter in found for seed in seeds})
    fewest = min(len(table) for one in tables for table in one.values())
    if not math.isfinite(value):
        return Verdict(check, UNDECIDED, value, num_seeds=len(points), run_ids=used, num_images=fewest)
    ends = np.quantile(np.mean(clouds, axis=0), [0.025, 0.975])
    counted = ends[1] - ends[0] < 1e-9  # the same for every choice of images
    images = (math.nan, math.nan) if counted else (float(ends[0]), float(ends[1]))
    spread = None
    if len(points) > 1:
        units = any(name == "active_units" for _, name in asked)
        half = max(over_seeds(points), 0.5 if counted and units else 0.0)  # runs that agree are not sure of a count
        spread = (value - half, value + half)
    known = [interval for interval in (images, spread) if interval and not math.isnan(interval[0])]
    if not known:
        return Verdict(check, UNDECIDED, value, images, spread, len(points), used, num_images=fewest)
    verdict = _verdict(min(low for low, _ in known), max(high for _, high in known), check)
    below, above = (math.hypot(*(end - value for end in side)) for side in zip(*known, strict=True))
    together = _verdict(value - below, value + above, check)
    return Verdict(check, verdict, value, images, spread, len(points), used, together, num_images=fewest)


def _on_common_images(tables: Tables, check: Check) -> Tables:
    """The tables of one seed, those of one set of images cut to its first ones that all of them have."""
    sets = {letter: _images_of(check, letter) for letter in tables}
    fewest = {key: min(len(tables[letter]) for letter in tables if sets[letter] == key) for key in sets.values()}
    return {letter: table.iloc[: fewest[sets[letter]]] for letter, table in tables.items()}


def _images_of(check: Check, letter: str) -> tuple[str, str]:
    """Data set and split."""
    asked = check.of[letter]
    return str(asked.get("dataset")), asked.get("rows", {}).get("split", "train")


def _clouds(check: Check, runs: Iterable[Tables]) -> list[NDArray[np.float64]]:
    """The check's value for many choices of images, seed by seed."""
    import numpy as np

    generator = np.random.default_rng(0)
    # the same images have the same weights in all models and training runs
    shared: dict[tuple[str, str, int], NDArray[np.float64]] = {}
    clouds = []
    for tables in runs:
        drawn = {}
        for letter, table in tables.items():
            count = len(table)
            images = (*_images_of(check, letter), count)
            if images not in shared:
                shared[images] = generator.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
            drawn[letter] = means(table, shared[images])
        for letter, table in tables.items():  # numbers of the whole model, such as BDMC's width, have their own error
            for name, error in table.attrs.get("mcse", {}).items():
                drawn[letter][name] = drawn[letter][name] + error * generator.standard_normal(_RESAMPLES)
        clouds.append(evaluate(check.value, drawn))
    return clouds


def _verdict(low: float, high: float, check: Check) -> str:
    def inside(bounds: tuple[float, float]) -> bool:
        return bounds[0] < low and high < bounds[1]  # "fewer" is not "as many": the ends are out

    if inside(check.reproduced):
        return "reproduced"
    if inside(check.direction):
        return "same direction"
    if high < check.direction[0] or low > check.direction[1]:
        return "not reproduced"
    return UNDECIDED
