"""What every page of the course has: learning goals, a question before the result, exercises that run, a self-check.

Foundations are pages of their own. A page about an experiment of the paper is a notebook, which includes its exercises
and self-check from `book/paper/`; here the two are read as the one page that the reader sees.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    part["caption"]: [chapter["file"] for chapter in part["chapters"]]
    for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
}
PAGES = [*PARTS["Foundations"], *PARTS["The paper, experiment by experiment"]]
PAGES += ["notebooks/posterior_2d", "book/explorer"]
each_page = pytest.mark.parametrize("page", PAGES)
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```", flags=re.M)
RESULT = re.compile(r"^## Result|^```\{figure\}|\{'figure'|^<div id=\"xp-root\"", flags=re.M)


def text_of(page: str) -> str:
    """A page as one text, in the order in which it is read; a notebook's figures are marked where they are drawn."""
    markdown = ROOT / f"{page}.md"
    if markdown.exists():
        return markdown.read_text(encoding="utf-8")
    notebook = ROOT / f"{page}.ipynb"
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        parts.append(
            "".join(cell["source"]) if cell["cell_type"] == "markdown" else str(cell["metadata"].get("mystnb"))
        )
    return INCLUDE.sub(lambda m: (notebook.parent / m[1]).read_text(encoding="utf-8"), "\n\n".join(parts))


def boxes(text: str, title: str) -> list[str]:
    """The contents of the admonitions whose title begins with these words."""
    found = re.findall(rf"^(`{{3,}}|:{{3,}})\{{admonition\}} {title}[^\n]*\n(.*?)^\1$", text, flags=re.M | re.S)
    return [content for _, content in found]


@each_page
def test_goals_come_first(page: str):
    text = text_of(page)
    (goals,) = boxes(text, "Learning goals")
    assert len(re.findall(r"^- \S", goals, flags=re.M)) >= 3
    assert text.index("Learning goals") < text.index("\n## ")


@each_page
def test_a_question_comes_before_the_result(page: str):
    text = text_of(page)
    (question,) = boxes(text, "Predict before")
    result = RESULT.search(text)
    assert "?" in question
    assert result and text.index("Predict before") < result.start()


@each_page
def test_two_exercises_have_solutions_that_run(page: str):
    """Solutions with a block of Python are run, and their assertions checked, by test_solutions.py."""
    solutions = re.findall(r"^(`{3,})\{solution\} (\S+)\n(.*?)^\1$", text_of(page), flags=re.M | re.S)
    checked = [name for _, name, text in solutions if re.search(r"^```python\n.*^\s*assert ", text, flags=re.M | re.S)]
    assert len(checked) >= 2, checked


@each_page
def test_a_self_check_comes_last(page: str):
    head, check = text_of(page).rsplit("\n## ", 1)
    assert check.startswith("Self-check\n")
    questions = re.findall(r"^```\{dropdown\} (\d)\. (.+)\n(.+)", check, flags=re.M)
    assert [number for number, _, _ in questions] == [str(n + 1) for n in range(len(questions))]
    assert 3 <= len(questions) <= 5
    assert all(question.rstrip("*").endswith("?") and len(answer) > 20 for _, question, answer in questions)
