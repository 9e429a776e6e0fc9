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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaegap.errors import InputError
from vaegap.lab.errors import GridError

__all__ = ["Parameter", "ParameterError", "check", "check_values", "declared_in", "read_notebook"]

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
        return _matches(value, eval(self.type, {"__builtins__": {}}, dict(_TYPES)))


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
    except FileNotFoundError:
        raise GridError(f"{path}: there is no such notebook") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise GridError(f"{path}: is not a Jupyter notebook") from None
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            source = cell["source"]
            return declared_in(source if isinstance(source, str) else "".join(source))
    raise GridError(f"{path}: has no cell with the tag `parameters`; add one, `name: type = default  # help` a line")


def check_values(
    declared: Mapping[str, Parameter],
    given: Mapping[str, Any],
    what: str = "this notebook",
    choices: Mapping[str, Collection[Any]] | None = None,
) -> None:
    """Compare values with what is declared.

    Args:
        declared: as from `read_notebook`.
        given: the values, by name.
        what: what has these parameters, for the message.
        choices: for some names, the values that are allowed.

    Raises:
        ParameterError: an unknown name or a value of the wrong type; the message tells which and what is expected.
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
        allowed = (choices or {}).get(name, ())
        for item in value if isinstance(value, list | tuple) else [value]:
            if allowed and item is not None and item not in allowed:
                raise ParameterError(f"parameter {name!r} must be one of {', '.join(map(str, allowed))}, not {item!r}")


def check(namespace: Mapping[str, Any], **choices: Collection[Any]) -> None:
    """Refuse parameters that this notebook does not have, and values of the wrong type.

    To be called in the first code cell after the parameters, as `check(globals())`. It looks at the cells that the
    kernel has run: the last one that only declares variables, and what papermill put behind it.

    Args:
        namespace: the notebook's `globals()`.
        choices: for some parameters, the values that are allowed: `check(globals(), profile=("quick", "laptop"))`.

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
        names = [*injected, *(name for name in declared if name not in injected)]
        check_values(declared, {name: namespace[name] for name in names if name in namespace}, choices=choices)


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
