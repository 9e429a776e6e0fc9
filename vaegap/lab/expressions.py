"""Arithmetic over the means of models, as the claims write it: "A.amortization / A.inference"."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from vaegap.errors import InputError

__all__ = ["evaluate", "names"]

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str, models: Mapping[str, Mapping[str, Any]]) -> Any:
    """An arithmetic expression over models' means: names like A.amortization, numbers, + − * /, abs, min, max.

    Example:
        >>> evaluate("A.amortization / A.inference", {"A": {"amortization": 1.0, "inference": 4.0}})
        0.25
    """
    import numpy as np

    functions = {"abs": np.abs, "min": np.minimum, "max": np.maximum}

    def visit(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return visit(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](visit(node.left), visit(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -visit(node.operand)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            return functions[node.func.id](*(visit(a) for a in node.args))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            try:
                return models[node.value.id][node.attr]
            except KeyError:
                raise InputError(f"{expression!r}: there is no {node.value.id}.{node.attr} in the records") from None
        raise InputError(
            f"{expression!r}: only names like A.amortization, numbers, + - * / and abs, min, max are allowed"
        )

    return visit(ast.parse(expression, mode="eval"))


def names(expression: str) -> set[tuple[str, str]]:
    """The models that an expression names, each with what it asks of it.

    Example:
        >>> sorted(names("A.amortization / A.inference"))
        [('A', 'amortization'), ('A', 'inference')]
    """
    return {
        (n.value.id, n.attr)
        for n in ast.walk(ast.parse(expression, mode="eval"))
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
