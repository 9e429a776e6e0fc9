"""What log p̂ of an audit rests on, once mass that q* missed is told apart from luck.

The largest of several noisy means is often just the noisiest. Annealing from the prior, whose chains spread most,
counts as evidence of missed mass only where it is higher by more than its error.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vaegap.bounds import Bound
from vaegap.decomposition import Gaps
from vaegap.paired import complete_gaps

__all__ = ["settled"]

_ENOUGH = 0.01  # nats: less changes no gap that anybody reads


def settled(result: Gaps) -> tuple[Gaps, float]:
    """The same gaps with log p̂ from q* where a wider base is higher by chance only, and the nats by which it is higher.

    Args:
        result: as `vaegap.gaps` gives it.

    Returns:
        the gaps, and what the wide base finds beyond the narrow ones: 0 where log p̂ rests on those.
    """
    evidence = result.evidence
    if evidence.source not in evidence.wide:
        return result, 0.0
    narrow = {"ais": evidence.ais, "iwae": evidence.iwae}
    name = max(narrow, key=lambda n: narrow[n].mean)
    excess, least = _difference(evidence.bound, narrow[name])
    if excess > max(least, _ENOUGH):
        return result, excess
    table, errors = result.table.copy(), result.errors.copy()
    table["log_p"] = narrow[name].per_image.double().cpu().numpy()
    errors["log_p"] = narrow[name].mcse_per_image.double().cpu().numpy()
    columns = [c for c in table if c in ("log_p", "L_q") or str(c).startswith("L_star_")]
    table, errors = complete_gaps(table[columns], errors[columns])
    evidence = replace(evidence, bound=narrow[name], source=name)
    return replace(result, table=table, errors=errors, evidence=evidence), 0.0


def _difference(one: Bound, two: Bound) -> tuple[float, float]:
    """Of two means over the same images (nats), and what it has to exceed: three claimed errors, two by the spread.

    A few chains claim an error that is often too small, so the spread over images is asked too.
    """
    excess = (one.per_image - two.per_image).double()
    claimed = (one.mcse_per_image.square() + two.mcse_per_image.square()).double().sum().sqrt() / len(excess)
    spread = excess.std() / math.sqrt(len(excess)) if len(excess) > 1 else torch.zeros(())
    return excess.mean().item(), max(3 * claimed.item(), 2 * spread.item())
