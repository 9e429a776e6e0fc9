"""The claims ledger: every claim of the paper, its criterion fixed beforehand, and a verdict computed from the records.

`claims.yaml` holds, for each claim, one or more checks: an arithmetic expression over the decompositions of named
models, the interval it should lie in for "reproduced", and the weaker one for "same direction". Nothing here or there
types a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from vaegap.errors import InputError
from vaegap.lab import runs
from vaegap.lab.expressions import evaluate, letters
from vaegap.lab.files import find_root
from vaegap.lab.measured import by_seed, means
from vaegap.lab.records import Record
from vaegap.lab.seeds import over_seeds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "VERDICTS",
    "Check",
    "Verdict",
    "describe",
    "evaluate",
    "judge",
    "ledger",
    "read_claims",
    "report",
]

VERDICTS = ("reproduced", "same direction", "not reproduced", "undecided at this scale")

_RESAMPLES = 1000


@dataclass(frozen=True)
class Check:
    """One measurable part of a claim.

    Attributes:
        name: what it is about, e.g. "MNIST, q_FFG".
        value: the expression, e.g. "A.amortization / A.inference".
        of: letter -> what to look for among the records' parameters, plus "split" and, for milestones, "epoch".
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
        value: mean over seeds; NaN without records.
        images: 95 % bootstrap interval over images; NaN for a count, which does not vary over them.
        seeds: 95 % t-interval over seeds, or None for fewer than two.
        num_seeds: seeds behind it.
        run_ids: the records it rests on.
    """

    check: Check
    verdict: str
    value: float = math.nan
    images: tuple[float, float] = (math.nan, math.nan)
    seeds: tuple[float, float] | None = None
    num_seeds: int = 0
    run_ids: list[str] = field(default_factory=list)


def read_claims(path: str | Path | None = None) -> list[dict[str, Any]]:
    """The claims with their checks, as dicts with id, section, claim, criterion, checks (list of `Check`).

    Raises:
        InputError: the file is missing or a check is malformed; the message names the claim.
    """
    import yaml

    path = Path(path) if path is not None else find_root() / "claims.yaml"
    if not path.is_file():
        raise InputError(f"{path}: there is no claims file")
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    for claim in claims:
        try:
            usual = claim.get("measured", "")
            claim["checks"] = [_check({"measured": usual, **c}) for c in claim.get("checks", [])]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: claim {claim.get('id')}: {type(error).__name__}: {error}") from None
    return list(claims)


def _check(raw: Mapping[str, Any]) -> Check:
    def interval(values: list[Any]) -> tuple[float, float]:
        low, high = (float(v) for v in values)
        if not low <= high:
            raise ValueError(f"{values} is not an interval")
        return low, high

    letters(raw["value"])
    return Check(
        raw["name"],
        raw["value"],
        raw["of"],
        interval(raw["reproduced"]),
        interval(raw.get("direction", raw["reproduced"])),
        raw.get("published"),
        bool(raw.get("verified", False)),
        str(raw.get("measured", "")),
        bool(raw.get("added", False)),
        str(raw.get("caveat", "")),
    )


def ledger(
    profile: str | None = None,
    results: str | Path | None = None,
    claims: str | Path | None = None,
    only: Collection[str] | None = None,
) -> pd.DataFrame:
    """One row a check: claim, section, criterion, check, measured, published, value, intervals, verdict, runs, caveat.

    Args:
        profile: whose records count; None for the published ones ("laptop").
        results: folder of the records.
        claims: the claims file.
        only: ids of the claims to judge; all where they are not given.
    """
    import pandas as pd

    records = [r for r in runs.list_records(results) if r.info["profile"] == (profile or "laptop")]
    rows = []
    for claim in read_claims(claims):
        for check in claim["checks"] if only is None or claim["id"] in only else ():
            v = judge(check, records)
            rows.append(
                {
                    "claim": claim["id"],
                    "section": str(claim["section"]),
                    "statement": claim["claim"],
                    "criterion": claim.get("criterion", ""),
                    "check": check.name,
                    "measured": check.measured,
                    "added": check.added,
                    "caveat": check.caveat,
                    "reproduced_if": check.reproduced,
                    "same_direction_if": check.direction,
                    "published": check.published,
                    "published_verified": check.verified,
                    "value": v.value,
                    "images_low": v.images[0],
                    "images_high": v.images[1],
                    "seeds_low": v.seeds[0] if v.seeds else math.nan,
                    "seeds_high": v.seeds[1] if v.seeds else math.nan,
                    "num_seeds": v.num_seeds,
                    "verdict": v.verdict,
                    "runs": v.run_ids,
                }
            )
    return pd.DataFrame(rows)


def report(results: str | Path | None = None, profile: str | None = None, claims: str | Path | None = None) -> str:
    """The ledger as text: a line a claim, a line a check under it, and how many checks have which verdict."""
    table = ledger(profile, results, claims)
    lines = []
    for (claim, section, statement), checks in table.groupby(["claim", "section", "statement"], sort=False):
        lines += ["", f"{claim} ({section}) {statement}"]
        for _, row in checks.iterrows():
            late = " (added after the first runs)" if row["added"] else ""
            lines.append(f"   {row['verdict']:24s} {row['check']}{late}: {describe(row)}")
            lines += [f"{'':28s}{line}" for line in wrap(row["caveat"], 92)]
    for added, checks in table.groupby("added"):
        counts = ", ".join(f"{n} {verdict}" for verdict, n in checks["verdict"].value_counts().items())
        lines += ["", f"{'added after the first runs' if added else 'fixed before the runs'}: {counts}"]
    return "\n".join(lines[1:])


def describe(row: Mapping[str, Any]) -> str:
    """Value and intervals of a row of the ledger, in words."""
    ours, theirs = ", ".join(said(row)), published(row)
    return f"{ours}; {theirs}" if theirs else ours


def said(row: Mapping[str, Any]) -> list[str]:
    """The value of a row of the ledger, its interval over images, and that over seeds."""
    if not row["num_seeds"]:
        return ["no records"]
    parts = [f"{row['value']:.3f}"]
    if not math.isnan(row["images_low"]):
        parts.append(f"images [{row['images_low']:.3f}, {row['images_high']:.3f}]")
    if math.isnan(row["seeds_low"]):
        return [*parts, "one seed"]
    return [*parts, f"{row['num_seeds']} seeds [{row['seeds_low']:.3f}, {row['seeds_high']:.3f}]"]


def published(row: Mapping[str, Any]) -> str:
    """The paper's value of a row of the ledger, and whether somebody compared it with the print; "" without one."""
    if not row["num_seeds"] or row["published"] is None or math.isnan(row["published"]):
        return ""
    return f"published {row['published']:g}" + ("" if row["published_verified"] else " (transcription unverified)")


