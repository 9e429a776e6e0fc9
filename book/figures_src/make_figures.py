"""Draw every figure of the Foundations pages: `python book/figures_src/make_figures.py [--out FOLDER] [NAME ...]`."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from common import OUT, save

NAMES = ("elbo", "decomposition", "importance", "annealing", "path_gradient", "flows", "oracles", "explorer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the SVG files")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such figure: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        started = time.monotonic()
        print(save(importlib.import_module(name).draw(), name, options.out, started))


if __name__ == "__main__":
    main()
