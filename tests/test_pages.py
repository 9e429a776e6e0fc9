"""The book's notebooks: which runs they ask for, what they show without records, and what they refuse."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import made_records
import matplotlib
import pandas as pd
import pytest
import yaml

from vaegap.lab import beside, captions, experiments, gathering, grid, latents, runs, tables, wording
from vaegap.lab.parameters import ParameterError

ROOT = Path(__file__).resolve().parents[1]
BOOK: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "workflow" / "book.yaml").read_text())
ROW = {"split": "train", "metric": "L_q", "value": -90.0, "unit": "nats"}
OWN = {"quickstart"}  # its run is smaller than the tables' are, and its own

matplotlib.use("Agg")


class Stop(Exception):
    """A notebook asked for a run that it cannot do without."""


def cells(name: str) -> list[str]:
    content = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def play(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Run a notebook's code in this process, with these parameters; returns its variables."""
    declared, *rest = cells(name)
    injected = "\n".join(["# Parameters", *(f"{key} = {value!r}" for key, value in values.items())])
    space: dict[str, Any] = {"In": [declared, injected]}
    for source in (declared, injected, *rest):
        exec(compile(source.replace(";\n", "\n"), name, "exec"), space)
    return space


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every run that is asked for is noted, and none is there."""
    wanted: list[str] = []
    identify = experiments.identify

    def noted(*arguments: Any, **options: Any) -> str:
        wanted.append(identify(*arguments, **options))
        return wanted[-1]

    def refuse(experiment: str, params: dict[str, Any], profile: str) -> None:
        noted(experiment, params, profile)
        raise Stop

    monkeypatch.setattr(experiments, "identify", noted)
    monkeypatch.setattr(experiments, "run", refuse)
    monkeypatch.setattr(runs, "find", lambda *_: None)
    monkeypatch.setattr(runs, "list_records", lambda *_: [])
    return wanted


def play_without_records(name: str, values: dict[str, Any]) -> None:
    try:
        play(name, values)
    except Stop:
        assert values.get("compute", True)


@pytest.mark.parametrize("name", BOOK)
def test_every_run_of_a_page_is_in_the_grid(name: str, asked: list[str]):
    play_without_records(name, BOOK[name])
    jobs = [job for size in ("laptop", "paper") for job in grid.load(ROOT / "workflow" / "grid.yaml", size)]
    made = {run for job in jobs for run in job.run_ids}
    assert asked or name == "claims"
    assert name in OWN or set(asked) <= made, sorted(set(asked) - made)


@pytest.mark.parametrize("name", [name for name, values in BOOK.items() if not values.get("compute", True)])
def test_a_page_without_records_says_so(name: str, asked: list[str], capsys: pytest.CaptureFixture[str]):
    play(name, BOOK[name])
    shown = capsys.readouterr().out
    assert "not there: " in shown
    assert re.search(r"no run yet +(no records|\.\.\.)", shown)  # in the table of verdicts; text leaves columns out
    assert "undecided" not in shown  # that would be a verdict


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("one_model", {"family": "gausian"}, ["family", "gausian", "full_gaussian"]),
        ("one_model", {"families": []}, ["families", "at least 1 item"]),
        ("one_model", {"activation": "gelu"}, ["activation", "gelu", "tanh"]),
        ("one_model", {"architecture": "vit"}, ["architecture", "vit", "conv"]),
        ("one_model", {"latent_dim": 0}, ["latent_dim", "at least 1"]),
        ("one_model", {"encoder": [200, -1]}, ["encoder", "at least 1"]),
        ("gaps", {"datasets": []}, ["datasets", "at least 1 item"]),
        ("gaps", {"datasets": ["omniglot"]}, ["datasets", "omniglot", "fashion-mnist"]),
        ("gaps", {"seeds": []}, ["seeds", "at least 1 item"]),
        ("gaps", {"seeds": [1, 1]}, ["seeds", "repetitions"]),
        ("larger_encoder", {"families": ["flow"]}, ["families", "flow", "aux_flow"]),
        ("entropy_annealing", {"families": []}, ["families", "at least 1 item"]),
        ("generalization", {"variants": ["largest"]}, ["variants", "largest", "larger decoder"]),
        ("generalization", {"variants": []}, ["variants", "at least 1 item"]),
        ("certificates", {"family": "spline"}, ["family", "spline", "aux_flow"]),
        ("quickstart", {"num_images": 0}, ["num_images", "at least 2"]),
        ("posterior_2d", {"drawn": [0, 9999999]}, ["drawn", "9999999", "at most 4499"]),
        ("posterior_2d", {"drawn": []}, ["drawn", "at least 1 item"]),
    ],
)
def test_wrong_parameters_are_named(name: str, values: dict[str, Any], words: list[str], asked: list[str]):
    with pytest.raises(ParameterError) as refusal:
        play(name, values)
    assert [word for word in words if word not in str(refusal.value)] == []
    assert asked == [], "before anything is computed"


@pytest.mark.parametrize("name", [name for name in BOOK if name not in ("claims", "quickstart", "posterior_2d")])
def test_one_data_set_can_be_asked_for(name: str, asked: list[str]):
    """As papermill gives it: `-p dataset fashion-mnist -p profile quick`, whether a page takes one or many."""
    with pytest.raises(Stop):
        play(name, {"dataset": "fashion-mnist", "profile": "quick"})
    assert asked


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notes_that_a_ledger_points_to_stand_under_it(path: Path):
    """A row says "note below"."""
    shown = sum("tables.ledger(" in cell for cell in cells(path.stem))
    assert sum("wording.notes(" in cell for cell in cells(path.stem)) >= min(shown, 1)


# ---- captions -------------------------------------------------------------------------------------------------------
@pytest.fixture
def record() -> runs.Record:
    """A published one."""
    return next(r for r in runs.list_records() if r.info["profile"] == "laptop" and r.experiment == "gap_decomposition")


def test_caption_of_one_run(record: runs.Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(captions.NOTEBOOK, "quickstart")
    made = record.info["provenance"]
    text, page = repr(tables.caption(record)), tables.caption(record)._repr_html_()
    for part in (record.run_id, made["commit"][:9], "laptop", made["processor"]):
        assert part in text and part in page
    assert f'href="../results/{record.run_id}/run.json"' in page
    assert 'href="../_sources/notebooks/quickstart.ipynb"' in page


def test_caption_of_several_runs_names_what_is_missing(record: runs.Record):
    found = gathering.Found()
    found["A"], found["B"] = [record, record], []
    found.missing = [("A", 4, "a-laptop-0123456789ab"), ("B", 0, "b-laptop-0123456789ab")]
    shown = tables.caption({"MNIST": found})
    assert shown.summary.startswith("from 2 runs · commit ")
    assert shown.summary.endswith("not there: MNIST, A, seed 4; MNIST, B, seed 0")
    assert shown._repr_html_().count("<a ") == 2
    assert "b-laptop-0123456789ab is not there" in shown._repr_html_()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., runs.Record]:
    """Writes decompositions where pages look for them."""
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path))
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path)
    return partial(made_records.record, tmp_path, 1.0, 2.0, heldout=5)


def test_a_run_on_fewer_images_stands_in_until_the_whole_one_is_there(made: Callable[..., runs.Record]):
    half = made(num_train=500, num_heldout=250, checked=20)
    others = {
        "fewer": {"num_train": 100, "num_heldout": 50},
        "fewer held out": {"num_train": 500, "num_heldout": 50},
        "another model": {"num_train": 600, "num_heldout": 250, "anneal": False},
        "more": {"num_train": 2000},
        "as many": {"checked": 20},
        "otherwise measured": {"num_train": 600, "num_heldout": 250, "certify": 50},
    }
    for params in others.values():
        made(**params)

    def ask(seeds: list[int]) -> gathering.Found:
        return gathering.collect({"A": {}}, "laptop", seeds, compute=False)

    found = ask([0])
    assert [r.run_id for r in found["A"]] == [half.run_id] and not found.missing
    wanted = experiments.identify("gap_decomposition", {}, "laptop")
    for shown in (tables.caption(found), tables.caption({"digits": found})):
        said = "500 of 1,000 training images and 250 of 500 held-out images"
        assert f"so far {said}: " in shown.summary
        assert f"{wanted} is not done, so far {said}" in shown._repr_html_(), "pages show it, and depend on that run"
    assert said in repr(beside.sources(beside.side_by_side(found, "digits")))
    assert [gone[:2] for gone in ask([0, 1]).missing] == [("A", 1)]
    whole = made()
    found = ask([0])
    assert [r.run_id for r in found["A"]] == [whole.run_id]
    assert "so far" not in repr(tables.caption({"digits": found}))


def test_fewer_images_of_both_kinds_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where one number says how many."""
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path))
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path)
    few, _ = (
        experiments.run("generalization", {"num_images": n}, "laptop", tmp_path, compute=lambda _: [ROW])
        for n in (500, 2000)
    )
    found = gathering.collect({"A": {}}, "laptop", compute=False, experiment="generalization")
    assert [r.run_id for r in found["A"]] == [few.run_id] and not found.missing
    assert "so far 500 of 1,000 images of each kind: A, seed 0" in repr(tables.caption(found))


