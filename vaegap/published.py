"""The published procedure of local optimisation, for comparison with ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaegap.ascent import ascend
from vaegap.bounds import Bound, elbo, join_bounds
from vaegap.climbing import LocalFit
from vaegap.energy import LogJoint
from vaegap.errors import InputError
from vaegap.evaluation import evaluating, make_generator
from vaegap.models import Model
from vaegap.posteriors import Family, Posterior
from vaegap.progress import bar

__all__ = ["published"]

_NUMBERS = 2**18  # parameters optimised together: Adam holds five tensors of that size


def published(
    vae: Model, x: Tensor, family: Family, num_eval: int, *, force_dtype: torch.dtype | None, seed: int, progress: bool
) -> LocalFit:
    """q* of all images, see `optimize_local`; one stopping rule for each group that memory has room for.

    Five thousand Gaussians of 50 latents are one group; flows, with tens of thousands of numbers an image, come in
    groups of 64.
    """
    zeros = torch.zeros(1, vae.latent_dim, dtype=vae.dtype, device=vae.device)
    group = max(64, 2 * _NUMBERS // family.numbers_per_image())
    params: dict[str, Tensor] = {}
    ends: list[Bound] = []
    starts: list[Bound] = []
    steps = torch.zeros(len(x), dtype=torch.long)
    with bar(desc=f"published q* {family.name}", show=progress) as progressed:
        for first in range(0, len(x), group):
            part = slice(first, min(first + group, len(x)))
            begin = zeros.expand(part.stop - part.start, -1)
            start = family.posterior(begin, begin)
            try:
                best, steps[part] = _ascend(vae, x[part], start, force_dtype, seed + first, progressed.update)
                ends.append(elbo(vae, x[part], max(2, num_eval), best, seed=seed + first + 1))
                starts.append(elbo(vae, x[part], max(2, num_eval), start, seed=seed + first + 2))
            except InputError as error:
                raise error.among(range(part.start, part.stop)) from error
            for name, value in best.params.items():
                if name not in params:
                    params[name] = value.new_empty((len(x), *value.shape[1:]))
                params[name][part] = value
    return LocalFit(join_bounds(ends), Posterior(family, params), join_bounds(starts), steps)


def _ascend(
    vae: Model, x: Tensor, start: Posterior, force_dtype: torch.dtype | None, seed: int, tick: Callable[[], object]
) -> tuple[Posterior, int]:
    """Windows of 100 steps until eleven in a row have failed to beat the best, and the steps that took."""
    generator = make_generator(vae, seed)
    best, bad, steps, level = start, 0, 0, -math.inf
    with evaluating(vae), torch.enable_grad():
        for now in ascend(LogJoint(vae, x, force_dtype), start, 10**6, 100, 1e-3, 0.999, generator, path=False):
            steps += 1
            tick()
            if steps % 100:
                continue
            with torch.no_grad():
                mean = elbo(vae, x, 100, now.detach(), seed=seed + steps).mean
            if mean > level:
                best, bad, level = (
                    Posterior(now.family, {k: v.detach().clone() for k, v in now.params.items()}),
                    0,
                    mean,
                )
            else:
                bad += 1
            if bad > 10:
                break
    return best.detach(), steps
