"""Progress bars that a terminal redraws and a log can still be read with."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["bar"]


def bar(*iterable: Any, show: bool = True, **options: Any) -> Any:
    """A tqdm bar: every second on a terminal, every ten seconds elsewhere, and gone if it is not wanted.

    Args:
        *iterable: what to iterate over, if anything.
        show: whether to show it.
        **options: of `tqdm`: total, desc, initial, unit.

    Example:
        >>> list(bar(range(3), show=False))
        [0, 1, 2]
    """
    seconds = 1.0 if sys.stderr is not None and sys.stderr.isatty() else 10.0
    return tqdm(*iterable, disable=not show, mininterval=seconds, maxinterval=2 * seconds, **options)