def test_records_of_an_older_protocol_do_not_stand_in(made: Callable[..., runs.Record]):
    made(num_train=500)
    usual = experiments.get("gap_decomposition")
    try:
        experiments.register(replace(usual, version=usual.version + 1))
        assert not gathering.collect({"A": {}}, "laptop", compute=False)["A"]
    finally:
        experiments.register(usual)


def test_models_of_a_table_are_read_on_the_same_images(made: Callable[..., runs.Record]):
    """The first ones, as many as every record of them has."""
    whole, other = made(seed=0), made(seed=1, family="aux_flow")
    rows = other.rows[~other.rows["image"].isin([str(i) for i in range(15, 40)])]
    found = gathering.Found()
    found["A"], found["B"] = [whole], [replace(other, rows=rows)]
    table = tables.gap_table(found)
    means = {label: tables.headline_gaps(record).iloc[:15].mean() for label, record in (("A", whole), ("B", other))}
    for label, mean in means.items():
        for row in ("log_p", "inference", "approximation", "amortization"):
            assert table.loc[tables.ROWS[row], (label, "mean")] == pytest.approx(mean[row], abs=1e-9)
    shown = tables.show(table)
    assert not isinstance(shown, str) and list(shown.loc["images"]) == ["15", "15"]
    ours = beside.side_by_side(found, "digits")["ours"]
    assert float(ours["A", "inference gap"].partition(" ")[0]) == pytest.approx(means["A"]["inference"], abs=0.01)
    said = wording.compared({"digits": found}).partition("held-out")[0]
    assert f"*A* loses {means['A']['inference']:.1f}" in said
    assert list(tables.show(tables.gap_table({"A": [whole]})).loc["images"]) == ["40"]


