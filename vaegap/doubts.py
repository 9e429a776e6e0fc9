"""What makes an audit's own numbers doubtful: wide sandwiches, heavy tails, missed modes, chains that do not move."""

from __future__ import annotations

from vaegap.advice import FAMILY_WORDS
from vaegap.audited import Certificate, Part
from vaegap.intake import Finding

__all__ = ["doubts"]


def _disorder(part: Part, which: str) -> list[Finding]:
    """Bounds that are not in the order L[q*] ≤ log p̂(x), by more than their errors."""
    found = []
    rows = part.summary
    for name in rows.index:
        mean, error = rows.loc[name, "mean"], rows.loc[name, "mcse"]
        if str(name).startswith("approximation_") and mean < -max(3 * error, 0.01):
            family = str(name).removeprefix("approximation_")
            found.append(
                Finding("order", f"on the {which}, L[q*] of the {FAMILY_WORDS.get(family, family)} is {-mean:.2f} nats "
                        "above log p̂, which it cannot exceed: log p̂ is too low by at least that",
                        "call vaegap.ais with more temperatures and chains: the gaps below log p̂ are too small")
            )  # fmt: skip
    return found


def doubts(parts: dict[str, Part], certificate: Certificate | None, target: float, modes: bool) -> list[Finding]:
    """What makes an audit's own numbers doubtful.

    Args:
        parts: audited images by name.
        certificate: of log p̂.
        target: the width that was asked for (nats).
        modes: whether missed modes were looked for.
    """
    found = []
    if certificate is not None and certificate.width > target:
        found.append(
            Finding("sandwich", f"the BDMC width is {certificate.width:.2f} nats at {certificate.num_temperatures} "
                    "temperatures: log p̂ and the approximation gap may be too small by about that much",
                    "call vaegap.ais with more temperatures, or read the approximation gap as a lower bound")
        )  # fmt: skip
    for name, part in parts.items():
        which = "images" if name == "images" else f"{name} images"
        bad = [i for i, k in zip(part.table.index, part.khat, strict=False) if k > 0.7]
        if bad:
            found.append(
                Finding("khat", f"k̂ is above 0.7 for {len(bad)} of {len(part.table)} {which} with q* as proposal "
                        f"(first: image {bad[0]}): importance sampling is unreliable there",
                        "log p̂ rests on it all the same, as its mean is the larger: a lower bound whose error is not "
                        "known there" if part.source == "iwae" else "log p̂ rests on annealing, and not on it", "note")
            )  # fmt: skip
        if part.missed:
            most = max(part.missed.values())
            found.append(
                Finding("missed_modes", f"q* missed posterior mass of {len(part.missed)} {which} (images "
                        f"{', '.join(map(str, list(part.missed)[:8]))}; up to {most:.1f} nats)",
                        "annealing from q* is too small by that much there"
                        + ("" if part.source in ("prior", "mixture") else ", and so may be log p̂ and the approximation "
                           "gap: look at these images"))
            )  # fmt: skip
        if part.source in ("prior", "mixture"):
            start = "the prior" if part.source == "prior" else "a mixture of the encoder's q and the prior"
            found.append(
                Finding("wide_evidence", f"on the {which}, annealing that starts from {start} finds {part.beyond:.2f} "
                        "nats more than annealing from q*: the posteriors have mass that q* misses systematically. "
                        "log p̂ is taken from there, and the BDMC width is not about it",
                        "no single Gaussian fits these posteriors: look at latents that could change sign or place "
                        "without changing the image, and try a richer family")
            )  # fmt: skip
        found += _disorder(part, which)
        if part.unsettled:
            first = next(iter(part.unsettled))
            found.append(
                Finding("unsettled", f"q* was not found for {len(part.unsettled)} of {len(part.table)} {which} (first: "
                        f"image {first}: {part.unsettled[first]})",
                        "their approximation gaps are too large and their amortization gaps too small: call "
                        "vaegap.optimize_local on them with a recipe of more steps, and look at the encoder's q there")
            )  # fmt: skip
        if part.stuck:
            found.append(
                Finding("stuck", f"AIS is not to be trusted for {len(part.stuck)} {which} (first: image "
                        f"{next(iter(part.stuck))}: {next(iter(part.stuck.values()))})",
                        "their log p̂ is a bound of unknown looseness: look at these images")
            )  # fmt: skip
    if not modes:
        found.append(
            Finding("unchecked_modes", "missed modes were not looked for",
                    "say check_modes=True, or leave out --no-modes", "note")
        )  # fmt: skip
    return found
