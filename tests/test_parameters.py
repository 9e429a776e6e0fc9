"""Parameters of notebooks: unknown names and wrong types are refused, by papermill's own command line too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from notebook_lab import CELL, notebook

from vaegap.lab import parameters
from vaegap.lab.errors import GridError
from vaegap.lab.parameters import (
    ParameterError,
    Rule,
    check,
    check_values,
    declared_in,
    read_notebook,
    spelled_out,
)

ROOT = Path(__file__).parents[1]


def test_declared_parameters_agree_with_papermill(tmp_path: Path) -> None:
    papermill = pytest.importorskip("papermill")
    path = notebook(tmp_path / "n.ipynb")
    ours, theirs = read_notebook(path), papermill.inspect_notebook(str(path))
    assert list(ours) == list(theirs)
    for name, one in ours.items():
        other = theirs[name]
        assert (one.type, one.default, one.help) == (other["inferred_type_name"], other["default"], other["help"])
    assert ours["hidden"].value == [200, 200]


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"sede": 1}, "no parameter 'sede'.*seed.*Did you mean 'seed'"),
        ({"seed": "abc"}, "'seed' of this notebook must be int, such as 0, not 'abc'"),
        ({"seed": True}, "must be int"),
        ({"seed": None}, "must be int"),
        ({"rate": "fast"}, "must be float"),
        ({"flag": 1}, "must be bool"),
        ({"hidden": 200}, r"must be list\[int\]"),
        ({"hidden": [200, "x"]}, r"must be list\[int\]"),
        ({"epochs": "many"}, "must be int"),
        ({"profile": "huge"}, "must be one of quick, laptop, paper"),
    ],
)
def test_refused(given: dict[str, Any], needed: str) -> None:
    with pytest.raises(ParameterError, match=needed):
        check_values(declared_in(CELL), given, rules={"profile": ("quick", "laptop", "paper")})


LISTS = "seeds: list[int] = [0]\nvariants: list[str] = ['flow']\nwidth: int = 4\nnumber: int = None"
RULES = {
    "seeds": Rule(low=0, high=9, least=1, distinct=True),
    "variants": Rule(("standard", "flow"), least=1),
    "width": Rule(low=1),
    "number": Rule(low=1),
}


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"seeds": []}, r"'seeds' must be a list of at least 1 item, not \[\]"),
        ({"seeds": [0, -1]}, r"'seeds' must be at least 0, not \[0, -1\]"),
        ({"seeds": [10]}, "at most 9"),
        ({"seeds": [1, 2, 1]}, "without repetitions"),
        ({"variants": ["standard", "flwo"]}, "'variants' must be one of standard, flow, not"),
        ({"variants": []}, "at least 1 item"),
        ({"width": 0}, "'width' must be at least 1, not 0"),
        ({"number": 0}, "'number' must be at least 1"),
    ],
)
def test_rules(given: dict[str, Any], needed: str) -> None:
    with pytest.raises(ParameterError, match=needed):
        check_values(declared_in(LISTS), given, rules=RULES)
    with pytest.raises(ParameterError, match=needed):
        ((name, value),) = given.items()
        check({"In": [LISTS, f"# Parameters\n{name} = {value!r}"], **given}, **RULES)


def test_rules_allow_what_they_should() -> None:
    allowed = {"seeds": [3, 0], "variants": ["flow", "flow"], "width": 1, "number": None}
    check_values(declared_in(LISTS), allowed, rules=RULES)


def test_accepted() -> None:
    given = {"seed": 3, "rate": 1, "flag": True, "hidden": [], "epochs": None, "profile": "laptop"}
    check_values(declared_in(CELL), given, rules={"profile": ("quick", "laptop", "paper")})
    check_values(declared_in("a: dict[str, int] = {}\nb: tuple[int, str] = (1, 'x')"), {"a": {"x": 1}, "b": [1, "y"]})


@pytest.mark.parametrize(
    ("injected", "bad"), [({"seed": 1}, False), ({"nosuch": 1}, True), ({"seed": "x"}, True), ({}, False)]
)
def test_check_in_a_kernel(injected: dict[str, Any], bad: bool) -> None:
    cells = ["", "import os", CELL]
    namespace: dict[str, Any] = {"other": 3, **{name: p.value for name, p in declared_in(CELL).items()}}
    if injected:
        cells.append("# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in injected.items()))
    namespace |= injected | {"In": [*cells, "check(globals())"]}
    if bad:
        with pytest.raises(ParameterError):
            check(namespace)
    else:
        check(namespace)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"variant": "flow"}, {"variants": ["flow"]}),
        ({"variants": "flow"}, {"variants": ["flow"]}),
        ({"seed": 3}, {"seeds": [3]}),
        ({"seed": [3, 4]}, {"seeds": [3, 4]}),
        ({"family": "flow"}, {"families": ["flow"]}),
        ({"width": 5}, {"width": 5}),
        ({}, {}),
    ],
)
def test_one_of_many_is_a_list_of_one(given: dict[str, Any], meant: dict[str, Any]) -> None:
    cell = f"{LISTS}\nfamilies: list[str] = ['gaussian']"
    usual = {name: p.value for name, p in declared_in(cell).items()}
    space = usual | given | {"In": [cell, "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items())]}
    check(space, **RULES)
    assert {name: space[name] for name in usual} == usual | meant
    assert spelled_out(declared_in(cell), given) == meant


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"variant": "flwo"}, "'variants' must be one of standard, flow"),
        ({"seed": "x"}, r"'seeds' of this notebook must be list\[int\]"),
        ({"seed": 1, "seeds": [2]}, "the same parameter"),
        ({"widths": 3}, "no parameter 'widths'.*Did you mean 'width'"),
    ],
)
def test_one_of_many_is_checked_like_many(given: dict[str, Any], needed: str) -> None:
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    with pytest.raises(ParameterError, match=needed):
        check({"In": [LISTS, injected], **given}, **RULES)


def test_check_outside_a_notebook_does_nothing() -> None:
    check({"seed": "abc"})


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["-p", "nosuch", "1"], "this notebook has no parameter 'nosuch'"),
        (["-p", "seed", "abc"], "parameter 'seed' of this notebook must be int"),
    ],
)
def test_papermill_itself_is_made_to_refuse(tmp_path: Path, arguments: list[str], needed: str) -> None:
    pytest.importorskip("papermill")
    path = notebook(
        tmp_path / "n.ipynb",
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from vaegap.lab import parameters\nparameters.check(globals())",
        "print('went on')",
    )
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb"), "-k", "python3", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert needed in done.stderr
    assert "check_values" not in done.stderr  # no frames of ours: the message is enough
    assert "went on" not in (tmp_path / "out.ipynb").read_text().replace("print('went on')", "")


def test_unreadable_notebooks(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="no such notebook"):
        read_notebook(tmp_path / "absent.ipynb")
    (tmp_path / "text.ipynb").write_text("hello")
    with pytest.raises(GridError, match="not a Jupyter notebook"):
        read_notebook(tmp_path / "text.ipynb")
    for text in ('{"cells": 5}', "[1]", '{"cells": [1]}', '{"cells": [{"metadata": {"tags": ["parameters"]}}]}'):
        (tmp_path / "odd.ipynb").write_text(text)
        with pytest.raises(GridError, match="not a Jupyter notebook"):
            read_notebook(tmp_path / "odd.ipynb")
    cell = {"metadata": {"tags": ["parameters"]}, "source": ["p: int = ("]}
    (tmp_path / "odd.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(GridError, match="is no Python"):
        read_notebook(tmp_path / "odd.ipynb")
    with pytest.raises(GridError, match="p: Path: a parameter's type is one of str, int"):
        parameters.declared_in("p: Path = 3")["p"].accepts(3)
    (tmp_path / "bare.ipynb").write_text('{"cells": []}')
    with pytest.raises(GridError, match="no cell with the tag"):
        read_notebook(tmp_path / "bare.ipynb")
    assert parameters.ParameterError("x")._render_traceback_() == ["ParameterError: x"]
