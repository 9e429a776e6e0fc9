"""How far the mean of a few training runs can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["over_seeds", "t95"]

_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


def over_seeds(values: Sequence[float]) -> float:
    """Half width of the 95 % t-interval of the mean of some training runs; NaN for fewer than two.

    Example:
        >>> round(over_seeds([1.0, 2.0, 3.0]), 3)
        2.484
    """
    if len(values) < 2:
        return math.nan
    return t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def t95(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    return _T95.get(freedom, 1.96 + 2.8 / freedom)
