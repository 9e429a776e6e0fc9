"""Findings in words follow the records: their numbers are the tables', and their comparisons turn with the numbers."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest

from vaegap.lab import captions, runs, tables, wording
from vaegap.lab.gathering import Found

ROWS = ["log p̂(x)", "approximation gap", "amortization gap", "inference gap"]
IMAGES = {"train": "training"}


def model(family: float, encoder: float, log_p: float = -90.0, half: float = 0.1, seeds: float = math.nan):
    values = [log_p, family, encoder, family + encoder]
    return pd.DataFrame({"mean": values, "mcse": half / 2, "images": half, "seeds": seeds, "runs": 1}, index=ROWS)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch):
    """Words about models that are given as tables."""

    def speak(against: dict[str, str] | None = None, **models: pd.DataFrame) -> str:
        monkeypatch.setattr(wording, "gap_table", lambda *_: pd.concat(models, axis=1) if models else pd.DataFrame())
        return str(wording.compared({"digits": Found()}, IMAGES, against))

    return speak


@pytest.mark.parametrize(
    ("family", "encoder", "verdict"),
    [(3.0, 1.0, "more to the family"), (1.0, 3.0, "more to the encoder"), (2.0, 2.15, "about as much to either")],
)
def test_the_larger_cause_is_named_only_beyond_the_intervals(say, family: float, encoder: float, verdict: str):
    text = say(A=model(family, encoder))
    assert verdict in text
    assert f"({encoder / (family + encoder):.0%} of it)" in text


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize(("change", "word"), [(1.0, "1.00 ± 0.14 higher"), (-1.0, "1.00 ± 0.14 lower"), (0.1, "not")])
def test_differences_have_a_direction_only_beyond_their_error(say, row: int, change: float, word: str):
    values = {"family": 2.0, "encoder": 2.0, "log_p": -90.0}
    moved = dict(values)
    moved[["log_p", "family", "encoder"][row]] += change
    text = say(A=model(**values), B=model(**moved)).partition("Against *A*, *B*: ")[2]
    parts = re.split(r", (?:and )?", text.rstrip("."))
    assert word in parts[[2, 0, 1][row]]
    assert sum("does not differ" in part for part in parts) == (3 if word == "not" else 2)


def test_a_wide_interval_over_seeds_silences_a_difference(say):
    assert "does not differ" not in say(A=model(2, 2, -90), B=model(3, 3, -91)).partition("Against")[2]
    wide = say(A=model(2, 2, -90, seeds=5.0), B=model(3, 3, -91, seeds=5.0)).partition("Against")[2]
    assert wide.count("does not differ") == 3


def test_models_are_compared_in_the_pairs_asked_for(say):
    names = dict.fromkeys("ABCD", model(2, 2))
    assert re.findall(r"Against \*(\w)\*, \*(\w)\*", say(**names)) == [("A", "B"), ("A", "C"), ("A", "D")]
    assert re.findall(r"Against \*(\w)\*, \*(\w)\*", say({"D": "C", "B": "Z"}, **names)) == [("C", "D")]


def test_a_negative_gap_has_no_share(say):
    assert "of it" not in say(A=model(-0.1, 2.0))


def test_nothing_is_said_of_what_is_not_there(say):
    assert say() == tables.NOTHING
    assert wording.over_training({"standard": []}) == tables.NOTHING


def test_notebooks_show_words_as_markdown(capsys: pytest.CaptureFixture[str]):
    words = wording.Words("- **a**")
    assert words._repr_markdown_() == "- **a**"
    captions.with_caption(words, captions.Caption("no run"))
    assert "- **a**" in capsys.readouterr().out


def _published(experiment: str) -> list:
    wanted = ("laptop", "quick")
    return [r for r in runs.list_records() if r.experiment == experiment and r.info["profile"] in wanted]


@pytest.mark.parametrize("record", _published("gap_decomposition"), ids=lambda r: r.run_id)
def test_numbers_of_gaps_are_the_tables(record):
    found = Found()
    found["it"] = [record]
    shown = tables.show(tables.gap_table(found))
    text = wording.compared({"x": found}, IMAGES)
    for gap in ("approximation gap", "amortization gap", "inference gap"):
        assert shown.loc[gap, "it"] in text


@pytest.mark.parametrize("record", _published("generalization"), ids=lambda r: r.run_id)
def test_numbers_over_training_are_the_tables(record):
    milestones = tables.milestones(record)
    text = wording.over_training({"it": [record]})
    for split in ("train", "test"):
        part = milestones.loc[split]
        for gap in ("approximation", "amortization"):
            assert f"from {part[gap].iloc[0]} to {part[gap].iloc[-1]} nats" in text
