"""The claims ledger: every claim of the paper, its criterion fixed beforehand, and a verdict computed from the records.

`claims.yaml` holds, for each claim, one or more checks: an arithmetic expression over the decompositions of named
models, the interval it should lie in for "reproduced", and the weaker one for "same direction". Nothing here or there
types a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from vaegap.errors import InputError
from vaegap.lab import runs
from vaegap.lab.expressions import evaluate, names
from vaegap.lab.files import find_root
from vaegap.lab.judging import UNDECIDED, VERDICTS, Check, Verdict, judge

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "VERDICTS",
    "Check",
    "Verdict",
    "decided",
    "describe",
    "evaluate",
    "judge",
    "ledger",
    "overall",
    "published",
    "read_claims",
    "report",
    "said",
]


_NO_RUN, _NOT_MEASURED = "no run yet", "not measured yet"
_FROM_THE_WORST = ("not reproduced", _NO_RUN, _NOT_MEASURED, UNDECIDED, "same direction", "reproduced")


def read_claims(path: str | Path | None = None) -> list[dict[str, Any]]:
    """The claims with their checks, as dicts with id, section, claim, criterion, checks (list of `Check`).

    Raises:
        InputError: the file is missing or a check is malformed; the message names the claim.
    """
    import yaml

    path = Path(path) if path is not None else find_root() / "claims.yaml"
    if not path.is_file():
        raise InputError(f"{path}: there is no claims file")
    try:
        claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise InputError(f"{path}: is no list of claims, each with an id and its checks")
    for claim in claims:
        try:
            usual = claim.get("measured", "")
            claim["checks"] = [_check({"measured": usual, **c}) for c in claim.get("checks", [])]
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: claim {claim.get('id')}: {type(error).__name__}: {error}") from None
    return list(claims)


def _check(raw: Mapping[str, Any]) -> Check:
    def interval(values: list[Any]) -> tuple[float, float]:
        low, high = (float(v) for v in values)
        if not low <= high:
            raise ValueError(f"{values} is not an interval")
        return low, high

    asked, given = {letter for letter, _ in names(raw["value"])}, set(raw["of"])
    if asked != given:
        raise ValueError(f"{raw['name']!r} names the models {sorted(asked)}, and of gives {sorted(given)}")
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
                    "chance": v.chance,
                    "num_seeds": v.num_seeds,
                    "verdict": v.verdict,
                    "together": v.together,
                    "lacking": v.lacking,
                    "runs": v.run_ids,
                }
            )
    return pd.DataFrame(rows)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The verdict on each claim as a whole: the worst of those on its checks that were fixed before the runs.

    A claim holds where all of its checks do. From the worst: not reproduced, no run or nothing measured yet, undecided,
    same direction, reproduced. Some parts of a claim have added checks only, so the worst of all stands beside.

    Args:
        table: a ledger.

    Returns:
        a row a claim; columns claim (in words), verdict, checks ("2 of 3 reproduced"), with added (the worst of all).
    """
    import pandas as pd

    rows = {}
    for (claim, statement), checks in table.groupby(["claim", "statement"], sort=False):
        each = pd.Series([decided(row) for _, row in checks.iterrows()], index=checks.index)
        fixed = each[~checks["added"]]
        if len(fixed):
            held = f"{(fixed == VERDICTS[0]).sum()} of {len(fixed)} reproduced"
            worst, of_all = (min(some, key=_FROM_THE_WORST.index) for some in (fixed, each))
            rows[claim] = {"claim": statement, "verdict": worst, "checks": held, "with added": of_all}
    return pd.DataFrame(rows).T


