"""Findings in words follow the records: their numbers are the tables', and their comparisons turn with the numbers."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest

from vaegap.lab import captions, runs, tables, wording
from vaegap.lab.gathering import Found

COUNT = 400


def model(family: float, encoder: float, log_p: float = -90.0, half: float = 0.1, seeds: float = 0.0, first: int = 0):
    """Runs whose means are these, each with this half interval over images, and over two seeds with that one."""
    values = {"log_p": log_p, "approximation": family, "amortization": encoder}
    spread = half * math.sqrt(COUNT) / 1.96
    generator = np.random.default_rng(hash((family, encoder, log_p)) % 2**32)

    def table(shift: float) -> pd.DataFrame:
        noise = {name: generator.standard_normal(COUNT) for name in values}
        exact = {name: (n - n.mean()) / n.std(ddof=1) for name, n in noise.items()}
        each = pd.DataFrame({name: value + shift + spread * exact[name] for name, value in values.items()})
        return each.assign(inference=each["approximation"] + each["amortization"])

    apart = seeds / 12.706  # Student's t with two runs
    return {first: table(-apart), first + 1: table(apart)} if seeds else {first: table(0.0)}


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch):
    """Words about models that are given as tables."""

    def speak(against: dict[str, str] | None = None, **models: dict[int, pd.DataFrame]) -> str:
        monkeypatch.setattr(wording, "_tables", lambda records, split: models[records[0]])
        found = Found()
        found.update({name: [name] for name in models})
        return str(wording.compared({"digits": found}, against)).partition("- **digits, held-out")[0]

    return speak


@pytest.mark.parametrize(
    ("family", "encoder", "verdict"),
    [
        (3.0, 1.0, "more of it to its family"),
        (1.0, 3.0, "more of it to its encoder"),
        (2.0, 2.1, "not clear to which more"),
    ],
)
def test_the_larger_cause_is_named_only_beyond_the_interval(say, family: float, encoder: float, verdict: str):
    text = say(A=model(family, encoder))
    assert verdict in text
    assert f"({100 * encoder / (family + encoder):.0f} %)" in text


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("change", [1.0, -1.0, 0.05])
def test_differences_have_a_direction_only_beyond_their_error(say, row: int, change: float):
    values = {"family": 2.0, "encoder": 2.0, "log_p": -90.0}
    moved = dict(values)
    moved[["family", "encoder", "log_p"][row]] += change
    text = say(A=model(**values), B=model(**moved)).partition("Against *A* (1 seed), *B* loses ")[2]
    total, *said = re.fullmatch(
        r"(.*) in all: (.*) to its family, and (.*) to its encoder; its log p̂\(x\) is (.*)\.\n?", text
    ).groups()
    words = [("1.0 nats more", "1.0 nats less")] * 2 + [("1.0 nats higher", "1.0 nats lower")]
    for i, part in enumerate([*said, total]):
        if abs(change) > 0.2 and (i == row or (i == 3 and row < 2)):
            assert part == words[row][change < 0]
        else:
            assert re.fullmatch(r"not clearly (more or less|different) \(± 0\.[12]\d? nats\)", part), part


def test_models_are_compared_on_the_images_that_all_were_measured_on(say):
    """So the difference is that of the two lines above it."""
    whole, changed = model(2.0, 2.0), model(2.0, 3.0)
    few = {seed: table.iloc[:100] for seed, table in changed.items()}
    cut = {seed: table.iloc[:100] for seed, table in whole.items()}
    assert say(A=whole, B=few) == say(A=cut, B=few) != say(A=whole, B=changed)


def test_models_are_compared_image_by_image_on_common_seeds(say):
    """One model shifted by less than the images' spread: clear, as the images are the same; a third run counts not."""
    one = model(2, 2, half=0.5)
    two = {0: one[0] + 0.2, 7: one[0] + 50.0}
    text = say(A=one, B=two).partition("Against")[2]
    assert "(1 seed)" in text and "0.2" in text and "not clearly" not in text
    assert "no training seed in common" in say(A=one, B={7: one[0]})


