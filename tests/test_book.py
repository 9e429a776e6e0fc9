"""The book's table of contents, its pages, and what it needs to be read offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def files(node: Any) -> list[str]:
    """Every page that the table of contents names."""
    if isinstance(node, dict):
        return [node[k] for k in ("root", "file") if k in node] + [f for v in node.values() for f in files(v)]
    return [f for v in node for f in files(v)] if isinstance(node, list) else []


PAGES = files(TOC)


def source(page: str) -> Path:
    found = [ROOT / f"{page}{suffix}" for suffix in (".md", ".ipynb") if (ROOT / f"{page}{suffix}").exists()]
    assert len(found) == 1, f"{page} is in _toc.yml, but there are {len(found)} files of that name"
    return found[0]


@pytest.mark.parametrize("page", PAGES)
def test_page_exists_and_is_named_once(page: str):
    assert source(page).stat().st_size > 0
    assert PAGES.count(page) == 1


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("book/")])
def test_page_begins_with_a_title(page: str):
    text = re.sub(r"\A---\n.*?\n---\n", "", source(page).read_text(), flags=re.S)
    text = re.sub(r"\A\s*(\(\S+\)=\n)*", "", text)
    assert text.startswith("# ")


def test_every_notebook_has_its_run():
    runs = yaml.safe_load((ROOT / "workflow" / "book.yaml").read_text())
    assert {f"notebooks/{name}" for name in runs} == {p for p in PAGES if p.startswith("notebooks/")}


def test_mathjax_is_local_and_small():
    path = CONFIG["sphinx"]["config"]["mathjax_path"]
    folder = ROOT / CONFIG["sphinx"]["config"]["html_extra_path"][0]
    assert path.startswith("../") and (folder / path.removeprefix("../")).is_file()
    assert (folder / "mathjax" / "LICENSE").is_file()
    assert max(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 5e6


def test_cited_works_are_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), flags=re.M))
    for page in PAGES:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", source(page).read_text()):
            assert {key.strip() for key in keys.split(",")} <= known, page


def test_every_term_of_the_glossary_is_linked_from_a_page():
    glossary = (ROOT / "book" / "glossary.md").read_text()
    terms = set(re.findall(r"^(\w[^\n]*)$", glossary.split("```{glossary}\n")[1].split("```")[0], flags=re.M))
    pages = "".join(page.read_text() for page in (ROOT / "book").rglob("*.md"))
    linked = {found[1] or found[0] for found in re.findall(r"\{term\}`([^`<]+?)(?: <([^>]+)>)?`", pages)}
    assert len(terms) > 30 and terms == linked


def test_every_work_of_the_bibliography_is_cited():
    works = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), flags=re.M))
    pages = "".join(
        page.read_text() for folder in ("book", "notebooks") for page in (ROOT / folder).rglob("*.[mi][dp]*")
    )
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", pages) for key in keys.split(",")}
    assert works == cited


def test_numbered_figures_are_referred_to():
    pages = "".join(page.read_text() for page in (ROOT / "book").rglob("*.md"))
    named = set(re.findall(r"^:name: (fig-[\w-]+)", pages, flags=re.M))
    assert len(named) > 8 and named == set(re.findall(r"\{numref\}`(fig-[\w-]+)`", pages))


def test_numbered_equations_are_referred_to():
    pages = "".join(
        page.read_text() for folder in ("book", "notebooks") for page in (ROOT / folder).rglob("*.[mi][dp]*")
    )
    labels = re.findall(r"(?:^:label: |\$\$ \()(eq-[\w-]+)", pages, flags=re.M)
    assert len(labels) > 40 and len(labels) == len(set(labels))
    assert set(labels) == set(re.findall(r"\{eq\}`(eq-[\w-]+)`", pages))


def test_the_workflow_publishes_what_ci_built():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    steps = jobs["jobs"]["test"]["steps"]
    assert {"run": "bash .ci/run"} in steps
    (pages,) = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert pages["with"]["path"] == "_build/html"
    assert jobs["permissions"] == {"contents": "read"}, "only publishing may write"
    assert jobs["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert jobs["jobs"]["publish"]["needs"] == "test"