def report(results: str | Path | None = None, profile: str | None = None, claims: str | Path | None = None) -> str:
    """The ledger as text: a line a claim with its verdict as a whole, a line a check under it, how many checks have
    which verdict, and how many of the records are of older code."""
    table = ledger(profile, results, claims)
    table["decided"] = [decided(row) for _, row in table.iterrows()]
    whole = overall(table)
    lines = []
    for (claim, section, statement), checks in table.groupby(["claim", "section", "statement"], sort=False):
        lines += ["", f"{claim} ({section}) {statement}"]
        if claim in whole.index:
            verdict, checked, of_all = whole.loc[claim, ["verdict", "checks", "with added"]]
            more = f"; with the added checks: {of_all}" if of_all != verdict else ""
            lines.append(f"   as a whole: {verdict} ({checked}{more})")
        for _, row in checks.iterrows():
            late = " (added after the first runs)" if row["added"] else ""
            lines.append(f"   {row['decided']:24s} {row['check']}{late}: {describe(row)}")
            lines += [f"{'':28s}{line}" for line in wrap(row["caveat"], 92)]
    lines += ["", f"claims as a whole: {_counted(whole['verdict'])}"] if len(whole) else []
    for added, checks in table.groupby("added"):
        marks = {"with a note": checks["caveat"] != "", "of one training run": checks["num_seeds"] == 1}
        counts = _counted(checks["decided"], {said: checks[mark]["decided"] for said, mark in marks.items()})
        lines += ["", f"{'added after the first runs' if added else 'fixed before the runs'}: {counts}"]
    return "\n".join([*lines[1:], *_older(table, results)])


def _counted(verdicts: pd.Series, marked: Mapping[str, pd.Series] | None = None) -> str:
    """How often each verdict occurs, the most frequent first, and how many of these have which mark."""
    parts = []
    for verdict, number in verdicts.value_counts().items():
        known = [(int((part == verdict).sum()), said) for said, part in (marked or {}).items()]
        marks = ", ".join(f"{count} {said}" for count, said in known if count)
        parts.append(f"{number} {verdict}" + (f" ({marks})" if marks else ""))
    return ", ".join(parts)


def _older(table: pd.DataFrame, results: str | Path | None) -> list[str]:
    """A line that says how many of the records behind a ledger are stale, if any are."""
    used = {run for found in table["runs"] for run in found}
    stale = sum(record.stale for record in runs.list_records(results) if record.run_id in used)
    if not stale:
        return []
    return ["", f"{stale} of the {len(used)} records behind this were computed by older code: see `vaegap verify`"]


def decided(row: Mapping[str, Any]) -> str:
    """The verdict of a row of the ledger to be read: want of runs, or of what was measured in them, is said as such."""
    if row["num_seeds"]:
        return str(row["verdict"])
    return _NOT_MEASURED if row["lacking"] else _NO_RUN


def describe(row: Mapping[str, Any]) -> str:
    """Value and intervals of a row of the ledger, in words."""
    return "; ".join(filter(None, [", ".join(said(row)), published(row)])) or "–"


def said(row: Mapping[str, Any]) -> list[str]:
    """The value of a row of the ledger, its interval over images, and that over seeds; nothing without records.

    Where adding both kinds of chance in quadrature would give another verdict, that is said, too.
    """
    if not row["num_seeds"]:
        return []
    parts = [f"{row['value']:.3f}"]
    if not math.isnan(row["images_low"]):
        parts.append(f"{row['chance']} [{row['images_low']:.3f}, {row['images_high']:.3f}]")
    if math.isnan(row["seeds_low"]):
        return [*parts, f"{row['num_seeds']} seeds" if row["num_seeds"] > 1 else "one seed"]
    parts.append(f"{row['num_seeds']} seeds [{row['seeds_low']:.3f}, {row['seeds_high']:.3f}]")
    return [*parts, *[f"with both chances added: {row['together']}"] * (row["together"] != row["verdict"])]


def published(row: Mapping[str, Any]) -> str:
    """The paper's value of a row of the ledger, and whether somebody compared it with the print; "" without one."""
    if row["published"] is None or math.isnan(row["published"]):
        return ""
    return f"published {row['published']:g}" + ("" if row["published_verified"] else " (transcription unverified)")
