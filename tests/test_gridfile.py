"""The grid file: its jobs, and what is refused in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from grid_lab import entry, write_grid

from vaegap.lab import experiments, grid
from vaegap.lab.errors import GridError


def test_combinations_profiles_and_dependencies(project: Path) -> None:
    path = write_grid(
        project,
        second=entry(depends=["first"], parameters={"seed": [0, 1], "steps": [2, 4]}),
        first=entry(
            parameters={"seed": [0, 1]},
            profiles={"quick": {"minutes": 1}, "laptop": {"parameters": {"seed": [0, 1, 2]}, "minutes": 9}},
        ),
    )
    jobs = grid.load(path, "quick")
    assert [(j.entry, j.parameters.get("seed"), j.parameters.get("steps")) for j in jobs] == [
        ("first", 0, None),
        ("first", 1, None),
        ("second", 0, 2),
        ("second", 0, 4),
        ("second", 1, 2),
        ("second", 1, 4),
    ]
    assert jobs[0].run_ids == (experiments.identify("toysteps", {"seed": 0}),)
    assert jobs[2].depends == (jobs[0].id,)
    assert jobs[5].depends == (jobs[1].id,)
    assert len({j.id for j in jobs}) == 6
    laptop = grid.load(path, "laptop")
    assert [j.parameters["seed"] for j in laptop] == [0, 1, 2]
    assert laptop[0].minutes == 9
    assert laptop[0].parameters["profile"] == "laptop"


@pytest.mark.parametrize(
    ("entries", "needed"),
    [
        ({"a": entry(notebook="notebooks/absent.ipynb")}, "entry 'a'.*no such notebook"),
        ({"a": entry(experiment="nosuch")}, "entry 'a'.*no experiment 'nosuch'"),
        ({"a": entry(parameters={"sede": 1})}, "entry 'a'.*no parameter 'sede'"),
        ({"a": entry(parameters={"seed": ["x"]})}, "entry 'a'.*'seed'.*must be int"),
        ({"a": entry(colour="red")}, "unknown keys colour"),
        ({"a": entry(profiles={"huge": {}})}, "profile must be one of"),
        ({"a": entry(profiles={"quick": {"hours": 1}})}, "unknown keys hours"),
        ({"a": entry(depends=["b"])}, "depends on 'b', which is not there"),
        ({"a": entry(depends=["b"]), "b": entry(depends=["a"])}, "in a circle: a -> b -> a"),
        ({"a": {"notebook": "n.ipynb"}}, "needs `notebook:` and `profiles:`"),
        ({"a": 3}, "must be a mapping"),
        ({"a/b": entry()}, "a/b.*letters, digits"),
        ({"..": entry()}, "begins with a letter or digit"),
        ({"a": entry(notebook=3)}, "needs `notebook:`.*a file"),
        ({"a": entry(profiles=["quick"])}, "needs `notebook:` and `profiles:`"),
        ({"a": entry(experiment=7)}, "experiment must be a list of names.*not 7"),
        ({"a": entry(depends=7)}, "depends must be a list of names.*not 7"),
        ({"a": entry(depends="xyz")}, "depends must be a list of names.*not 'xyz'"),
        ({"a": entry(parameters=["seed"])}, r"parameters must be a mapping.*not \['seed'\]"),
        ({"a": entry(parameters={"seed": []})}, "list of values of 'seed' is empty"),
        ({"a": entry(parameters={"seed": [1, 2, 1]})}, "'seed' has the same value twice"),
        ({"a": entry(profiles={"quick": {"minutes": "abc"}})}, "quick: minutes must be a number.*not 'abc'"),
        ({"a": entry(profiles={"quick": {"minutes": math.inf}})}, "quick: minutes must be a number.*not inf"),
        ({"a": entry(parameters={"profile": "laptop"})}, "entry 'a': the profile is no parameter here"),
        ({"a": entry(profiles={"quick": {"parameters": 3}})}, "quick: parameters must be a mapping"),
        ({"a": entry(profiles={"quick": 3})}, "quick must be a mapping"),
    ],
)
def test_wrong_grid_files(project: Path, entries: dict[str, Any], needed: str) -> None:
    with pytest.raises(GridError, match=f"(?s)grid.yaml.*{needed}"):
        grid.load(write_grid(project, **entries), "quick")


def test_unreadable_grid_files(project: Path) -> None:
    path = project / "workflow/grid.yaml"
    with pytest.raises(GridError, match="no such grid file"):
        grid.load(path, "quick")
    path.write_text("experiments: [")
    with pytest.raises(GridError, match="cannot be read"):
        grid.load(path, "quick")
    path.write_text("experiments: {}\nexperimets: {}")
    with pytest.raises(GridError, match="not also experimets"):
        grid.load(path, "quick")
    path.write_text("- a\n- b\n")
    with pytest.raises(GridError, match="one mapping"):
        grid.load(path, "quick")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("experiments:\n  a: {notebook: x.ipynb}\n  b: 1\n  a: 2\n", "'a' is there twice"),
        ("experiments:\n  a: {parameters: {seed: 1, seed: 2}}\n", "'seed' is there twice"),
        ("experiments: {a: {parameters: {seed: 2026-13-45}}}", "month must be in"),
        ("experiments: " + "[" * 3000, "nested too deeply"),
        ("experiments: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("\0", "special characters are not allowed"),
    ],
)
def test_what_yaml_would_overlook_or_stumble_over(tmp_path: Path, text: str, needed: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(GridError, match=f"(?s)grid.yaml: cannot be read: .*{needed}"):
        grid.load(path, "quick")


def test_an_anchor_may_be_merged_into_several_entries(project: Path) -> None:
    path = project / "workflow/grid.yaml"
    path.write_text(
        "experiments:\n"
        "  a: &base {notebook: notebooks/toy.ipynb, experiment: toysteps, profiles: {quick: null}}\n"
        "  b: {<<: *base, parameters: {seed: 1}}\n"
    )
    assert [job.label for job in grid.load(path, "quick")] == ["a", "b seed=1"]
