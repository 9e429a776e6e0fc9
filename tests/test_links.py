"""The built book: links lead somewhere, images can be read by those who do not see them, nothing comes from outside.

It looks at `_build/html`, or at the folder that BOOK_HTML names; without a built book there is nothing to look at.
"""

from __future__ import annotations

import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))
PAGES = sorted(
    p for p in HTML.rglob("*.html") if not {"_static", "mathjax", "reports"} & set(p.relative_to(HTML).parts)
)
SHORTEST_ALT = 40  # characters; a picture that is described in fewer is hardly described

pytestmark = pytest.mark.skipif(not PAGES, reason="the book is not built; `make book` builds it")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HTML)))


class Page(HTMLParser):
    """Anchors, links and images of a page; images in the theme's own parts (logo) do not count."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.anchors |= {value for name, value in attrs if value and (name == "id" or (tag == "a" and name == "name"))}
        if tag in ("a", "link", "area") and own.get("href"):
            self.links.append(own["href"] or "")
        if tag in ("img", "script", "source") and own.get("src"):
            self.sources.append(own["src"] or "")
        if tag == "img" and "logo" not in (own.get("class") or ""):
            self.images.append(own)


@cache
def parse(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def broken(page: Path, link: str) -> str:
    """Why a link leads nowhere; "" if it leads somewhere, or outside of the book."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link in ("#", ""):
        return ""
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return f"{link}: no such file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in parse(target).anchors:
        return f"{link}: no such anchor"
    return ""


@each_page
def test_links_lead_somewhere(page: Path):
    found = parse(page)
    assert [reason for link in found.links + found.sources if (reason := broken(page, link))] == []


@each_page
def test_images_are_described(page: Path):
    poor = [
        (i.get("src"), i.get("alt")) for i in parse(page).images if len((i.get("alt") or "").strip()) < SHORTEST_ALT
    ]
    assert poor == []


@each_page
def test_nothing_is_fetched_from_outside(page: Path):
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]+", text)
    found += re.findall(r"<link\b[^>]*\brel=\"(?:stylesheet|preload|icon)\"[^>]*\bhref=\"(?:https?:)?//[^\"]+", text)
    assert found == []


@each_page
def test_figures_are_numbered_and_captioned(page: Path):
    """Every figure made with a `figure` directive has a number and a caption."""
    for figure in re.findall(r"<figure\b.*?</figure>", page.read_text(encoding="utf-8"), flags=re.S):
        assert "caption-number" in figure and "<figcaption" in figure, figure[:200]
