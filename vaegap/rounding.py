"""How many decimals a number is printed with: its error decides, here and nowhere else."""

from __future__ import annotations

import math

__all__ = ["decimals", "plus_minus", "unbroken"]

_MOST = 6  # float32 holds no more of a bound of tens of nats


def decimals(error: float, default: int = 2) -> int:
    """Decimals that show two significant digits of an error.

    Args:
        error: a standard error or half width, at least zero.
        default: the answer where the error says nothing: zero, infinite or not a number.

    Example:
        >>> decimals(0.0042), decimals(0.31), decimals(23.4)
        (4, 2, 0)
    """
    if not math.isfinite(error) or error <= 0:
        return default
    exponent = int(f"{error:.1e}".split("e")[1])  # of the rounded error: 0.0996 is printed as 0.10
    return min(max(1 - exponent, 0), _MOST)


def plus_minus(value: float, error: float, *more: float) -> str:
    """A value with its error, and other errors in brackets: each error with two significant digits.

    The value ends at the same decimal as its first error. What is not known (NaN) is left out.

    Args:
        value: the value.
        error: its error.
        more: errors of other kinds, e.g. the spread over training runs.

    Example:
        >>> plus_minus(-87.26134, 0.00372, 0.31)
        '-87.2613 ± 0.0037 (± 0.31)'
        >>> plus_minus(2.302, float("nan"))
        '2.30'
    """
    places = decimals(error)
    text = f"{value:.{places}f}"
    if not math.isnan(error):
        text += f" ± {error:.{places}f}"
    return text + "".join(f" (± {other:.{decimals(other)}f})" for other in more if not math.isnan(other))


def unbroken(text: str) -> str:
    """A cell with errors for a narrow column, which breaks before the sign ± and not after it.

    Example:
        >>> unbroken("2.30 ± 0.03") == "2.30 ±\N{NO-BREAK SPACE}0.03"
        True
    """
    return text.replace("± ", "±\N{NO-BREAK SPACE}")