def judge(check: Check, records: Iterable[Record]) -> Verdict:
    """Evaluate a check on records, seed by seed, and give the verdict.

    The verdict's interval is the wider of the two kinds: over images (bootstrap, the same resampled images for every
    model and training run measured on them; numbers of a whole model, such as BDMC's width, vary by their Monte Carlo
    error instead) and over seeds (Student's t). "Reproduced" needs all of it inside the first interval, "same
    direction" inside the second; "not reproduced" needs all of it outside the second. Anything else is undecided, and
    so is a value without any interval: a count of one run. Models are compared on the seeds that all of them have,
    where all that the check asks for was measured.
    """
    import numpy as np

    found = {letter: by_seed(records, dict(wanted)) for letter, wanted in check.of.items()}
    seeds = sorted(set.intersection(*(set(f) for f in found.values()))) if found else []
    if not seeds:
        return Verdict(check, "undecided at this scale")
    generator = np.random.default_rng(0)
    points, clouds, used = [], [], []
    # the same images have the same weights in all models and training runs
    shared: dict[tuple[str, str, int], NDArray[np.float64]] = {}
    for seed in seeds:
        tables = {letter: found[letter][seed][0] for letter in found}
        point = float(evaluate(check.value, {k: means(t) for k, t in tables.items()}))
        if not math.isfinite(point):  # a record from before something was measured
            continue
        points.append(point)
        used += [found[letter][seed][1] for letter in found]
        which: dict[str, tuple[str, str, int]] = {}
        for letter, table in tables.items():
            count = len(table)
            asked = check.of[letter]
            which[letter] = (str(asked.get("dataset")), asked.get("rows", {}).get("split", "train"), count)
            if which[letter] not in shared:
                shared[which[letter]] = generator.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
        drawn = {k: means(t, shared[which[k]]) for k, t in tables.items()}
        for letter, table in tables.items():  # numbers of the whole model, such as BDMC's width, have their own error
            for name, error in table.attrs.get("mcse", {}).items():
                drawn[letter][name] = drawn[letter][name] + error * generator.standard_normal(_RESAMPLES)
        clouds.append(evaluate(check.value, drawn))
    if not points:
        return Verdict(check, "undecided at this scale")
    value = float(np.mean(points))
    ends = np.quantile(np.mean(clouds, axis=0), [0.025, 0.975])
    counted = ends[1] - ends[0] < 1e-9  # the same for every choice of images
    images = (math.nan, math.nan) if counted else (float(ends[0]), float(ends[1]))
    spread = None
    if len(points) > 1:
        half = over_seeds(points)
        spread = (value - half, value + half)
    known = [interval for interval in (images, spread) if interval and not math.isnan(interval[0])]
    verdict = "undecided at this scale"
    if known:
        verdict = _verdict(min(low for low, _ in known), max(high for _, high in known), check)
    return Verdict(check, verdict, value, images, spread, len(points), sorted(set(used)))


def _verdict(low: float, high: float, check: Check) -> str:
    def inside(bounds: tuple[float, float]) -> bool:
        return bounds[0] < low and high < bounds[1]  # "fewer" is not "as many": the ends are out

    if inside(check.reproduced):
        return "reproduced"
    if inside(check.direction):
        return "same direction"
    if high < check.direction[0] or low > check.direction[1]:
        return "not reproduced"
    return "undecided at this scale"
