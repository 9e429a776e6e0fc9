"""A drawn figure in words, for those who do not see it: the numbers are read from what was drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe"]

_PLAIN = (
    (r"\\mathcal\{L\}", "L"),
    (r"\\log ?", "log "),
    (r"\\hat p", "p\u0302"),
    (r"_\{(\w+)\}", r"_\1"),
    (r"[$^]", ""),
)


def describe(figure: Figure) -> str:
    """Bars with their lengths, lines with both ends, and levels with their labels, a sentence a panel.

    Args:
        figure: what `vaegap.figures` or matplotlib drew. Pictures and contours add nothing.

    Returns:
        Sentences; "" where there is nothing to tell.

    Example:
        >>> from vaegap.figures import gap_bars
        >>> describe(gap_bars({"MNIST": (1.25, 3.5)}).figure)
        'MNIST: approximation 1.25, amortization 3.50.'
    """
    told = [(_title(ax), "; ".join([*_levels(ax), *_bars(ax), *_lines(ax)])) for ax in figure.axes]
    return " ".join(f"{title}{': ' * bool(title)}{text}." for title, text in told if text)


def _title(ax: Axes) -> str:
    return _plain("".join(ax.get_title(loc=side) for side in ("left", "center", "right")))


def _bars(ax: Axes) -> Iterator[str]:
    """Each place on the horizontal axis, with the length of every bar that has a name."""
    from matplotlib.container import BarContainer

    groups = [c for c in ax.containers if isinstance(c, BarContainer)]
    named = [(str(c.get_label()), [bar.get_height() for bar in c]) for c in groups]
    named = [(name, heights) for name, heights in named if not name.startswith("_")]
    for i, tick in enumerate(ax.get_xticklabels() if named else ()):
        yield f"{_plain(tick.get_text())}: {', '.join(f'{name} {heights[i]:.2f}' for name, heights in named)}"


def _lines(ax: Axes) -> Iterator[str]:
    """Each curve that has a name, from its first point to its last; "_name" keeps one out of the legend only."""
    for line in ax.get_lines():
        name, values = str(line.get_label()).removeprefix("_"), np.asarray(line.get_ydata(), dtype=float)
        if not name.startswith(("child", "nolegend")):  # matplotlib's own names
            yield f"{_plain(name)} from {values[0]:.2f} to {values[-1]:.2f}"


def _levels(ax: Axes) -> Iterator[str]:
    """The labels beside the axes and, as they belong together, those under it."""
    if ax.texts:
        yield from (_plain(text.get_text()) for text in ax.texts)
        yield from (_plain(tick.get_text()) for tick in ax.get_xticklabels() if tick.get_text())


def _plain(text: str) -> str:
    for pattern, word in _PLAIN:
        text = re.sub(pattern, word, text)
    return re.sub(r"\s*\n\s*", ", ", text.strip())
