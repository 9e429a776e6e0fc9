r"""A result on a page comes from a record, not from somebody's keyboard.

Prose may say how an experiment is set up ("50 latents", "100 samples", "a 95 % interval"), but not what came out. This
test reads the book's own pages and the notebooks' text, without code and without exercises and their solutions, which
may invent their numbers. It refuses what looks like a typed result:

- any number before a unit of results (nats, nat, %, percent; with decimals also bits), in digits, in words or as a
  formula ("$3.5$ nats", "half a nat", "tens of nats"), also where a line ends between the two;
- a number with decimals or a sign behind "ELBO", "gap", "log p(x)", "likelihood", "bound", "share" or "width" and a
  word like "is", "of", "=";
- a number with decimals as the whole of a table's cell;
- a part of a gap or a loss in words ("two thirds of the inference gap").

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
    ("book/course/lab.md", "half"): "a threshold: which images disagree by more than half a nat",
    ("book/course/module.md", "15"): "weight of a grade",
    ("book/course/module.md", "40"): "weight of a grade",
    ("book/course/module.md", "half"): "a question: how many steps close half of a gap",
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

DIGITS = r"[-+−]?\d+(?:[.,]\d+)*"
PRECISE = r"[-+−]\d+(?:\.\d+)?|\d+\.\d+"
COUNTS = """half third quarter fifth tenth dozen ten hundred thousand million one two three four five six seven eight
    nine eleven twelve fifteen twenty thirty forty fifty sixty seventy eighty ninety"""
WORDS = rf"(?:{'|'.join(COUNTS.split())})s?"
SPACE = r"[ \t~-]*\n?[ \t]*"  # within a paragraph
BEFORE_UNIT = re.compile(
    rf"(?<![\w.,])({DIGITS}|{WORDS})(?:\s*(?:±|\+/-|to|and|or|–|-)\s*(?:{DIGITS}|{WORDS}))?"
    rf"(?:{SPACE}of)?(?:{SPACE}\b(?:an?|one))?{SPACE}(?:nats?\b|%|per ?cents?\b)",
    flags=re.I,
)
BEFORE_BITS = re.compile(rf"(?<![\w.,])({PRECISE}){SPACE}bits?\b")  # "8 bits" is a number format
AFTER_NAME = re.compile(
    r"(?:ELBO|gap|likelihood|log\s*p\(x\)|bound|share|width)s?\s+"
    rf"(?:is|are|was|were|of|=|:|falls to|rises to)\s+(?:about\s+)?({PRECISE})"
)
CELL = re.compile(rf"(?<=\|)[ *]*({PRECISE})(?:\s*±\s*{DIGITS})?[ *]*(?=\|)")
PART = re.compile(
    rf"\b(half|(?:{WORDS}[ -])?(?:third|quarter|fifth|tenth)s?){SPACE}of{SPACE}"
    rf"(?:the|its|this|an?)\b(?:{SPACE}\w+)?{SPACE}(?:gap|loss)",
    flags=re.I,
)
INTERVAL = re.compile(r"95 %")  # the width of every interval in the book


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
        elif re.match(r"\s*:(?!alt)\w+:", line):
            line = ""  # an option of a figure
        line = re.sub(
            rf"\$\s*(?:\\approx|\\sim)?\s*({DIGITS})\s*\$", r"\1", line
        )  # a formula that is nothing but a number
        out.append((number, re.sub(r"\$[^$]+\$|`[^`]+`", " ", line)))
    return out


def typed_results(path: Path) -> list[tuple[int, str]]:
    """(line, number) of everything that looks like a result and has no comment."""
    lines = prose(path)
    text = "\n".join(INTERVAL.sub(" ", line) for _, line in lines)
    found: set[tuple[int, int, str]] = set()
    for pattern in (BEFORE_UNIT, BEFORE_BITS, AFTER_NAME, CELL, PART):
        found |= {(text.count("\n", 0, m.start(1)), m.start(1), m[1]) for m in pattern.finditer(text)}
    said = [line.strip() for _, line in lines]
    return [
        (number + 1, typed)
        for number, _, typed in sorted(found)
        if "% numeral:" not in said[number] and not (number and said[number - 1].startswith("% numeral:"))
    ]


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
        ("The width is `12.5 nats` in code, and $3.5 / 2 = k$ in a formula.", 0),
        ("It is $3.5$ nats.", 1),
        ("It is $\\approx -3$ nats.", 1),
        ("The gap is 3 nats.", 1),
        ("The gap is 3.14\nnats.", 1),
        ("A 3-nat gap, or five nats, or half a nat, or tens of nats.", 4),
        ("The encoder takes 63 percent of it.", 1),
        ("That makes two thirds of the inference gap.", 1),
        ("| MNIST | 3.14 ± 0.02 | **2.5** |", 2),
        ("a share of 0.63", 1),
        ("a 95 % interval over one half of the images", 0),
        ("% numeral: from the paper's Table 2\nThe paper says 4.21 nats.", 0),
        ("```python\nprint('1.5 nats')\n```", 0),
    ],
)
def test_the_linter_itself(text: str, count: int, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    assert len(typed_results(page)) == count
