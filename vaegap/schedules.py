"""Where the temperatures of AIS lie."""

from __future__ import annotations

import torch
from torch import Tensor

from vaegap.errors import InputError

__all__ = ["even_temperatures", "spread", "temperatures"]


def temperatures(num: int, schedule: str = "sigmoid") -> Tensor:
    """Inverse temperatures 0 = β_0 < ... < β_num = 1 (double).

    Args:
        num: number of increments.
        schedule: "linear" as in the paper's AIS, or "sigmoid" with δ = 4, which moves slowly near both ends
            (Wu et al. 2017, appendix).

    Example:
        >>> temperatures(2, "linear").tolist()
        [0.0, 0.5, 1.0]
    """
    if num < 1 or schedule not in ("linear", "sigmoid"):
        raise InputError(f"temperatures wants num >= 1 and 'linear' or 'sigmoid'; got {num}, {schedule!r}")
    t = torch.linspace(0, 1, num + 1, dtype=torch.float64)
    if schedule == "linear":
        return t
    s = torch.sigmoid(8 * t - 4)
    return (s - s[0]) / (s[-1] - s[0])


def spread(parts: tuple[Tensor, ...]) -> float:
    """Root mean square over images of the chains' standard deviation of the weight per unit of β.

    Images whose energy is not finite are left out: their own weights tell, and the others' temperatures stay good.
    """
    variance = (parts[1] - parts[0]).double().var(0)
    fine = torch.isfinite(variance)
    return float(variance[fine].mean().sqrt()) if fine.any() else 1.0


def even_temperatures(betas: Tensor, spreads: list[float], num: int) -> Tensor:
    """Temperatures at which every increment of the log-weight has about the same standard deviation.

    Equal steps of ∫ sd(β) dβ, the thermodynamic length (Gelman & Meng 1998, section 4); the spread at β = 1 is taken to
    be that of the last temperature below it.
    """
    height = torch.tensor([*spreads, spreads[-1]], dtype=torch.float64)
    length = torch.cat([torch.zeros(1, dtype=torch.float64), ((height[1:] + height[:-1]) / 2 * betas.diff()).cumsum(0)])
    wanted = torch.linspace(0, float(length[-1]), num + 1, dtype=torch.float64)
    at = torch.searchsorted(length, wanted).clamp(1, len(betas) - 1)
    share = (wanted - length[at - 1]) / (length[at] - length[at - 1]).clamp_min(1e-12)
    out = betas[at - 1] + share * (betas[at] - betas[at - 1])
    out[0], out[-1] = 0.0, 1.0
    return out
