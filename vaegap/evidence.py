r"""log p̂(x): annealed and importance-weighted from a locally optimal q, certified by BDMC, checked for missed modes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vaegap.annealing import Sandwich, ais, bdmc
from vaegap.bounds import Bound, iwae
from vaegap.errors import InputError
from vaegap.local import optimize_local
from vaegap.models import Model
from vaegap.posteriors import Posterior

__all__ = ["LogEvidence", "log_evidence"]


@dataclass(frozen=True)
class LogEvidence:
    """log p̂(x) with what it rests on.

    Args:
        bound: the chosen bound, per image in nats: whichever of `ais`, `iwae` and `wide` has the largest mean (all are
            lower bounds; the paper's rule).
        ais: annealed importance sampling from the best Gaussian q*.
        iwae: the importance-weighted bound with that q* as its proposal.
        sandwich: BDMC with the settings of `ais` on simulated images, or None if it was not asked for.
        missed: indices of images where AIS from the prior or a defensive mixture found more mass, and the difference.
        wide: AIS from the prior and from the mixture, if missed modes were looked for.
        source: which of them `bound` is: "ais", "iwae", or the base of a wide one, "prior" or "mixture". Wide ones win
            where q* misses much mass, and now and then by chance (an audit tells these apart).
    """

    bound: Bound
    ais: Bound
    iwae: Bound
    sandwich: Sandwich | None
    missed: dict[int, float]
    wide: dict[str, Bound] = field(default_factory=dict)
    source: str = "ais"


def log_evidence(
    vae: Model,
    x: Tensor,
    best: Posterior,
    num_chains: int = 16,
    num_temperatures: int = 20,
    num_importance: int = 1000,
    certify: int = 0,
    check_modes: bool = False,
    force_dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogEvidence:
    r"""log p̂(x): the largest mean of AIS and IWAE from a locally optimal Gaussian, and of AIS from wide bases.

    Args:
        vae: the model.
        x: images (N, D).
        best: a (full-covariance) Gaussian fitted to these images: the base of AIS and IWAE's proposal.
        num_chains, num_temperatures: of AIS.
        num_importance: samples of IWAE.
        certify: images to simulate for BDMC with the same settings; 0 for none.
        check_modes: also run AIS from wide bases, the prior and the defensive mixture of the encoder's q and the prior,
            and report images where either is higher by more than 3 standard errors and 0.5 nat, twice: `best` has
            missed a mode. With a prior other than N(0, I), from the prior alone.
        force_dtype, seed, progress: as in `ais`.

    Source: the max rule: Cremer et al. 2018, section 5 (as in their code); BDMC: Grosse et al. 2015.
    """
    if num_chains < 2:
        raise InputError(f"num_chains={num_chains}: the error of log p̂ needs at least 2 chains")
    options: dict[str, Any] = {"num_chains": num_chains, "force_dtype": force_dtype, "progress": progress}
    candidates = {"ais": ais(vae, x, num_temperatures=num_temperatures, base=best, seed=seed, **options)}
    candidates["iwae"] = iwae(vae, x, num_importance, best, seed=seed + 1)
    wide: dict[str, Bound] = {}
    missed: dict[int, float] = {}
    # neither base is enough: chains of the mixture move at q's scale, those of the prior need many temperatures
    for base in (("prior", "mixture") if vae.prior is None else ("prior",)) if check_modes else ():
        more = {"num_temperatures": max(100, num_temperatures), "base": base, **options}
        wide[base] = ais(vae, x, seed=seed + 2, **more)
        for i, excess in _missed(vae, x, candidates["ais"], wide[base], seed + 102, more).items():
            missed[i] = max(excess, missed.get(i, excess))
    candidates |= wide
    source = max(candidates, key=lambda name: candidates[name].mean)
    sandwich = None
    if certify:

        def fit(images: Tensor) -> Posterior:
            return optimize_local(
                vae, images, best.family, num_eval=2, force_dtype=force_dtype, seed=seed + 3
            ).posterior

        try:
            sandwich = bdmc(vae, certify, num_temperatures=num_temperatures, base=fit, seed=seed + 4, **options)
        except InputError as error:  # its indices are not those of x
            raise InputError(f"on images simulated from the model (certify=0 does without them): {error}") from error
    return LogEvidence(candidates[source], candidates["ais"], candidates["iwae"], sandwich, missed, wide, source)


def _missed(
    vae: Model, x: Tensor, annealed: Bound, wide: Bound, seed: int, options: dict[str, Any]
) -> dict[int, float]:
    """Images where AIS from a wider base is higher, also in a second run: a few chains' error bars are rough."""
    found = torch.tensor(sorted(_higher(wide, annealed)), dtype=torch.long, device=x.device)
    if len(found) == 0:
        return {}
    lower = replace(
        annealed, per_image=annealed.per_image[found], mcse_per_image=annealed.mcse_per_image[found], flagged=None
    )
    try:
        second = ais(vae, x[found], seed=seed, **options)
    except InputError as error:
        raise error.among(found.tolist()) from error
    again = _higher(second, lower)
    return {int(found[i]): excess for i, excess in again.items()}


def _higher(wide: Bound, annealed: Bound) -> dict[int, float]:
    """By how much, where it is more than 3 standard errors and half a nat."""
    excess = (wide.per_image - annealed.per_image).cpu()
    error = (wide.mcse_per_image.square() + annealed.mcse_per_image.square()).sqrt().cpu()
    high = excess > torch.maximum(3 * error, torch.full_like(error, 0.5))
    return {i: excess[i].item() for i in high.nonzero().flatten().tolist()}
