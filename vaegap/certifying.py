"""How tight log p̂ is: temperatures of AIS chosen on some simulated images, and the width measured on others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vaegap.annealing import Sandwich, bdmc
from vaegap.audited import Certificate
from vaegap.errors import InputError
from vaegap.local import optimize_local
from vaegap.models import Model
from vaegap.posteriors import Posterior

__all__ = ["certify_evidence", "fast_forces"]

_LADDER = (20, 40, 80, 160)  # temperatures of AIS, tried until the sandwich is narrow enough
_CHAINS = 16


def certify_evidence(
    model: Model, num: int, target: float, force_dtype: torch.dtype | None, seed: int, progress: bool
) -> tuple[int, Certificate | None]:
    """Temperatures of AIS that make the sandwich narrow enough, and the sandwich's width.

    Args:
        model: whose log p̂ is certified.
        num: images to simulate; 0 for no certificate.
        target: width (nats) at which the search for temperatures ends.
        force_dtype, seed, progress: as in `audit`.
    """
    if num == 0:
        return _LADDER[0], None
    fitted: dict[bytes, Posterior] = {}

    def fit(images: Tensor) -> Posterior:  # the simulated images of one seed are the same at every temperature
        key = images.double().sum(1).cpu().numpy().tobytes()
        if key not in fitted:
            fitted[key] = optimize_local(
                model, images, "full_gaussian", num_eval=2, force_dtype=force_dtype, seed=seed + 3
            ).posterior
        return fitted[key]

    def sandwich(steps: int, seed: int) -> Sandwich:
        try:
            return bdmc(model, num, _CHAINS, steps, fit, force_dtype=force_dtype, seed=seed, progress=progress)
        except InputError as error:
            raise InputError(f"on images simulated from the model (certify=0 does without them): {error}") from error

    for steps in _LADDER:
        tried = sandwich(steps, seed + 4)
        if tried.width + tried.mcse <= target:
            break
    # a run that stopped the search is narrow by luck too: the width is measured on other images
    final = sandwich(steps, seed + 1004)
    return steps, Certificate(final.width, final.mcse, num, steps, _CHAINS)


def fast_forces(model: Model) -> torch.dtype | None:
    """bfloat16 where the processor has instructions for it: leapfrog forces may be rounded, energies are not."""
    if model.dtype != torch.float32:
        return None
    if model.device.type == "cuda":
        return torch.bfloat16
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None
