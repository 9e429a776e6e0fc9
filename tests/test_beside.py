"""Our numbers beside those of others: each stands where it belongs, and what is missing says so."""

from __future__ import annotations

import json
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
    "MNIST, q_FFG": [-90.0, null, 1.50]
"""


@pytest.mark.parametrize("changed", ["", ", 200-200", ", annealed"])
def test_others_stand_beside_ours(tmp_path: Path, changed: str) -> None:
    (tmp_path / "published.yaml").write_text(OTHERS)
    made = [record(tmp_path / "results", 2.0, 3.0, seed=seed) for seed in (0, 1)]
    label = f"q_FFG{changed}"
    table = beside.side_by_side({label: made, "q_AF": []}, "MNIST", root=tmp_path)
    assert list(table.columns) == ["somebody (unverified)", "ours"]
    theirs, ours = table["somebody (unverified)"], table["ours"].str.partition(" ±\N{NO-BREAK SPACE}")
    assert theirs[label, "log p̂(x)"] == "-90.0" and theirs[label, "approximation gap"] == "1.50", "digits as printed"
    assert (theirs != "–").sum() == 2 and (theirs["q_AF"] == "–").all()
    summary = tables.gap_table({"it": made})["it"]
    for row in ("log p̂(x)", "L[q]", "approximation gap", "amortization gap"):
        one = summary.loc[row]
        own = one["images"] if "gap" in row else 1.96 * one["mcse"]
        half = max(own, one["seeds"])
        assert float(ours.loc[(label, row), 0]) == pytest.approx(one["mean"], abs=half)
        assert float(ours.loc[(label, row), 2]) == pytest.approx(half, rel=0.1)
    assert set(table["ours"]["q_AF"]) == {"no run yet"}
    assert "transcription unverified" in repr(beside.sources(table, tmp_path))
    alone = beside.side_by_side({label: made}, "5,000 digits", root=tmp_path)
    assert list(alone.columns) == ["ours"] and "nobody" in repr(beside.sources(alone, tmp_path))


@pytest.mark.parametrize("who", STORED)
def test_what_is_stored_can_be_shown(who: str) -> None:
    content = STORED[who]
    assert {"name", "source", "status", "rows", "columns"} == set(content) - {"split"}
    split = content.get("split", "train")
    assert split in ("train", "test") and set(content["rows"]) <= set(beside._ROWS)
    for key, values in content["columns"].items():
        assert len(values) == len(content["rows"]), key
        title, _, label = key.partition(", ")
        assert title in tables.DATASETS.values(), key
        table = beside.side_by_side({label: []}, title, split)
        shown = table[content["name"]]
        assert (shown != "–").sum() == sum(value is not None for value in values), "all of it"
        assert content["source"].split(",")[0] in repr(beside.sources(table))


def test_held_out_images_stand_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And only where others have numbers of theirs."""
    made = record(tmp_path, 2.0, 3.0, heldout=30)
    beside.show({"MNIST": {"q_FFG": [made]}})
    shown = capsys.readouterr().out
    assert shown.index("MNIST, training images, nats") < shown.index("MNIST, held-out images, nats")
    for split in ("train", "test"):
        ours = beside.side_by_side({"q_FFG": [made]}, "MNIST", split)["ours"]["q_FFG", "inference gap"]
        assert float(ours.split(" ")[0]) == pytest.approx(
            tables.headline(made, split).loc["inference", "mean"], abs=0.1
        )
    beside.show({"5,000 digits": {"q_FFG": [made]}})
    assert "held-out" not in capsys.readouterr().out


def test_models_are_stored_under_the_names_that_pages_use() -> None:
    labels = {key.partition(", ")[2] for content in STORED.values() for key in content["columns"]}
    pages = "".join(
        "".join(cell["source"])
        for page in (find_root() / "notebooks").glob("*.ipynb")
        for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    )
    for part in {part for label in labels for part in label.split(", ")}:
        assert f'"{part}"' in pages or f', {part}"' in pages, part


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
