"""Every Python block on the book's pages runs: the solutions of the exercises and the examples in the text.

Blocks of one page run one after the other in one process, as a reader would run them, but each from a fresh namespace:
a solution has to stand alone. A block that is meant to be incomplete is marked as ```` ```{code-block} python ````.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)
PAGES = sorted(page for page in (ROOT / "book").rglob("*.md") if BLOCK.search(page.read_text()))
SECONDS = 180  # what the book promises a reader with a laptop; for one page

RUNNER = """
import sys, textwrap, time, traceback
import matplotlib
matplotlib.use("Agg")
import torch
torch.set_num_threads(1)
for number, source in enumerate(sys.stdin.read().split("\\0"), 1):
    started = time.monotonic()
    try:
        exec(compile(source, f"block {number}", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        print(textwrap.indent(source, "    | "), file=sys.stderr)
        sys.exit(f"block {number} failed")
    print(f"block {number}: {time.monotonic() - started:.1f} s")
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "book")))
def test_blocks_run(page: Path, tmp_path: Path):
    blocks = BLOCK.findall(page.read_text())
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input="\0".join(blocks),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VAEGAP_RESULTS": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{page.relative_to(ROOT)}: {done.stderr[-3000:]}"
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("page", sorted((ROOT / "book").rglob("*.md")), ids=lambda page: page.stem)
def test_every_exercise_has_a_folded_solution(page: Path):
    text = page.read_text()
    exercises = set(re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text))
    solutions = dict(re.findall(r"\{solution\} (\S+)\n((?::.*\n)*)", text))
    assert exercises == set(solutions)
    assert all(":class: dropdown" in options for options in solutions.values())