def test_caption_escapes_what_it_shows():
    assert "<b>" not in captions.Caption("a <b>", (("<b>", "", "<b>"),))._repr_html_()


def test_tables_and_figures_stand_above_their_captions(record: runs.Record, capsys: pytest.CaptureFixture[str]):
    found = gathering.Found()
    found["A"] = [record]
    tables.with_caption(tables.show(tables.gap_table(found)), found)
    shown = capsys.readouterr().out
    assert "training runs" in shown and shown.index("approximation gap") < shown.index(record.run_id)
    figure = tables.gap_figure({"digits": found}, {"train": "training", "test": "held out"})
    pictures = captions._pictures(figure)
    assert pictures["image/svg+xml"].startswith("<?xml") and pictures["image/png"].startswith("iVBOR")


@pytest.mark.parametrize(
    "labels",
    [
        ["q_FFG, annealed", "q_FFG, not annealed", "q_AF, annealed", "q_AF, not annealed"],
        ["no hidden layer", "two layers", "four layers"],
    ],
)
def test_labels_under_bars_do_not_run_together(record: runs.Record, labels: list[str]):
    found = gathering.Found()
    found.update({label: [record] for label in labels})
    figure = tables.gap_figure({"digits": found, "clothes": found}, {"train": "training", "test": "held out"})
    assert not isinstance(figure, str)
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("width", [0.05, 0.2, -0.05, -0.2])
def test_wide_sandwiches_are_marked(record: runs.Record, width: float):
    """Also where the other training runs' are narrow, and where the bounds stand in the wrong order."""
    rows = record.rows.copy()
    rows.loc[rows["metric"] == "bdmc_width", "value"] = width
    shown = tables.show(tables.gap_table({"A": [record, replace(record, rows=rows), record]}))
    assert not isinstance(shown, str)
    assert "±\N{NO-BREAK SPACE}" in shown.loc["L[q]", "A"] and "± " not in shown.to_string()
    assert ("above" in shown.loc["BDMC width", "A"]) == (abs(width) > tables.WIDEST)
    assert ("above" in tables.width_cell(width, 0.01)) == (abs(width) > tables.WIDEST)


