r"""A result on a page comes from a record, not from somebody's keyboard.

Prose may say how an experiment is set up ("50 latents", "100 samples", "a tolerance of 0.1 nat" as a requirement), but
not what came out. This test reads the book's own pages and the notebooks' text, without code, formulas and
exercises with their solutions, and refuses what looks like a typed result:

- a number with decimals, or any number with a sign, before a unit of results (nats, nat, bits, %);
- the same behind "ELBO", "gap", "log p(x)", "likelihood", "bound" and a word like "is", "of", "=".

Results belong into executed notebooks, which draw them from records. A number that is no result of this book is allowed
in one of two ways:

- a comment on the same line, or on the line before: `% numeral: why this one is no result`;
- a line in ALLOWED below: page, the number as typed, and where it comes from. It fails when nobody needs it any more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "book").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])

ALLOWED: dict[tuple[str, str], str] = {
    ("book/reference/trust.md", "0.9189"): "half the logarithm of 2 pi, a constant",
    ("book/reference/trust.md", "0.1"): "a threshold",
}

# blocks whose contents are text; in the others is code, a formula, or an exercise, which may invent its numbers
SPOKEN = {
    "admonition",
    "figure",
    "dropdown",
    "note",
    "tip",
    "warning",
    "margin",
    "grid",
    "grid-item-card",
    "tab-set",
    "tab-item",
}

NUMBER = r"[-+−]?\d+(?:[.,]\d+)*"
RESULT = r"[-+−]\d+(?:\.\d+)?|\d+\.\d+"
BEFORE_UNIT = re.compile(
    rf"(?<![\w.])({RESULT})(?:\s*(?:±|\+/-|to|and|–|-)\s*{NUMBER})?[\s~-]*(?:nats?\b|bits?\b|%|per cent)"
)
AFTER_NAME = re.compile(
    rf"(?:ELBO|gap|likelihood|log\s*p\(x\)|bound)s?\s+(?:is|are|was|were|of|=|:|falls to|rises to)\s+(?:about\s+)?"
    rf"({RESULT})"
)


def prose(path: Path) -> list[tuple[int, str]]:
    """The lines that a reader reads as text, with their numbers; code, formulas and exercises are blanked."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for pattern in (r"\A---\n.*?\n---\n", r"^\$\$.*?^\$\$"):
        text = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M | re.S)
    out = []
    hidden = ""  # the fence of the block that is being blanked
    for number, line in enumerate(text.split("\n"), 1):
        fence = re.match(r"\s*(`{3,}|:{3,})(?:\{([\w:-]+)\})?", line)
        if hidden:
            hidden = "" if line.strip() == hidden else hidden
            line = ""
        elif fence and line.strip() != fence[1] and fence[2] not in SPOKEN:
            hidden, line = fence[1], ""
        elif fence and fence[2] == "dropdown":
            line = ""  # the title of a self-check is a question
        out.append((number, re.sub(r"\$[^$]+\$|`[^`]+`", " ", line)))
    return out


def typed_results(path: Path) -> list[tuple[int, str]]:
    """(line, number) of everything that looks like a result and has no comment."""
    lines = prose(path)
    found: set[tuple[int, int, str]] = set()
    for number, line in lines:
        before = lines[number - 2][1] if number > 1 else ""
        if "% numeral:" in line or before.strip().startswith("% numeral:"):
            continue
        found |= {(number, m.start(1), m[1]) for pattern in (BEFORE_UNIT, AFTER_NAME) for m in pattern.finditer(line)}
    return [(line, number) for line, _, number in sorted(found)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_result_is_typed(page: Path):
    name = str(page.relative_to(ROOT))
    wrong = [f"{name}:{line}: {number}" for line, number in typed_results(page) if (name, number) not in ALLOWED]
    assert not wrong, "results typed by hand; see the beginning of tests/test_numerals.py for the cures:\n" + "\n".join(
        wrong
    )


def test_allowances_are_needed():
    seen = {(str(p.relative_to(ROOT)), number) for p in PAGES for _, number in typed_results(p)}
    assert set(ALLOWED) <= seen


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The gap is 3.14 nats on held-out digits.", 1),
        ("It falls by 2.5 to 3.1 nats.", 1),
        ("The encoder takes 63.1 % of it.", 1),
        ("an ELBO of -89.4", 1),
        ("We draw 100 samples for 50 latents.", 0),
        ("The width is `12.5 nats` in code, and $3.5$ nats in a formula.", 0),
        ("% numeral: from the paper's Table 2\nThe paper says 4.21 nats.", 0),
        ("```python\nprint('1.5 nats')\n```", 0),
    ],
)
def test_the_linter_itself(text: str, count: int, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    assert len(typed_results(page)) == count
