"""Small notebooks for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CELL = """profile: str = "quick"  # how large: quick, laptop or paper
seed: int = 0  # of the random numbers
rate: float = 1e-3  # learning rate
flag: bool = False
hidden: list[int] = [200, 200]  # widths
epochs: int = None  # the profile's own
"""


def notebook(path: Path, *cells: str, declared: str = CELL) -> Path:
    def code(source: str, tags: list[str]) -> dict[str, Any]:
        extra = {"metadata": {"tags": tags}, "execution_count": None, "outputs": []}
        return {"cell_type": "code", "id": f"c{abs(hash(source)) % 10**8}", "source": source, **extra}

    body = [code(declared, ["parameters"]), *(code(cell, []) for cell in cells)]
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    path.write_text(json.dumps({"cells": body, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path