@pytest.mark.parametrize("metric", ["unfinished_ascents", "missed_modes"])
def test_images_in_doubt_are_counted_in_the_table(record: runs.Record, metric: str):
    row = tables.ROWS[metric]
    rows = record.rows.assign(value=record.rows["value"].where(record.rows["metric"] != metric, 0.0))
    finished = replace(record, rows=rows)
    assert row not in tables.show(tables.gap_table({"A": [finished]})).index
    assert row not in tables.levels(tables.headline(finished)).index
    more = rows[rows["metric"] == "active_units"].assign(metric=metric, value=3.0)
    flagged = replace(record, rows=pd.concat([rows, more]))
    assert tables.show(tables.gap_table({"A": [flagged]})).loc[row, "A"] == "3.0"
    assert list(tables.levels(tables.headline(flagged)).loc[row]) == ["3", ""]
    none = replace(record, rows=pd.concat([rows, more.assign(value=0.0)]))
    uncounted = replace(record, rows=rows[rows["metric"] != metric])
    both = tables.show(tables.gap_table({"A": [flagged, none], "B": [none], "C": [uncounted, uncounted]}))
    assert list(both.loc[row]) == ["1.5", "0.0", ""]


def test_levels_have_intervals_only_where_they_vary_over_images(record: runs.Record):
    shown = tables.levels(tables.headline(record))
    assert "nan" not in shown.to_string() and shown.loc["BDMC width", "95 % over images"] == ""
    low, high = shown.loc["inference gap", "95 % over images"].strip("[]").split(", ")
    assert float(low) < tables.headline(record).loc["inference", "mean"] < float(high)


def test_seeds_need_not_have_the_same_rows(record: runs.Record):
    """As when a family was added to the ascents between two runs, or something was counted from then on."""
    bare = replace(record, rows=record.rows[record.rows["metric"] != "L_star_gaussian"])
    table = tables.gap_table({"A": [record, record, bare], "B": [bare, record]})
    assert table.loc["L[q*_FFG]", ("A", "seeds")] == 0 and pd.isna(table.loc["L[q*_FFG]", ("B", "seeds")])
    assert table.loc["log p̂(x)", ("B", "seeds")] == 0


def test_the_gap_is_shared_out_among_active_units(record: runs.Record):
    found = gathering.Found()
    found["A"], found["B"] = [record, record], []
    shown = latents.shares(found)
    assert not isinstance(shown, str) and list(shown.index) == ["A"]
    units = int(record.value("active_units", split="train"))
    gap = float(tables.headline(record).loc["approximation", "mean"])
    number, _, error = shown.iloc[0, 1].split(" (")[0].partition(" ± ")
    assert shown.iloc[0, 0] == f"{units}, {units}"
    assert abs(float(number) * units - gap) <= units * float(error)
    counted = latents.active_units({"digits": found})
    assert not isinstance(counted, str) and list(counted.index) == [("digits", "A")]
    assert int(counted.iloc[0, 0]) == units


def test_nothing_to_draw():
    empty = gathering.Found()
    empty["A"] = []
    assert tables.gap_figure({"digits": empty}, {"train": "training"}) == "no records of this profile yet"
    assert tables.show(tables.gap_table(empty)) == "no records of this profile yet"
    assert latents.shares(empty) == latents.active_units({"digits": empty}) == "no records of this profile yet"
