"""A notebook's parameters: declared in one cell, checked when they are given.

Papermill lets unknown names and wrong types pass. So the first code cell after the parameters says
`parameters.check(globals())`; what papermill put between the two is then compared with what was declared. `vaegap run`
and the grid make the same comparison before they start anything.

A parameters cell has one `name: type = default  # help` a line. Types: str, int, float, bool, list[...], dict[...]; a
parameter whose default is None takes None as well. (Papermill's own reader overlooks lines with `int | None`.)
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import os
import tokenize
import types
import typing
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaegap.errors import InputError
from vaegap.lab.errors import GridError

__all__ = [
    "Parameter",
    "ParameterError",
    "Rule",
    "check",
    "check_values",
    "declared_in",
    "read_notebook",
    "spelled_out",
]

_INJECTED = "# Parameters"  # how papermill begins the cell that it puts in
_TYPES: dict[str, Any] = {t.__name__: t for t in (str, int, float, bool, list, dict, tuple)} | {
    "Any": Any,
    "None": None,
}


class ParameterError(InputError):
    """A parameter that a notebook does not have, or a value that it cannot take."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook, the message alone: the frames above it say nothing more."""
        return [f"ParameterError: {self}"]


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell.

    Attributes:
        name: the variable.
        type: its annotation as written, or "" where there is none.
        default: the source text of its default.
        help: the comment behind it.
    """

    name: str
    type: str
    default: str
    help: str = ""

    @property
    def value(self) -> Any:
        """The default itself."""
        return ast.literal_eval(self.default)

    def accepts(self, value: Any) -> bool:
        """Whether the value is of the declared type."""
        if not self.type or (value is None and self.default == "None"):
            return True
        try:
            declared = eval(self.type, {"__builtins__": {}}, dict(_TYPES))
        except Exception:
            raise GridError(f"{self.name}: {self.type}: a parameter's type is one of {', '.join(_TYPES)}, or a list of "
                            "one of them") from None  # fmt: skip
        return _matches(value, declared)


@dataclass(frozen=True)
class Rule:
    """Which values of a parameter are allowed, beyond its type; of a list, which its items may be. None passes.

    Attributes:
        choices: the allowed values; any where it is empty.
        low, high: bounds of a number, both included.
        least: how many items a list has at least.
        distinct: whether each item of a list has to be another.

    Example:
        >>> check(globals(), seeds=Rule(low=0, least=1, distinct=True), variants=Rule(("standard", "flow"), least=1))
    """

    choices: Collection[Any] = ()
    low: float | None = None
    high: float | None = None
    least: int = 0
    distinct: bool = False

    def demand(self, value: Any) -> str:
        """What the value would have to be, and is not: "one of quick, laptop, paper"; "" if it is allowed."""
        is_list = isinstance(value, list | tuple)
        items = [item for item in value if item is not None] if is_list else [] if value is None else [value]
        if self.choices and any(item not in self.choices for item in items):
            return f"one of {', '.join(map(str, self.choices))}"
        if self.low is not None and any(item < self.low for item in items):
            return f"at least {self.low}"
        if self.high is not None and any(item > self.high for item in items):
            return f"at most {self.high}"
        if is_list and len(value) < self.least:
            return f"a list of at least {self.least} item{'s' if self.least > 1 else ''}"
        if is_list and self.distinct and any(item in items[:i] for i, item in enumerate(items)):
            return "a list without repetitions"
        return ""


def declared_in(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares.

    Example:
        >>> declared_in("seed: int = 0  # of the random numbers")
        {'seed': Parameter(name='seed', type='int', default='0', help='of the random numbers')}
    """
    comments = _comments(source)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, kind, default = node.target.id, ast.unparse(node.annotation), node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, kind, default = node.targets[0].id, "", node.value
        else:
            continue
        help_text = comments.get(node.end_lineno or 0, "")
        found[name] = Parameter(name, kind, ast.get_source_segment(source, default) or "", help_text)
    return found


