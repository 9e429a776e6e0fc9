"""What the figure scripts share: the style file, the meaning of the colours, and how a figure is saved."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
STYLE = ROOT / "vaegap" / "figures.mplstyle"
OUT = ROOT / "book" / "figures"

# One meaning a colour, in every figure of the book.
GREY = "#7b7b7b"  # exact things: log p(x), the true posterior
APPROX = "#0072B2"  # the approximation gap, q*
AMORT = "#E69F00"  # the amortization gap
ENCODER = "#D55E00"  # the encoder's q
GREEN = "#009E73"
PURPLE = "#CC79A7"

plt.style.use(STYLE)


def save(fig: Figure, name: str, out: Path = OUT) -> Path:
    """Write `name`.svg, byte for byte the same on every run."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.svg"
    fig.savefig(path, metadata={"Date": None, "Creator": "vaegap: book/figures_src"})
    plt.close(fig)
    return path


def run(name: str, draw: Callable[[], Figure]) -> None:
    """Command line of one script: draw the figure, save it, say where."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the SVG file")
    print(save(draw(), name, parser.parse_args().out))
