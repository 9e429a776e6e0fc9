"""What lies behind somebody's function: the torch modules that it uses, and the line of code where it failed."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections import deque
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["line_of", "modules_behind"]

_MOST_THINGS = 10_000  # looked at behind one function; a model is near the front
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy"}
_PLAIN = (str, bytes, int, float, complex, type(None), type, Tensor, np.ndarray, np.generic, torch.dtype, torch.device)


def modules_behind(function: Any) -> list[nn.Module]:
    """Modules that a callable uses: itself, its object, its closure, its partial arguments, globals that it names.

    Lists, dicts and the attributes of plain objects among these are followed too.

    Example:
        >>> nets = {"decoder": nn.Linear(2, 2)}
        >>> modules_behind(lambda z: nets["decoder"](z)) == [nets["decoder"]]
        True
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    todo: deque[Any] = deque([function])
    while todo and len(seen) < _MOST_THINGS:
        item = todo.popleft()
        if id(item) in seen or isinstance(item, _PLAIN):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        else:
            todo.extend(_inside(item))
    return found


def _inside(item: Any) -> list[Any]:
    """What an object leads to."""
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if inspect.ismethod(item):
        return [item.__self__, item.__func__]
    if inspect.isfunction(item):
        return _reached(item)
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset | deque):
        return list(item)
    if _is_library(type(item).__module__) and not isinstance(item, SimpleNamespace):
        return []
    call = vars(type(item)).get("__call__")
    return [*getattr(item, "__dict__", {}).values(), *([call] if inspect.isfunction(call) else [])]


def _reached(function: Any) -> list[Any]:
    """Values in a function's closure, defaults, and globals that its code names."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    around = function.__globals__
    if _is_library(str(around.get("__name__", ""))):
        return values
    codes, names = [function.__code__], set[str]()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    for value in [around[name] for name in names if name in around]:
        if not isinstance(value, ModuleType):
            values.append(value)
        elif not _is_library(value.__name__):  # somebody's `import nets`, then nets.decoder(z)
            values += [vars(value)[name] for name in names if name in vars(value)]
    return [v for v in values if not isinstance(v, ModuleType)]


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES and name != "__main__"


def line_of(error: BaseException, file: Path | None = None) -> str:
    """Where an error arose: "model.py, line 7".

    Args:
        error: as it was caught.
        file: somebody's program, whose lines are preferred; None for the innermost code outside torch and this package.

    Returns:
        the empty string where no line is known.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parent
    libraries = (here, Path(torch.__file__).resolve().parent)
    paths = [Path(frame.filename).resolve() for frame in frames]
    mine = [f for f, p in zip(frames, paths, strict=True) if file is not None and p == file.resolve()]
    other = [f for f, p in zip(frames, paths, strict=True) if not any(p.is_relative_to(d) for d in libraries)]
    frame = (mine or other)[-1] if mine or (other and file is None) else None
    return "" if frame is None else f"{Path(frame.filename).name}, line {frame.lineno}"
