"""Our numbers beside those of others: each stands where it belongs, and what is missing says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from made_records import record

from vaegap.lab import beside, tables
from vaegap.lab.files import find_root

STORED = yaml.safe_load((find_root() / "published.yaml").read_text(encoding="utf-8"))
OTHERS = """
somebody:
  name: somebody (unverified)
  source: a table
  status: transcription unverified
  rows: [log_p, L_star_gaussian, approximation]
  columns:
    "MNIST, q_FFG": [-90.0, null, 1.5]
"""


@pytest.mark.parametrize("changed", ["", ", 200-200", ", annealed"])
def test_others_stand_beside_ours(tmp_path: Path, changed: str) -> None:
    (tmp_path / "published.yaml").write_text(OTHERS)
    made = [record(tmp_path / "results", 2.0, 3.0, seed=seed) for seed in (0, 1)]
    label = f"q_FFG{changed}"
    table = beside.side_by_side({label: made, "q_AF": []}, "MNIST", root=tmp_path)
    assert list(table.index) == [
        (label, "somebody (unverified)"),
        (label, "ours"),
        (label, "error of ours"),
        ("q_AF", "ours"),
    ], "nothing is stored of q_AF"
    theirs, ours, error = (table.loc[(label, who)] for who in ("somebody (unverified)", "ours", "error of ours"))
    assert list(theirs) == ["-90.00", "–", "–", "–", "1.50", "–", "–"]
    summary = tables.gap_table({"it": made})["it"]
    for row in ("log p̂(x)", "L[q]", "approximation gap", "amortization gap"):
        assert float(ours[row]) == pytest.approx(summary.loc[row, "mean"], abs=0.006)
    gap = summary.loc["approximation gap"]
    assert float(error["approximation gap"].removeprefix("± ")) == pytest.approx(
        max(gap["images"], gap["seeds"]), rel=0.1
    )
    assert float(error["L[q]"].removeprefix("± ")) == pytest.approx(summary.loc["L[q]", "mcse"], rel=0.1)
    assert set(table.loc[("q_AF", "ours")]) == {"no run yet"}
    assert "transcription unverified" in repr(beside.sources(tmp_path))


@pytest.mark.parametrize("who", STORED)
def test_what_is_stored_can_be_shown(who: str) -> None:
    content = STORED[who]
    assert {"name", "source", "status", "rows", "columns"} == set(content)
    assert set(content["rows"]) <= set(tables.ROWS)
    for model, values in content["columns"].items():
        assert len(values) == len(content["rows"]), model
        assert model.split(", ")[0] in tables.DATASETS.values(), model


def test_unverified_numbers_say_so_in_every_row() -> None:
    for content in STORED.values():
        assert ("unverified" in content["status"]) == ("unverified" in content["name"])


def test_stored_gaps_are_differences_of_stored_bounds() -> None:
    """A slip of the pen in our copy would break the identities of the print."""
    for model, values in STORED["paper"]["columns"].items():
        row = dict(zip(STORED["paper"]["rows"], values, strict=True))
        own = "aux_flow" if "q_AF" in model else "gaussian"
        assert row["approximation"] == pytest.approx(row["log_p"] - row[f"L_star_{own}"], abs=0.021), model
        assert row["amortization"] == pytest.approx(row[f"L_star_{own}"] - row["L_q"], abs=0.021), model
        assert row["inference"] == pytest.approx(row["log_p"] - row["L_q"], abs=0.021), model
