"""What the figure scripts share: the style file, the meaning of the colours, and how a figure is saved."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from vaegap.lab import provenance

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

STARTED = time.monotonic()
plt.style.use(STYLE)


def save(fig: Figure, name: str, out: Path = OUT, started: float | None = None) -> Path:
    """Write `name`.svg, byte for byte the same on every run, and beside it where it was made: `name`.json.

    Args:
        fig: the figure.
        name: of the files.
        out: their folder.
        started: `time.monotonic()` before the figure was computed; without it, when this module was imported.
    """
    seconds = time.monotonic() - (STARTED if started is None else started)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.svg"
    fig.savefig(path, metadata={"Date": None, "Creator": "vaegap: book/figures_src"})
    plt.close(fig)
    made = provenance.collect()
    kept = ("commit", "dirty", "processor", "accelerator", "threads", "versions", "written")
    about = {"script": f"book/figures_src/{name}.py", "seconds": round(seconds, 1)} | {key: made[key] for key in kept}
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return path


def run(name: str, draw: Callable[[], Figure]) -> None:
    """Command line of one script: draw the figure, save it, say where."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the SVG file")
    print(save(draw(), name, parser.parse_args().out))
