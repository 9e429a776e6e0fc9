"""The ledger as it is read: claims as a whole, counts, and the widths of annealing from the prior."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_records import record

from vaegap.lab import claims, runs
from vaegap.lab.claims import ledger
from vaegap.lab.measured import table_of
from vaegap.lab.records import Record


@pytest.mark.parametrize(
    ("intervals", "verdict", "held", "late", "in_all"),
    [
        (["[0, 9]", "[0, 9]"], "reproduced", "2 of 2", "[7, 8]", "not reproduced"),
        (["[0, 9]", "[5, 9], direction: [0, 9]"], "same direction", "1 of 2", "[7, 8]", "not reproduced"),
        (["[0, 9]", "[5, 9]", "[5, 9], direction: [0, 9]"], "not reproduced", "1 of 3", "[7, 8]", "not reproduced"),
        (["[0, 9]", "[2.0, 9]"], "undecided at this scale", "1 of 2", "[7, 8]", "not reproduced"),
        (["[0, 9]", "[2.0, 9]"], "undecided at this scale", "1 of 2", "[0, 9]", "undecided at this scale"),
        (["[0, 9]", "[5, 9]"], "not reproduced", "1 of 2", "[0, 9]", "not reproduced"),
    ],
)
def test_a_claim_as_a_whole_is_as_bad_as_its_worst_check(
    tmp_path: Path, intervals: list[str], verdict: str, held: str, late: str, in_all: str
) -> None:
    """Of those that were fixed before the runs; of all checks it stands beside."""
    path = tmp_path / "claims.yaml"
    checks = [
        f"{{name: n{i}, value: A.inference, of: {{A: {{}}}}, reproduced: {interval}}}"
        for i, interval in enumerate(intervals)
    ]
    checks.append(f"{{name: late, value: A.inference, of: {{A: {{}}}}, reproduced: {late}, added: true}}")
    path.write_text(f"- {{id: C1, section: x, claim: y, checks: [{', '.join(checks)}]}}\n", encoding="utf-8")
    results = tmp_path / "results"
    for seed in (0, 1):
        record(results, 1.0, 1.0, spread=0.02, seed=seed)
    table = ledger(results=results, claims=path)
    whole = claims.overall(table).loc["C1"]
    assert (whole["verdict"], whole["checks"]) == (verdict, f"{held} reproduced"), table[["check", "verdict"]]
    assert whole["with added"] == in_all
    more = "" if verdict == in_all else f"; with the added checks: {in_all}"
    assert f"as a whole: {verdict} ({held} reproduced{more})" in claims.report(results, claims=path)
    empty = claims.overall(ledger(results=tmp_path / "none", claims=path)).loc["C1"]
    assert empty["verdict"] == "no run yet"


def test_verdicts_on_one_training_run_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    one = "{name: a, value: A.inference, of: {A: {anneal: false}}, reproduced: [0, 9]}"
    two = "{name: b, value: A.inference, of: {A: {}}, reproduced: [0, 9], caveat: but}"
    path.write_text(f"- {{id: C1, section: x, claim: y, checks: [{one}, {two}]}}\n", encoding="utf-8")
    for params in ({"anneal": False}, {"seed": 0}, {"seed": 1}):
        record(tmp_path / "results", 1.0, 1.0, **params)
    text = claims.report(tmp_path / "results", claims=path)
    assert "fixed before the runs: 2 reproduced (1 with a note, 1 of one training run)" in text


def test_the_report_says_how_many_records_are_of_older_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, 1.0, 1.0, dataset="mnist")
    assert "older code" not in claims.report(tmp_path)
    monkeypatch.setattr(Record, "stale", property(lambda self: True))
    assert claims.report(tmp_path).endswith(
        "1 of the 1 records behind this were computed by older code: see `vaegap verify`"
    )


def test_each_way_of_annealing_has_a_width_of_its_own() -> None:
    """A check on certificates reads one way's width, with its error, over the images that were simulated."""
    certificates = [r for r in runs.list_records() if r.experiment == "certificates" and r.info["profile"] == "laptop"]
    assert len(certificates) >= 4
    for made in certificates:
        for _, row in made.select(metric="bdmc_width").iterrows():
            table = table_of(made, {"split": "simulated", "model": row["model"]})
            assert len(table) == made.params["num_simulated"]
            assert set(table["bdmc_width"]) == {row["value"]} and table.attrs["mcse"] == {"bdmc_width": row["mcse"]}
        assert table_of(made, {"split": "simulated", "model": "no such way"}).empty
