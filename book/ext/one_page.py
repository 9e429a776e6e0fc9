"""All pages on one (`make pdf`): what extensions draw for HTML pages, they draw for the single one."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def same_as_html(app: Sphinx) -> None:
    """Sphinx falls back on the HTML ways only for builders that no extension has named, and some name this one."""
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = {**handlers.get("html", {}), **handlers.get("singlehtml", {})}


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", same_as_html)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
