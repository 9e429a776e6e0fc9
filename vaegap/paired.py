"""From numbers per image to gaps, means and intervals: always paired, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bootstrap_interval", "complete_gaps", "summarize"]

_RESAMPLES = 2000


def summarize(table: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Means over images with their errors; see `Gaps.summary`.

    Args:
        table: a column a quantity, a row an image, in nats.
        errors: Monte-Carlo standard errors, same shape.
    """
    import pandas as pd

    rows = {}
    for name in table.columns:
        values = table[name].to_numpy(dtype=float, copy=True)
        low, high = bootstrap_interval(torch.from_numpy(values))
        error = float((errors[name] ** 2).sum(skipna=False) ** 0.5 / len(values))  # an unknown error is not 0
        rows[name] = {"mean": values.mean(), "mcse": error, "ci_low": low, "ci_high": high, "num_images": len(values)}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"num_images": int})


def bootstrap_interval(values: Tensor, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (N,), resampling images.

    Example:
        >>> low, high = bootstrap_interval(torch.arange(100.0))
        >>> low < 49.5 < high
        True
    """
    values = values.double().flatten().cpu()
    generator = torch.Generator().manual_seed(seed)  # of the CPU, wherever torch's default device may be
    count = len(values)
    block = max(1, 2**21 // count)  # resamples at once
    sizes = [min(block, _RESAMPLES - i) for i in range(0, _RESAMPLES, block)]
    means = torch.cat(
        [values[torch.randint(count, (n, count), generator=generator, device="cpu")].mean(1) for n in sizes]
    )
    at = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu")
    low, high = torch.quantile(means, at).tolist()
    return low, high


def complete_gaps(table: pd.DataFrame, errors: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add the gaps to per-image bounds: log_p, L_q and L_star_<family> in, the same and all gaps out (nats)."""
    table, errors = table.copy(), errors.copy()
    families = [c.removeprefix("L_star_") for c in table.columns if c.startswith("L_star_")]
    pairs = {f"approximation_{f}": ("log_p", f"L_star_{f}") for f in families}
    pairs |= {f"amortization_{f}": (f"L_star_{f}", "L_q") for f in families} | {"inference": ("log_p", "L_q")}
    for name, (upper, lower) in pairs.items():
        table[name] = table[upper] - table[lower]
        errors[name] = (errors[upper] ** 2 + errors[lower] ** 2) ** 0.5
    return table, errors
