"""Records with known gaps, written as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vaegap.lab import experiments
from vaegap.lab.protocols.measuring import gap_rows
from vaegap.lab.records import Record


def record(
    folder: Path,
    approximation: float,
    amortization: float,
    spread: float = 0.01,
    units: float = 20.0,
    heldout: int = 0,
    draw: int | None = None,
    width: float = 0.01,
    **params: Any,
) -> Record:
    """A decomposition with these mean gaps, written as a run writes it; `draw` decides what its images differ by."""
    generator = torch.Generator().manual_seed(params.get("seed", 0) if draw is None else draw)
    own = params.get("family", "gaussian")

    def images(count: int) -> dict[str, torch.Tensor]:
        def column(mean: float) -> torch.Tensor:
            return mean + spread * torch.randn(count, generator=generator, dtype=torch.float64)

        log_p = column(-90.0)
        star = log_p - column(approximation)
        values = {"log_p": log_p, f"L_star_{own}": star, "L_q": star - column(amortization)}
        columns = values | {f"{k}_mcse": torch.full((count,), 0.01, dtype=torch.float64) for k in values}
        for key in ("ais", "iwae"):
            columns |= {key: log_p, f"{key}_mcse": columns["log_p_mcse"]}
        return columns | {name: torch.zeros(count) for name in ("khat", "missed", "unfinished", "wide")}

    def compute(ctx: experiments.Context) -> list[dict[str, Any]]:
        return [
            *gap_rows(images(40), split="train", model=own),
            *(gap_rows(images(heldout), split="test", model=own) if heldout else []),
            {"split": "train", "metric": "active_units", "value": units, "unit": "units"},
            {"split": "simulated", "metric": "bdmc_width", "value": width, "mcse": 0.01, "unit": "nats"},
        ]

    return experiments.run("gap_decomposition", params, "laptop", folder, compute=compute, refresh=True)
