"""The role `made`: where a figure was made, for its caption. Reads the small file beside the figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

FIGURES = "book/figures"


class Made(SphinxRole):
    """`elbo` -> "drawn by elbo.py · commit 0123456 · AMD EPYC, 1 thread · 3 s · details", with two links."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The words of one figure."""
        path = Path(self.env.srcdir) / FIGURES / f"{self.text}.json"
        self.env.note_dependency(str(path))
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return [], [self.inliner.reporter.error(f"{path}: {error}; draw the figure again", line=self.lineno)]
        threads = about["threads"] or 1
        machine = about["accelerator"] or f"{about['processor']}, {threads} thread{'s' * (threads != 1)}"
        commit = (about["commit"] or "none")[:9] + "+" * bool(about["dirty"])
        seconds = f"{about['seconds']:.{about['seconds'] < 10:d}f}"
        words = f" · commit {commit} · {machine} · {seconds} s · "
        script = self.link(about["script"], Path(about["script"]).name)
        more = self.link(f"{FIGURES}/{self.text}.json", "details")
        parts = [nodes.Text("Drawn by "), script, nodes.Text(words), more]
        return [nodes.inline("", "", *parts, classes=["provenance"])], []

    def link(self, path: str, text: str) -> nodes.Node:
        """A download of a file of the project."""
        return addnodes.download_reference(
            "", "", nodes.Text(text), refdoc=self.env.docname, refdomain="", reftarget=f"/{path}", reftype="download"
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_role("made", Made())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
