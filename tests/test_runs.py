"""Runs: their names, and load-or-compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_runs import CALLS, TOY, compute

from vaegap.errors import InputError
from vaegap.lab import experiments, records, runs, sources
from vaegap.lab.experiments import Context, run

pytestmark = pytest.mark.usefixtures("fresh_calls")


def test_names_depend_on_what_is_computed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base = experiments.identify(TOY)
    assert base == experiments.identify(TOY, {"seed": 0, "hidden": (2,)}) == experiments.identify(TOY, {"seed": None})
    assert base == experiments.identify(TOY, {"seed": np.int64(0)})
    different = [
        experiments.identify(TOY, {"seed": 1}),
        experiments.identify(TOY, {"hidden": [3]}),
        experiments.identify(TOY, profile="laptop"),
        experiments.identify(TOY, {"dataset": "mnist"}),
        experiments.identify(replace(TOY, version=2)),
        experiments.identify(replace(TOY, name="other")),
    ]
    monkeypatch.setitem(sources.SOURCES, "mnist-5k", replace(sources.SOURCES["mnist-5k"], threshold=99))
    different.append(experiments.identify(TOY))
    assert len({base, *different}) == 8
    assert experiments.identify(TOY, {"rate": 1}) == experiments.identify(TOY, {"rate": 1.0})


@pytest.mark.parametrize(
    ("params", "profile", "needed"),
    [
        ({"sed": 1}, "quick", "no parameter 'sed'; it has dataset, seed"),
        ({"seed": "1"}, "quick", "seed must be int"),
        ({"seed": True}, "quick", "seed must be int"),
        ({}, "huge", "one of quick, laptop, paper"),
        ({"dataset": "mnits"}, "quick", "no data set 'mnits'"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], profile: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=needed):
        run(TOY, params, profile, tmp_path)
    with pytest.raises(InputError, match="no experiment 'nosuch'"):
        run("nosuch", results=tmp_path)


def test_computes_once_then_loads(tmp_path: Path) -> None:
    first = run(TOY, {"seed": 4}, results=tmp_path)
    again = run(TOY, {"seed": 4}, results=tmp_path)
    assert len(CALLS) == 1
    pd.testing.assert_frame_equal(first.rows, again.rows)
    assert first.value("elbo") == 4.5
    assert first.value("elbo", image="2") == 6.5
    assert list(first.rows.columns) == list(records.COLUMNS)
    assert set(first.rows["seed"]) == {4}
    assert first.artifact("weights.bin").read_bytes() == b"weights"
    assert not list((tmp_path / "_work").glob("toy*")), "scratch folder is tidied away"
    info = json.loads((first.folder / "run.json").read_text())
    for name in ("commit", "dirty", "versions", "device", "threads", "dtype", "peak_memory_mb"):
        assert name in info["provenance"]
    assert {"science", "start", "wall_seconds", "schema_version", "params"} <= set(info)
    assert "vaegap.bounds" in info["science"]
    assert first.run_id in first.caption()
    run(TOY, {"seed": 5}, results=tmp_path)
    assert len(CALLS) == 2


def test_a_crash_of_the_computation_is_noted_and_can_be_repeated(tmp_path: Path) -> None:
    def breaks(ctx: Context) -> list[dict[str, Any]]:
        ctx.checkpoint().write_bytes(b"half-way")
        raise ZeroDivisionError("by zero")

    name = experiments.identify(TOY)
    assert runs.state(name, tmp_path) == "missing"
    with pytest.raises(ZeroDivisionError):
        run(TOY, results=tmp_path, compute=breaks)
    assert runs.state(name, tmp_path) == "failed"
    seen: list[bool] = []

    def resumes(ctx: Context) -> list[dict[str, Any]]:
        seen.extend([ctx.resumed, ctx.checkpoint().read_bytes() == b"half-way"])
        return compute(ctx)

    record = run(TOY, results=tmp_path, compute=resumes)
    assert seen == [True, True]
    assert record.info["attempts"] == 2
    assert runs.state(name, tmp_path) == "done"


def test_half_written_file_of_a_killed_attempt_is_not_kept(tmp_path: Path) -> None:
    def leaves(ctx: Context) -> list[dict[str, Any]]:
        ctx.artifact(".weights.bin.123.tmp").write_bytes(b"half")
        return compute(ctx)

    assert list(run(TOY, results=tmp_path, compute=leaves).info["artifacts"]) == ["weights.bin"]


def test_published_records_are_found_beside_own_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "project" / "results"
    name = run(TOY, results=published).run_id
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path / "project")
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path / "own"))
    assert run(TOY).folder == published / name
    assert run(TOY, {"seed": 9}).folder.parent == tmp_path / "own"
    assert len(runs.list_records()) == 2
    assert len(CALLS) == 2


@pytest.mark.parametrize("text", ["[]", '{"seconds": 3', '{"seconds": "x", "attempts": 4}'])
@pytest.mark.parametrize("profile", ["quick", "laptop"])
def test_damaged_notes_of_an_attempt_do_not_stop_the_next(text: str, profile: str, tmp_path: Path) -> None:
    def breaks(ctx: Context) -> list[dict[str, Any]]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(TOY, profile=profile, results=tmp_path, compute=breaks)
    (note,) = tmp_path.glob("_work/toy*/session.json")
    note.write_text(text)
    record = run(TOY, profile=profile, results=tmp_path)
    assert record.stale == (profile == "laptop"), "it may hold what unknown code computed"
