"""Docstrings may call a class of this package by its bare name: where only one has it, that is the one."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """A link to the only documented object with this last name, or to the same object under its public name."""
    if node.get("refdomain") != "py":
        return None
    last = str(node["reftarget"]).rsplit(".", 1)[-1]
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    found = [(name, entry) for name, entry in objects.items() if name.rsplit(".", 1)[-1] == last]
    ours = "." not in str(node["reftarget"]) or str(node["reftarget"]).startswith("vaegap.")
    if not ours or len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
