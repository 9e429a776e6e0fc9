"""What a longer training changes: known to as much as training runs differ, and which way it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import record
from scipy import stats

from vaegap.lab import longer
from vaegap.lab.records import Record

OTHERS = """
paper:
  name: the paper (unverified)
  source: a table
  status: transcription unverified
  rows: [log_p, L_q, approximation]
  columns:
    "MNIST, q_FFG": [-90.0, null, {published}]
"""


def made(folder: Path, gaps: list[float], first: int = 0, **params: float) -> list[Record]:
    return [record(folder, gap, 3.0, seed=first + k, **params) for k, gap in enumerate(gaps)]


@pytest.mark.parametrize(
    ("before", "after"), [([2.0, 2.3, 1.8, 2.1], [1.1]), ([2.0, 2.4], [1.0, 1.3]), ([2.0], [1.0, 2.0])]
)
def test_changes_are_known_as_well_as_runs_repeat(tmp_path: Path, before: list[float], after: list[float]) -> None:
    """Against the t-interval of another library."""
    short, long = made(tmp_path / "a", before, spread=0.0), made(tmp_path / "b", after, spread=0.0)
    one = longer.changes(short, long).loc["approximation"]
    assert one["short"] == pytest.approx(np.mean(before)) and one["long"] == pytest.approx(np.mean(after))
    freedom = len(before) + len(after) - 2
    pooled = sum(np.var(v, ddof=0) * len(v) for v in (before, after)) / freedom
    expected = stats.t.ppf(0.975, freedom) * np.sqrt(pooled * (1 / len(before) + 1 / len(after)))
    assert one["change"] == pytest.approx(np.mean(after) - np.mean(before))
    assert one["half"] == pytest.approx(expected, rel=2e-3)


def test_images_that_differ_widen_the_interval(tmp_path: Path) -> None:
    short, long = made(tmp_path / "a", [2.0, 2.0]), made(tmp_path / "b", [1.0], first=7, spread=5.0)
    table = longer.changes(short, long)
    assert table.loc["approximation", "half"] == pytest.approx(1.96 * 5.0 / np.sqrt(40), rel=0.5)
    for row in ("approximation", "amortization", "inference"):
        assert abs(table.loc[row, "change"] - (-1.0 if row != "amortization" else 0)) < 3 * table.loc[row, "half"]


@pytest.mark.parametrize(
    ("after", "published", "said"),
    [
        ([1.0], 0.5, "closer"),
        ([1.0], 2.5, "farther"),
        ([1.0], 1.2, "closer"),  # and past it
        ([2.05], 0.5, "not clear"),
        ([1.0], None, "down"),
        ([3.0], None, "up"),
    ],
)
def test_the_direction_is_read_from_the_records(
    tmp_path: Path, after: list[float], published: float | None, said: str
) -> None:
    (tmp_path / "published.yaml").write_text(OTHERS.format(published="null" if published is None else published))
    short, long = made(tmp_path / "a", [2.0, 2.1, 1.9]), made(tmp_path / "b", after)
    shown = longer.beside_the_print({"q_FFG": short, "q_AF": []}, {"q_FFG": long, "q_AF": []}, "MNIST", tmp_path)
    assert isinstance(shown, pd.DataFrame)
    row = shown.loc[("q_FFG", "approximation gap")]
    assert row["where to"] == said
    assert row["the paper (unverified)"] == ("–" if published is None else str(published))
    assert float(row["change"].partition(" ")[0]) == pytest.approx(after[0] - 2.0, abs=0.1)
    assert set(shown.index.get_level_values(0)) == {"q_FFG"}


def test_one_run_of_each_says_nothing_of_how_runs_differ(tmp_path: Path) -> None:
    shown = longer.beside_the_print({"q": made(tmp_path / "a", [2.0])}, {"q": made(tmp_path / "b", [1.0])}, "MNIST")
    assert isinstance(shown, pd.DataFrame)
    shown = shown.drop(index="BDMC width", level=1)
    assert set(shown["where to"]) == {"not known"} and not shown["change"].str.contains("±").any()


def test_log_p_of_either_schedule_comes_with_its_width(tmp_path: Path) -> None:
    short = [record(tmp_path / "a", 2.0, 3.0, seed=k, width=width) for k, width in enumerate((0.30, -0.20))]
    long = record(tmp_path / "b", 1.0, 3.0, width=0.02)
    long = replace(long, info={**long.info, "profile": "paper"})
    shown = longer.beside_the_print({"q": short}, {"q": [long]}, "MNIST")
    assert isinstance(shown, pd.DataFrame)
    widths = shown.xs("BDMC width", level=1).iloc[0]
    assert widths["laptop profile"] == "0.0500 ± 0.0071 (above 0.1)"  # the mean is thin, the sandwiches are not
    assert widths["paper profile"] == "0.020 ± 0.010" and widths["change"] == "–"


def test_without_longer_runs_there_is_a_sentence(tmp_path: Path) -> None:
    assert "no records" in longer.beside_the_print({"q_FFG": made(tmp_path, [2.0])}, {"q_FFG": []}, "MNIST")