def read_notebook(path: str | os.PathLike[str]) -> dict[str, Parameter]:
    """The parameters of a notebook file: those of the cell with the tag `parameters`.

    Raises:
        GridError: there is no such notebook, or it has no such cell.
    """
    path = Path(path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell["source"] for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    except FileNotFoundError:
        raise GridError(f"{path}: there is no such notebook") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise GridError(f"{path}: is not a Jupyter notebook") from None
    for source in tagged:
        try:
            return declared_in(source if isinstance(source, str) else "".join(source))
        except (SyntaxError, tokenize.TokenError) as error:
            raise GridError(f"{path}: its cell with the tag `parameters` is no Python: {error}") from None
    raise GridError(f"{path}: has no cell with the tag `parameters`; add one, `name: type = default  # help` a line")


def check_values(
    declared: Mapping[str, Parameter],
    given: Mapping[str, Any],
    what: str = "this notebook",
    rules: Mapping[str, Rule | Collection[Any]] | None = None,
) -> None:
    """Compare values with what is declared.

    Args:
        declared: as from `read_notebook`.
        given: the values, by name.
        what: what has these parameters, for the message.
        rules: for some names, what is allowed: a `Rule`, or the values (of a list: of its items) themselves.

    Raises:
        ParameterError: an unknown name, a value of the wrong type or one that is not allowed; the message tells which
            and what is expected.
    """
    for name, value in given.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(f"{p.name} ({p.type or 'any type'})" for p in declared.values())
            raise ParameterError(f"{what} has no parameter {name!r}; it has {known}.{hint}")
        if not declared[name].accepts(value):
            raise ParameterError(
                f"parameter {name!r} of {what} must be {declared[name].type}, such as {declared[name].default}, "
                f"not {value!r} ({type(value).__name__})"
            )
        rule = (rules or {}).get(name, ())
        demand = (rule if isinstance(rule, Rule) else Rule(rule)).demand(value)
        if demand:
            raise ParameterError(f"parameter {name!r} must be {demand}, not {value!r}")


def spelled_out(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a notebook declares them: a single item for a list of one, also under the singular of the list's name.

    So `-p dataset fashion-mnist` does what one expects of a notebook with a list of `datasets`.

    Args:
        declared: as from `read_notebook`.
        given: the values, by name.

    Raises:
        ParameterError: a list is given under both of its names.

    Example:
        >>> spelled_out(declared_in("datasets: list[str] = ['mnist']"), {"dataset": "cifar10"})
        {'datasets': ['cifar10']}
    """
    values: dict[str, Any] = {}
    for short, value in given.items():
        many = [name for name in (f"{short}s", f"{short.removesuffix('y')}ies") if name in declared]
        name = many[0] if short not in declared and many else short
        if name != short and name in given:
            raise ParameterError(f"{short!r} and {name!r} are the same parameter: give one of them")
        alone = name in declared and not declared[name].accepts(value) and declared[name].accepts([value])
        values[name] = [value] if alone else value
    return values


def check(namespace: MutableMapping[str, Any], **rules: Rule | Collection[Any]) -> None:
    """Refuse parameters that this notebook does not have, values of the wrong type, and those that are not allowed.

    A single item for a list, and the singular of a list's name, are taken as such (`spelled_out`).

    To be called in the first code cell after the parameters, as `check(globals())`. It looks at the cells that the
    kernel has run: the last one that only declares variables, and what papermill put behind it.

    Args:
        namespace: the notebook's `globals()`; a list that was given as a single item is put in as a list.
        rules: for some parameters, the values that are allowed: `check(globals(), profile=("quick", "laptop"))`, for
            lists and numbers also a `Rule`: `seeds=Rule(low=0, least=1)`.

    Raises:
        ParameterError: the message names the parameter, what was given and what is expected.
    """
    cells: Sequence[str] = namespace.get("In", [])
    declared: dict[str, Parameter] = {}
    injected: set[str] = set()
    for source in cells:
        if _only_declares(source):
            declared, injected = declared_in(source), set()
        elif source.lstrip().startswith(_INJECTED):
            injected |= set(declared_in(source))
    if declared:
        given = spelled_out(declared, {name: namespace[name] for name in injected if name in namespace})
        usual = {name: namespace[name] for name in declared if name in namespace and name not in given}
        check_values(declared, {**given, **usual}, rules=rules)
        namespace.update(given)


def _only_declares(source: str) -> bool:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return False
    return bool(body) and all(isinstance(node, ast.AnnAssign) and node.value is not None for node in body)


def _comments(source: str) -> dict[int, str]:
    """Line number -> text of its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _matches(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is types.UnionType or origin is typing.Union:
        return any(_matches(value, option) for option in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(k, arguments[0]) and _matches(v, arguments[1]) for k, v in value.items()
        )
    if origin in (list, tuple):  # a tuple comes out of YAML and the command line as a list
        kinds = arguments if origin is tuple and arguments[-1] is not ... else [arguments[0]] * _length(value)
        return (
            isinstance(value, list | tuple)
            and len(kinds) == len(value)
            and all(_matches(item, item_kind) for item, item_kind in zip(value, kinds, strict=True))
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, list | tuple)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else 0
