"""Peak memory of the engine on 10,000 images: each case in a process of its own.

    python -m benchmarks.memory [--images 10000] [--only "q* gaussian" "q* flow"] [--out benchmarks/memory.md]

Every case is written when it is measured, in the place of its last measurement; the file keeps the others.
Steps and samples are few, for memory does not depend on how long an optimisation takes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaegap import VAE, ais, elbo, gaps, iwae, optimize_local, published, quadrature
from vaegap.ascent import ascend
from vaegap.lab import provenance
from vaegap.local import RECIPES

LIMIT = 3.0  # GB
HEAD = ["| work | images | peak memory, GB | | commit |", "|---|---|---|---|---|"]


def images(num: int, pixels: int = 784) -> Tensor:
    """Binary noise."""
    return (torch.rand(num, pixels, generator=torch.Generator().manual_seed(0)) < 0.2).float()


def short(family: str) -> Any:
    """A fit of two steps."""
    return lambda n: optimize_local(VAE(seed=0), images(n), family, num_eval=20, recipe=quick(family), seed=0)


def quick(family: str) -> Any:
    """The family's own recipe, cut to two steps."""
    return replace(RECIPES[family], steps=2, rounds=1, repeats=0)


def two_latents(num: int) -> object:
    """The true posteriors on grids of 151 x 151 points, and a divergence from them, cut short by a tiny decoder."""
    vae = VAE(16, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0)
    truth = quadrature(vae, images(num, 16))
    return truth.kl(vae.encode(truth.x).detach())


def as_published(num: int) -> object:
    """The published procedure for auxiliary flows, ended after two steps a group."""
    published.ascend = lambda *given, **options: islice(ascend(*given, **options), 2)
    return optimize_local(VAE(seed=0), images(num), "aux_flow", protocol="paper", num_eval=2, seed=0)


def ladder(num: int) -> object:
    """The whole decomposition with every family there is, every recipe cut short."""
    for name in RECIPES:
        RECIPES[name] = quick(name)
    return gaps(VAE(seed=0), images(num), tuple(RECIPES), num_samples=20, num_chains=4, num_temperatures=2, certify=0)


def categorical(num: int) -> object:
    """256 levels a pixel: the widest decoder there is."""
    vae = VAE(784, 20, likelihood="categorical", likelihood_options={"levels": 256}, seed=0)
    return elbo(vae, (images(num) * 255).floor(), 20, seed=0)


def convolutional(num: int) -> object:
    """3 x 32 x 32 images through the convolutional model."""
    vae = VAE(
        (3, 32, 32), 50, encoder_hidden=(64, 128, 256), decoder_hidden=(64, 128, 256), architecture="conv", seed=0
    )
    return elbo(vae, images(num, 3072), 2, seed=0)


CASES: dict[str, tuple[Callable[[int], object], float]] = {  # and the share of the images that is enough to measure
    "elbo, 100 samples": (lambda n: elbo(VAE(seed=0), images(n), 100, seed=0), 1.0),
    "iwae, 1,000 samples": (lambda n: iwae(VAE(seed=0), images(n), 1000, seed=0), 0.2),
    "ais, 16 chains, 5 temperatures": (lambda n: ais(VAE(seed=0), images(n), 16, 5, seed=0), 1.0),
    **{f"q* {family}": (short(family), 1.0) for family in RECIPES},
    "gaps of every family": (ladder, 1.0),
    "quadrature and its KL": (two_latents, 1.0),
    "q* aux_flow as published": (as_published, 1.0),
    "elbo of a categorical decoder, 784 x 256": (categorical, 0.05),
    "elbo of the convolutional model": (convolutional, 0.2),
}


def measure(name: str, num: int) -> float:
    """Peak resident memory in GB of a process that does one case, the interpreter and PyTorch included."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", name, "--images", str(num)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def commit() -> str:
    """The code as it is, which a process started now imports."""
    known = provenance.collect()
    return str(known["commit"])[:9] + ("+" if known["dirty"] else "")


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--case", choices=list(CASES), help="only this one, in this process: prints its peak in GB")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these cases; default all")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file, beside what it has")
    options = parser.parse_args()
    if options.case:
        CASES[options.case][0](options.images)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)  # Linux counts KiB
        return
    rows = before(options.out) if options.out and options.out.exists() else {}
    for name in options.only:
        num, begun = int(options.images * CASES[name][1]), commit()
        peak = measure(name, num)
        if commit() != begun:
            raise SystemExit(f"the code changed while {name!r} was measured: measure it again")
        rows[name] = (
            f"| {name} | {num} | {peak:.2f} | {'within' if peak <= LIMIT else 'ABOVE'} {LIMIT:.0f} GB | {begun} |"
        )
        print(rows[name], flush=True)
        if options.out:
            lines = [*HEAD, *(rows[case] for case in CASES if case in rows), ""]
            options.out.write_text("\n".join(lines), encoding="utf-8")


def before(table: Path) -> dict[str, str]:
    """The rows that a table has, by case."""
    lines = table.read_text(encoding="utf-8").splitlines()[len(HEAD) :]
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


if __name__ == "__main__":
    main()