def test_a_wide_interval_over_seeds_silences_a_difference(say):
    assert "not clearly" not in say(A=model(2, 2, -90), B=model(3, 3, -91)).partition("Against")[2]
    reverse = model(3, 3, -91, seeds=5.0)
    wide = say(A=model(2, 2, -90, seeds=5.0), B={0: reverse[1], 1: reverse[0]}).partition("Against")[2]
    assert wide.count("not clearly") == 4 and "(2 seeds)" in wide


def test_models_are_compared_in_the_pairs_asked_for(say):
    names = dict.fromkeys("ABCD", model(2, 2))
    assert re.findall(r"Against \*(\w)\* \(1 seed\), \*(\w)\*", say(**names)) == [("A", "B"), ("A", "C"), ("A", "D")]
    assert re.findall(r"Against \*(\w)\* \(1 seed\), \*(\w)\*", say({"D": "C", "B": "Z"}, **names)) == [("C", "D")]


def test_parts_add_up_however_wide_their_intervals_are(say):
    wide = model(0.6, 2.6, half=20.0)
    said = re.search(r"loses (\S+) nats.*: (\S+) to the family, (\S+) to the encoder", say(A=wide)).groups()
    total, family, encoder = map(float, said)
    assert all("." in number for number in said) and total == pytest.approx(family + encoder, abs=0.11)


def test_a_negative_gap_has_no_share(say):
    assert "%" not in say(A=model(-0.1, 2.0))


def test_nothing_is_said_of_what_is_not_there(say):
    assert say() == tables.NOTHING
    assert wording.over_training({"standard": []}) == tables.NOTHING


def test_notes_name_their_checks_in_full():
    """Also those whose stars Markdown would take for italics."""
    ledger = pd.DataFrame({"claim": ["C9", "C9"], "check": ["L[q*] and L[q*_AF]", "b"], "caveat": ["Beware.", ""]})
    assert str(wording.notes(ledger)) == r"- **C9, L[q\*] and L[q\*_AF].** Beware."


def test_notebooks_show_words_as_markdown(capsys: pytest.CaptureFixture[str]):
    words = wording.Words("- **a**")
    assert words._repr_markdown_() == "- **a**"
    captions.with_caption(words, captions.Caption("no run"))
    assert "- **a**" in capsys.readouterr().out


def _published(experiment: str) -> list:
    wanted = ("laptop", "quick")
    return [r for r in runs.list_records() if r.experiment == experiment and r.info["profile"] in wanted]


def close(said: str, value: float, half: float) -> bool:
    """Whether a number in words is this one, rounded by less than its interval."""
    return abs(float(said) - value) <= half


@pytest.mark.parametrize("record", _published("gap_decomposition"), ids=lambda r: r.run_id)
def test_numbers_of_gaps_are_the_tables(record):
    found = Found()
    found["it"] = [record]
    table = tables.gap_table(found)["it"]
    text = str(wording.compared({"x": found})).partition("held-out")[0]
    said = re.search(r"loses (\S+) nats.*: (\S+) to the family, (\S+) to the encoder", text).groups()
    for number, gap in zip(said, ("inference gap", "approximation gap", "amortization gap"), strict=True):
        assert close(number, *table.loc[gap, ["mean", "images"]])


@pytest.mark.parametrize("record", _published("generalization"), ids=lambda r: r.run_id)
def test_numbers_over_training_are_the_tables(record):
    milestones = tables.milestones(record)
    points = str(wording.over_training({"it": [record]})).split("\n  - ")
    for split, text in zip(("train", "test"), points[1:], strict=False):
        part = milestones.loc[split].sort_index()
        for gap, cause in (("amortization", "encoder"), ("approximation", "family")):
            said = re.search(rf"the {cause} costs .*?from (\S+) to (\S+) nats", text).groups()
            for number, cell in zip(said, part[gap].iloc[[0, -1]], strict=True):
                assert close(number, *map(float, cell.split(" ± ")))
    epochs = [str(e) for e in part.index]
    assert f"from epoch {epochs[0]} to epoch {epochs[-1]}" in points[1]


def test_one_milestone_is_compared_with_nothing():
    stages = {7: pd.DataFrame({"mean": [1.0], "ci_low": [0.9], "ci_high": [1.1]}, index=["log_p"])}
    assert "one milestone, epoch 7" in wording._moved("training", stages)
