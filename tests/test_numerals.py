r"""A result on a page comes from a record, not from somebody's keyboard.

Prose may say how an experiment is set up ("50 latents", "100 samples", "a 95 % interval"), but not what came out. This
test reads the book's own pages and the notebooks' text, without code and without exercises and their solutions, which
may invent their numbers. It refuses what looks like a typed result:

- any number before a unit of results (nats, nat, %, percent; with decimals also bits), in digits, in words or as a
  formula ("$3.5$ nats", "half a nat", "tens of nats"), also where a line ends between the two;
- any number with decimals or a sign, except the number of a section or a version;
- a factor ("a factor of three", "ten times narrower");
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
    ("book/audit.md", "0.7"): "a threshold of k-hat",
    ("book/course/lab.md", "half"): "a threshold: which images disagree by more than half a nat",
    ("book/course/module.md", "15"): "weight of a grade",
    ("book/course/module.md", "40"): "weight of a grade",
    ("book/course/module.md", "half"): "a question: how many steps close half of a gap",
    ("book/foundations/annealing.md", "0.1"): "where a figure's axis changes its scale",
    ("book/foundations/decomposition.md", "0.775"): "a parameter of a figure's posterior",
    ("book/foundations/elbo.md", "half"): "two widths of a formula's curve",
    ("book/foundations/elbo.md", "1.6"): "two parameters of a figure's curves",
    ("book/foundations/elbo.md", "2"): "the same",
    ("book/foundations/importance.md", "0.5"): "a threshold of k-hat",
    ("book/foundations/importance.md", "0.7"): "a threshold of k-hat",
    ("book/foundations/oracles.md", "0.85"): "a parameter of a figure's posterior",
    ("book/reference/cluster.md", "0.3"): "the size of an environment on the disk",
    ("book/reference/profiles.md", "0.5"): "a threshold of pixels",
    ("book/reference/speed.md", "0.16"): "40,000 numbers of four bytes",
    ("book/reference/trust.md", "0.6"): "a threshold of acceptance",
    ("book/reference/trust.md", "0.7"): "a threshold of k-hat",
    ("book/reference/trust.md", "0.95"): "a threshold of acceptance",
    ("notebooks/entropy_annealing.ipynb", "0.01"): "the threshold of an active unit",
    ("notebooks/lab_gaps.ipynb", "three"): "the square root of ten",
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
PRECISE_ANYWHERE = re.compile(rf"(?<![\w.,/:-])({PRECISE})(?![\w.,]*\d)")
FACTOR = re.compile(
    rf"\bfactor{SPACE}of{SPACE}(?:about{SPACE})?({DIGITS}|{WORDS})\b"
    rf"|\b({DIGITS}|{WORDS}|twice){SPACE}(?:times{SPACE})?(?:as{SPACE}\w+{SPACE}as\b|(?:more|less){SPACE}than\b)"
    rf"|\b({DIGITS}|{WORDS}){SPACE}times{SPACE}(?:more|less|\w+er)\b",
    flags=re.I,
)
PART = re.compile(
    rf"\b(half|(?:{WORDS}[ -])?(?:third|quarter|fifth|tenth)s?){SPACE}of{SPACE}"
    rf"(?:the|its|this|an?)\b(?:{SPACE}\w+)?{SPACE}(?:gap|loss)",
    flags=re.I,
)
NO_RESULTS = re.compile(
    r"95 %"  # the width of every interval in the book
    r"|\b(?:sections?|versions?|supplement)\s+[\d.]+(?:(?:,| to| and|, and)\s+[\d.]+\b)*",
    flags=re.I,
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
    text = "\n".join(NO_RESULTS.sub(" ", line) for _, line in lines)
    found: set[tuple[int, int, str]] = set()
    for pattern in (BEFORE_UNIT, PRECISE_ANYWHERE, FACTOR, PART):
        for m in pattern.finditer(text):
            start, typed = min((m.start(k), m[k]) for k in range(1, pattern.groups + 1) if m[k])
            found.add((text.count("\n", 0, start), start, typed))
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
        ("It falls by 2.5 to 3.1 nats.", 2),
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
        ("| MNIST | 3.14 ± 0.02 | **2.5** |", 3),
        ("a share of 0.63", 1),
        ("At first it is nearly its approximation gap, 2.305.", 1),
        ("The ELBO reaches -91.78.", 1),
        ("The gap shrank from 3.13 to 0.148.", 2),
        ("A factor of 4.7, or a factor of about ten.", 2),
        ("1.7 times the Gaussian's.", 1),
        ("It is three times wider than before, and twice as slow as theirs.", 2),
        ("See sections 5.2, 5.3 and 5.5, and version 2.8.", 0),
        ("a 95 % interval over one half of the images", 0),
        ("% numeral: from the paper's Table 2\nThe paper says 4.21 nats.", 0),
        ("```python\nprint('1.5 nats')\n```", 0),
    ],
)
def test_the_linter_itself(text: str, count: int, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    assert len(typed_results(page)) == count
