"""The bibliography's entries are labelled as the text cites them: by author and year."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class Labels(BaseLabelStyle):  # type: ignore[misc]
    """One or two authors by name, more as "et al."."""

    def format_labels(self, entries: Iterable[Entry]) -> Iterator[str]:
        for entry in entries:
            names = [str(Text.from_latex(" ".join(p.prelast_names + p.last_names))) for p in entry.persons["author"]]
            who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{who}, {entry.fields['year']}"


class Style(Plain):  # type: ignore[misc]
    """pybtex's plain style, sorted by author, with these labels."""

    default_label_style = Labels


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    register_plugin("pybtex.style.formatting", "author_year_labels", Style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
