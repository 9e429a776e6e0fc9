"""The claims ledger: verdicts follow the records, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from made_records import record

from vaegap.errors import InputError
from vaegap.lab import claims, experiments, tables, wording
from vaegap.lab.claims import VERDICTS, Check, evaluate, judge, ledger, read_claims
from vaegap.lab.expressions import names
from vaegap.lab.measured import table_of
from vaegap.lab.records import Record

SHARE = "A.amortization / A.inference"


def check(value: str = SHARE, reproduced: tuple[float, float] = (0.4, 0.6), **of: Any) -> Check:
    return Check("toy", value, of or {"A": {}}, reproduced, (0.3, 0.7))


@pytest.mark.parametrize(
    ("amortization", "verdict"),
    [(1.0, "reproduced"), (1.8, "same direction"), (4.0, "not reproduced"), (7 / 3, "undecided at this scale")],
)
def test_the_verdict_follows_the_record(tmp_path: Path, amortization: float, verdict: str) -> None:
    made = record(tmp_path, 1.0, amortization, spread=0.3 if verdict.startswith("undecided") else 0.01)
    found = judge(check(), [made])
    assert found.verdict == verdict and found.run_ids == [made.run_id]
    assert found.value == pytest.approx(amortization / (1 + amortization), abs=0.05)
    assert found.images[0] < found.value < found.images[1] and found.seeds is None
    assert found.chance == "40 images"


def test_the_published_ledger_changes_when_a_record_does(tmp_path: Path) -> None:
    """C2 of claims.yaml on a run of its own model: equal gaps, then the same run with others."""

    def c2() -> str:
        table = ledger(results=tmp_path)
        row = table[(table["claim"] == "C2") & (table["check"] == "MNIST, trained with q_FFG")].iloc[0]
        return str(row["verdict"])

    assert c2() == "undecided at this scale", "without records nothing is claimed"
    made = record(tmp_path, 1.0, 1.0, dataset="mnist")
    assert c2() == "reproduced"
    _replace(made, tmp_path, 0.2, 3.0)
    assert c2() == "not reproduced"


def test_some_claims_are_judged_as_among_all(tmp_path: Path) -> None:
    record(tmp_path, 1.0, 1.0, dataset="mnist")
    whole = ledger(results=tmp_path)
    part = ledger(results=tmp_path, only=["C7", "C2"])
    pd.testing.assert_frame_equal(part, whole[whole["claim"].isin(["C2", "C7"])].reset_index(drop=True))
    assert set(part["claim"]) == {"C2", "C7"}


def _replace(made: Record, folder: Path, approximation: float, amortization: float) -> None:
    for path in sorted((folder / made.run_id).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / made.run_id).rmdir()
    assert record(folder, approximation, amortization, dataset="mnist").run_id == made.run_id


def test_no_verdict_is_typed() -> None:
    for claim in read_claims():
        assert not set(claim) & {"verdict", "result", "value"}, claim["id"]
    text = (claims.find_root() / "claims.yaml").read_text(encoding="utf-8")
    assert not any(f": {verdict}" in text for verdict in VERDICTS)


def test_seeds_widen_what_images_leave_narrow(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0 + 0.5 * seed, seed=seed) for seed in range(3)]
    one, all_ = judge(check(), made[:1]), judge(check(), made)
    assert one.verdict == "reproduced" and one.num_seeds == 1
    assert all_.num_seeds == 3 and all_.seeds is not None
    shares = torch.tensor([0.5, 0.6, 2 / 3])
    half = 4.303 * shares.std().item() / math.sqrt(3)
    assert all_.seeds[1] - all_.seeds[0] == pytest.approx(2 * half, rel=0.05)
    assert all_.verdict == "undecided at this scale"


def test_both_chances_together_are_said_where_they_change_the_verdict(tmp_path: Path) -> None:
    """A criterion whose end lies beyond each interval, but not beyond the two of them added in quadrature."""
    made = [record(tmp_path, 1.0, 1.1 + 0.1 * seed, spread=0.25, seed=seed, draw=0) for seed in range(4)]
    found = judge(check(reproduced=(-1.0, 9.0)), made)
    assert found.seeds is not None and found.together == "reproduced"
    high = max(found.images[1], found.seeds[1])
    half = math.hypot(found.images[1] - found.value, found.seeds[1] - found.value)
    assert found.value + half > high
    between = judge(check(reproduced=(-1.0, (high + found.value + half) / 2)), made)
    assert (between.verdict, between.together) == ("reproduced", "same direction")
    row = ledger_row(between) | {"seeds_low": 0.0, "seeds_high": 1.0}
    assert "with both chances added: same direction" in claims.describe(row)
    assert "both chances" not in claims.describe(ledger_row(found) | {"seeds_low": 0.0, "seeds_high": 1.0})


def test_runs_that_see_the_same_images_do_not_make_more_images(tmp_path: Path) -> None:
    """Two training runs with the very same gaps are no surer of the mean over images than one of them."""
    one, two = (record(tmp_path, 1.0, 2.0, spread=0.5, seed=seed, draw=0) for seed in (0, 1))
    alone, both = judge(check("A.amortization"), [one]), judge(check("A.amortization"), [one, two])
    assert both.num_seeds == 2 and both.images == pytest.approx(alone.images, rel=1e-12)


def test_models_are_compared_on_the_images_that_both_have(tmp_path: Path) -> None:
    """A model and itself on fewer images: no difference, and no chance; the ledger says how many they are."""
    made = record(tmp_path, 1.0, 2.0, spread=0.5, heldout=7)
    for first in (10, 30):
        fewer = {"rows": {"split": "train", "first": first}}
        none = judge(check("A.amortization - B.amortization", A={}, B=fewer), [made])
        assert none.value == 0 and math.isnan(none.images[0])
        assert judge(check("A.amortization / B.inference", A={}, B=fewer), [made]).chance == f"{first} images"
    apart = judge(check("A.amortization - B.amortization", A={}, B={"rows": {"split": "test"}}), [made])
    assert apart.value == pytest.approx(
        float(table_of(made, {"split": "train"})["amortization"].mean())
        - float(table_of(made, {"split": "test"})["amortization"].mean())
    ), "other images, all of them"
    assert apart.chance == "7 images"


def test_checks_added_later_are_marked_and_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    fixed = "{name: first, value: A.inference, of: {A: {}}, reproduced: [0, 9]}"
    late = "{name: second, value: A.inference, of: {A: {}}, reproduced: [0, 9], added: true, caveat: mind the gap}"
    path.write_text(f"- {{id: C1, section: x, claim: y, checks: [{fixed}, {late}]}}\n", encoding="utf-8")
    record(tmp_path / "results", 1.0, 1.0)
    text = claims.report(tmp_path / "results", claims=path)
    assert "second (added after the first runs)" in text and "first (added" not in text and "mind the gap" in text
    assert "fixed before the runs: 1 reproduced" in text and "added after the first runs: 1 reproduced" in text
    table = ledger(results=tmp_path / "results", claims=path)
    assert wording.notes(table) == "- **C1, second.** mind the gap"
    assert wording.notes(table[~table["added"]]) == ""
    assert [name for _, name in tables.ledger(table).index] == [
        "first",
        "second\n(added after the first runs)\n(note below)",
    ]


def test_a_count_of_one_run_has_no_interval_and_decides_nothing(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, units=units, anneal=anneal) for units, anneal in ((20, True), (10, False))]
    fewer = check("B.active_units - A.active_units", (-math.inf, 0.0), A={}, B={"anneal": False})
    found = judge(fewer, made)
    assert found.value == -10 and math.isnan(found.images[0]) and found.verdict == "undecided at this scale"
    assert "images" not in claims.describe(ledger_row(found))
    made += [record(tmp_path, 1.0, 1.0, units=u, anneal=a, seed=1) for u, a in ((20, True), (10, False))]
    both = judge(fewer, made)
    assert both.verdict == "reproduced"
    assert both.seeds == (-10.5, -9.5), "two runs that agree are not sure of a whole number"


def ledger_row(found: claims.Verdict) -> dict[str, Any]:
    low, high = found.images
    row: dict[str, Any] = {"num_seeds": found.num_seeds, "value": found.value, "images_low": low, "images_high": high}
    row |= {"chance": found.chance, "verdict": found.verdict, "together": found.together}
    return {**row, "seeds_low": math.nan, "published": None, "lacking": found.lacking}


def test_all_images_count_and_only_the_same_ones_are_paired(tmp_path: Path) -> None:
    """A model measured on 40 training images and 20 held-out ones: nothing is cut to 20, no split leans on another."""
    made = [record(tmp_path, 1.0, 2.0, spread=0.5, heldout=20)]
    train, test = (table_of(made[0], {"split": split})["amortization"] for split in ("train", "test"))
    rows = {f"{letter}": {"rows": {"split": split}} for letter, split in (("A", "train"), ("B", "test"))}
    found = judge(check("B.amortization - A.amortization", **rows), made)
    assert (len(train), len(test)) == (40, 20)
    assert found.value == pytest.approx(test.mean() - train.mean(), rel=1e-12)
    half = 1.96 * math.sqrt(train.var(ddof=0) / 40 + test.var(ddof=0) / 20)
    assert (found.images[1] - found.images[0]) / 2 == pytest.approx(half, rel=0.15)
    alone = judge(check("A.amortization - A.amortization", **rows), made)
    assert alone.value == 0 and math.isnan(alone.images[0]), "the same images of the same model cancel"


def test_as_many_is_not_fewer(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, anneal=anneal) for anneal in (True, False)]
    fewer = check("B.active_units - A.active_units", (-math.inf, 0.0), A={}, B={"anneal": False})
    assert judge(fewer, made).verdict != "reproduced"


def test_a_width_has_its_own_error(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0)]  # width 0.01 ± 0.01
    found = judge(check("A.bdmc_width", (-0.5, 0.5)), made)
    assert found.images == pytest.approx((0.01 - 0.0196, 0.01 + 0.0196), abs=0.002)
    assert "Monte Carlo [" in claims.describe(ledger_row(found))
    assert judge(check("A.bdmc_width", (0.0, 0.5)), made).verdict != "reproduced"


def test_a_seed_without_what_is_asked_for_is_left_out(tmp_path: Path) -> None:
    """A record from before something was measured decides nothing, and does not stop the ledger."""
    made = [record(tmp_path, 1.0, 1.0, seed=seed) for seed in (0, 1)]
    rows = made[1].rows[made[1].rows["metric"] != "bdmc_width"]
    older = dataclasses.replace(made[1], rows=rows)
    width = check("A.bdmc_width", (-0.5, 0.5))
    found = judge(width, [made[0], older])
    assert found.verdict == "reproduced" and found.num_seeds == 1 and found.run_ids == [made[0].run_id]
    none = judge(width, [older])
    assert none.verdict == "undecided at this scale" and none.num_seeds == 0 and none.run_ids == []
    assert claims.decided(ledger_row(none)) == "not measured yet"
    assert claims.decided(ledger_row(judge(width, []))) == "no run yet"
    assert claims.describe(ledger_row(none)) == "–"
    rows = made[1].rows[made[1].rows["metric"] != "L_star_gaussian"]
    without = dataclasses.replace(made[1], rows=rows)
    assert judge(check("A.L_star_gaussian"), [made[0], without]).num_seeds == 1
    assert judge(check("A.L_q"), [made[0], without]).num_seeds == 2


def test_a_number_that_is_not_finite_decides_nothing_and_is_not_left_out(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, seed=seed) for seed in (0, 1)]
    rows = made[1].rows.copy()
    rows.loc[(rows["metric"] == "L_q") & (rows["image"] == "3"), "value"] = -math.inf
    found = judge(check(), [made[0], dataclasses.replace(made[1], rows=rows)])
    assert found.verdict == "undecided at this scale" and found.num_seeds == 2 and math.isnan(found.value)
    assert claims.describe(ledger_row(found)) == "nan, 2 seeds"


def test_milestones_and_grids_that_are_not_there_are_no_table(tmp_path: Path) -> None:
    made = record(tmp_path, 1.0, 1.0)
    assert table_of(made, {"split": "test", "last_epoch": True}).empty
    row = {"metric": "kl", "split": "train", "unit": "nats"}
    rows = [{**row, "family": "gaussian", "image": str(i), "value": 0.1} for i in range(3)]
    grid = experiments.run("posterior_2d", {"num_images": 3}, "laptop", tmp_path, compute=lambda ctx: rows)
    assert table_of(grid, {"split": "test"}).empty
    assert list(table_of(grid, {"split": "train"}).columns) == ["kl_gaussian"]
    rows += [{**row, "family": "amortized", "image": str(i), "value": v} for i, v in enumerate((0.1, 0.3, math.nan))]
    params = {"num_images": 3, "seed": 1}
    grid = experiments.run("posterior_2d", params, "laptop", tmp_path, compute=lambda ctx: rows)
    larger = table_of(grid, {"split": "train"})["amortization_is_larger"]
    assert list(larger[:2]) == [0.0, 1.0] and math.isnan(larger[2]), "what is not finite is no answer"


def test_a_share_of_all_images_is_no_count(tmp_path: Path) -> None:
    """The same for every image, and for both runs: then both intervals are a point, and not half a unit wide."""
    made = [record(tmp_path, 1.0, 1.0, spread=0.0, seed=seed) for seed in (0, 1)]
    found = judge(check("A.amortization / A.approximation", (0.9, 1.1)), made)
    assert found.verdict == "reproduced" and found.seeds == pytest.approx((1.0, 1.0))


def test_of_two_records_of_a_run_the_larger_counts(tmp_path: Path) -> None:
    """Whichever is read first, and whatever the smaller one says."""
    made = record(tmp_path, 1.0, 1.0)
    image = pd.to_numeric(made.rows["image"], errors="coerce")
    smaller = dataclasses.replace(made, rows=made.rows[~(image >= 30)])
    assert len(table_of(smaller, {"split": "train"})) == 30
    for found in ([made, smaller], [smaller, made]):
        assert judge(check(), found).value == judge(check(), [made]).value != judge(check(), [smaller]).value


def test_only_records_of_the_model_count(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, encoder=[500, 500]), record(tmp_path, 0.2, 3.0)]
    assert judge(check(A={"encoder": [500, 500]}), made).verdict == "reproduced"
    assert judge(check(), made).verdict == "not reproduced"
    assert judge(check(A={"family": "aux_flow"}), made).num_seeds == 0


def test_checks_ask_for_what_records_have() -> None:
    """A slip in a name would read as "not measured yet" for ever."""
    bound = r"log_p|L_q|L_star_(gaussian|full_gaussian|aux_flow|flow)"
    gap = r"inference|(approximation|amortization)(_gaussian|_full_gaussian|_aux_flow|_flow|_encoder_form)?"
    known = re.compile(rf"{bound}|{gap}|active_units|bdmc_width|kl_(amortized|gaussian)|amortization_is_larger")
    for claim in read_claims():
        for one in claim["checks"]:
            assert all(known.fullmatch(name) for _, name in names(one.value)), f"{claim['id']}, {one.name}"
            for wanted in one.of.values():
                usual = experiments.get(wanted.get("experiment", "gap_decomposition")).defaults
                assert set(wanted) <= {"experiment", "rows", *usual}, f"{claim['id']}, {one.name}"
                labels = {"split", "model", "first_epoch", "last_epoch", "first"}
                assert set(wanted.get("rows", {})) <= labels, f"{claim['id']}, {one.name}"


def test_unverified_values_are_labelled() -> None:
    row: dict[str, Any] = {"num_seeds": 1, "value": 0.5, "images_low": 0.4, "images_high": 0.6}
    row |= {"seeds_low": math.nan, "chance": "images"}
    assert "unverified" in claims.describe({**row, "published": 0.48, "published_verified": False})
    assert "unverified" not in claims.describe({**row, "published": 0.48, "published_verified": True})


def test_expressions_are_arithmetic_only() -> None:
    models = {"A": {"x": 2.0}, "B": {"x": 3.0}}
    assert evaluate("-abs(A.x - B.x) * 2 + max(A.x, B.x) / 3", models) == -1
    for wrong in ("__import__('os')", "A.x.real", "A.x if 1 else 2", "open(A.x)", "A.y", "'text'"):
        with pytest.raises(InputError):
            evaluate(wrong, models)


@pytest.mark.parametrize(
    "change",
    [
        "value: A.x",
        "value: B.x\n      of: {A: {}}\n      reproduced: [0, 1]",
        "reproduced: [1.0, 0.0]",
        "reproduced: 3",
        "value: A.x +\n      of: {A: {}}\n      reproduced: [0, 1]",
    ],
)
def test_malformed_claims_are_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        f"- id: C99\n  section: x\n  claim: y\n  checks:\n    - name: n\n      {change}\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match="C99"):
        read_claims(path)


@pytest.mark.parametrize("text", ["", "a: 1", "- 1", "- id: [", "'x"])
def test_a_file_that_is_no_list_of_claims(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(InputError, match=r"claims\.yaml: is no "):
        read_claims(tmp_path / "claims.yaml")
