"""Figures and printed numbers: labels that do not lie on each other, and errors that are not printed as zero."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from vaegap import figures
from vaegap.describing import describe
from vaegap.rounding import decimals, plus_minus

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.text import Text
from matplotlib.transforms import Bbox

NAMES = ["log_p", "L_star_aux_flow", "L_star_full_gaussian", "L_star_flow", "L_star_gaussian", "L_q"]


def ladder(levels: list[float]) -> pd.DataFrame:
    rows = dict(zip(NAMES, levels, strict=True))
    rows["approximation_gaussian"] = rows["log_p"] - rows["L_star_gaussian"]
    rows["amortization_gaussian"] = rows["L_star_gaussian"] - rows["L_q"]
    return pd.DataFrame({k: {"mean": v, "ci_low": v - 0.1, "ci_high": v + 0.1} for k, v in rows.items()}).T


def _words(text: Text) -> Bbox:
    """The box of a text by its lines; those without words (they push others down) and an annotation's line left out."""
    box = Text.get_window_extent(text)
    lines = text.get_text().split("\n")
    empty = sum(not line for line in lines) / len(lines)
    words = Bbox.from_extents(box.x0, box.y0, box.x1, box.y1 - empty * box.height)
    return words.padded(-0.5)  # half a pixel of rounding


@pytest.mark.parametrize("width", [3.0, 5.2])
@pytest.mark.parametrize(
    "levels",
    [
        [-87.34, -87.51, -87.53, -88.0, -89.11, -96.67],
        [-87.34, -96.60, -96.61, -96.62, -96.63, -96.67],
        [-87.34, -87.35, -87.36, -87.37, -87.38, -96.67],
        [-1087.3, -1088.2, -1090.1, -1091.0, -1093.9, -1096.6],
    ],
    ids=["usual", "crowded below", "crowded above", "long numbers"],
)
def test_labels_of_a_ladder_do_not_overlap(levels: list[float], width: float):
    figures.use_style()
    figure, ax = plt.subplots(figsize=(width, 3.2), layout="constrained")
    figures.gap_ladder(ladder(levels), ax=ax)
    figure.canvas.draw()
    ticks = [t.label1 for t in ax.yaxis._update_ticks()]  # those within the axis' limits
    texts = [t for t in (*ax.texts, *ax.get_xticklabels(), *ticks, ax.yaxis.label) if t.get_text()]
    assert len(texts) > len(NAMES) + 4
    for a, b in combinations(texts, 2):
        first, second = (_words(t) for t in (a, b))
        assert not first.overlaps(second), (a.get_text(), b.get_text())
    order = sorted(ax.texts, key=lambda t: -t.get_position()[1])
    values = [float(t.get_text().rsplit("=", 1)[1]) for t in order]
    assert values == sorted(values, reverse=True)
    plt.close(figure)


def test_bars_are_told_with_their_lengths():
    drawn = figures.gap_bars({"a\nheld out": (1.0, 2.5), "b": (0.25, 3.0)}, {"b": (0.1, 0.2)})
    assert describe(drawn.figure) == (
        "a, held out: approximation 1.00, amortization 2.50; b: approximation 0.25, amortization 3.00."
    )
    plt.close("all")


def test_bands_are_told_from_their_first_epoch_to_the_last():
    drawn = figures.gap_bands([1, 9], [-90.0, -88.0], [-92.0, -89.0], [-95.0, -93.5])
    drawn.set_title("held out")
    assert describe(drawn.figure) == (
        "held out: log p̂(x) from -90.00 to -88.00; L[q*] from -92.00 to -89.00; L[q] from -95.00 to -93.50."
    )
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["approximation", "amortization"]
    plt.close("all")


def test_levels_are_told_with_their_gaps():
    told = describe(figures.gap_ladder(ladder([-87.0, -87.5, -88.0, -88.2, -89.0, -93.0])).figure)
    assert told.startswith("log p̂(x) = -87.00; L[q] = -93.00; L[q*_FFG] = -89.00;")
    assert "amortization, 4.00 nats, [3.90, 4.10]" in told
    plt.close("all")


def test_the_legend_of_bars_stands_above_them():
    figures.use_style()
    ax = figures.gap_bars({"a": (2.0, 4.0), "b": (2.0, 1.0)}, {"a": (0.1, 0.5), "b": (0.1, 0.1)})
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert not any(legend.overlaps(bar.get_window_extent()) for bar in ax.patches)
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((-87.26134, 0.0037), "-87.2613 ± 0.0037"),
        ((2.2986, 0.031), "2.299 ± 0.031"),
        ((2.2986, 0.0996), "2.30 ± 0.10"),
        ((37.47, 23.4), "37 ± 23"),
        ((1.5, 0.0), "1.50 ± 0.00"),
        ((1.5, float("nan")), "1.50"),
        ((-87.26134, 0.0037, 0.31), "-87.2613 ± 0.0037 (± 0.31)"),
        ((-87.26134, 0.0037, float("nan")), "-87.2613 ± 0.0037"),
    ],
)
def test_the_error_decides_the_decimals(numbers: tuple[float, ...], text: str):
    assert plus_minus(*numbers) == text


@pytest.mark.parametrize("error", [10.0**-k * m for k in range(5) for m in (1, 1.04, 5, 9.94, 9.96)])
def test_an_error_shows_two_digits(error: float):
    shown = f"{error:.{decimals(error)}f}"
    assert len(shown.replace(".", "").lstrip("0")) == 2
    assert float(shown) == pytest.approx(error, rel=0.05)


def test_the_audit_pages_figure_is_drawn_from_its_report(tmp_path: Path):
    book = Path(__file__).parents[1] / "book"
    for name in ("audit.txt", "audit.json"):
        shutil.copy(book / "figures" / name, tmp_path)
    script = book / "figures_src/audit.py"
    done = subprocess.run(
        [sys.executable, str(script), "--figure", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "audit.svg").stat().st_size > 10_000
