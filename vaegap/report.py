"""The report of an audit as plain text, and the rows that text and HTML share."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vaegap.advice import ENOUGH_IMAGES, FAMILY_WORDS
from vaegap.rounding import plus_minus

if TYPE_CHECKING:
    from vaegap.advice import Advice
    from vaegap.audited import Audit

__all__ = ["facts", "interval", "levels", "text"]

SOURCE_WORDS = {
    "ais": "annealing from q*",
    "iwae": "importance sampling with q*",
    "prior": "annealing from the prior",
    "mixture": "annealing from a mixture of q and the prior",
}

_WIDTH = 80  # of a terminal


def levels(audit: Audit) -> list[tuple[str, str]]:
    """(column of the table, label) from the top of the ladder to its bottom, then the gaps."""
    columns = list(next(iter(audit.parts.values())).table.columns)
    families = sorted(
        (c.removeprefix("L_star_") for c in columns if c.startswith("L_star_")),
        key=lambda f: -next(iter(audit.parts.values())).table[f"L_star_{f}"].mean(),
    )
    rows = [("log_p", "log p̂(x)")]
    rows += [
        (f"L_star_{f}", f"L[q*] {_short(f)} (own)" if f == audit.family else f"L[q*] {FAMILY_WORDS.get(f, f)}")
        for f in families
    ]
    rows += [("L_q", "L[q] (the ELBO)"), ("inference", "inference gap")]
    rows += [
        (f"approximation_{audit.family}", "  approximation gap"),
        (f"amortization_{audit.family}", "  amortization gap"),
    ]
    rows += [(f"approximation_{f}", f"approximation, {_short(f)}") for f in families if f != audit.family]
    return rows


def _short(family: str) -> str:
    return FAMILY_WORDS.get(family, family).removesuffix(" Gaussian")


def facts(audit: Audit) -> list[tuple[str, str]]:
    """(name, value) of what else was found out, part by part where there are two."""
    rows = []
    if audit.certificate is not None:
        c = audit.certificate
        rows.append(
            (
                "BDMC width of log p̂",
                f"{plus_minus(c.width, c.mcse)} nats ({c.num_images} simulated images, {c.num_temperatures} "
                f"temperatures, {c.num_chains} chains)",
            )
        )
    for name, part in audit.parts.items():
        of = f", {name}" if len(audit.parts) > 1 else ""
        bad, own = (sum(k > 0.7 for k in values) for values in (part.khat, part.khat_encoder))
        num = len(part.table)
        few = "" if num >= ENOUGH_IMAGES else f" (too few images to tell: {num}, not {ENOUGH_IMAGES})"
        rows.append((f"active units{of}", f"{part.active_units} of {part.latent_dim}{few}"))
        rows.append((f"log p̂ from{of}", SOURCE_WORDS[part.source]))
        rows.append((f"k̂ > 0.7{of}", f"{bad} of {num} images with q*, {own} of {num} with the encoder's q"))
        rows.append((f"IWAE, 1,000 samples of q{of}", f"{part.iwae:.2f} nats"))
        rows.append((f"images with missed modes{of}", str(len(part.missed)) if audit.settings["check_modes"] else "?"))
    return rows


def text(audit: Audit) -> str:
    """The report for a terminal.

    Args:
        audit: the result.
    """
    m = audit.model
    counts = " and ".join(f"{len(p.table)} {name}" for name, p in audit.parts.items())
    counts = counts if counts.endswith("images") else counts + " images"
    about = (
        f"Audit of {m['name']}: {m['latent_dim']} latents, {m['pixels']} pixels, {m['likelihood']} likelihood, "
        f"q a {FAMILY_WORDS.get(audit.family, audit.family)}."
    )
    lines = [
        *textwrap.wrap(about, _WIDTH),
        *textwrap.wrap(f"{counts}; nats per image, with 95 % intervals over images.", _WIDTH),
        "",
    ]
    parts = {name: part.summary for name, part in audit.parts.items()}
    labels = levels(audit)
    wide = max(len(label) for _, label in labels) + 1
    for spare in range(3):  # decimals, where the intervals are wide and the terminal is not
        cells = {n: {column: interval(rows.loc[column], spare) for column, _ in labels} for n, rows in parts.items()}
        room = max(len(cell) for part in cells.values() for cell in part.values()) + 1
        if wide + room * len(parts) <= _WIDTH:
            break
    lines.append(" " * wide + "".join(f"{name:>{room}}" for name in parts))
    for column, label in labels:
        if column == "inference":
            lines.append("-" * (wide + room * len(parts)))
        lines.append(label.ljust(wide) + "".join(part[column].rjust(room) for part in cells.values()))
    lines.append("")
    for name, value in facts(audit):
        lines += textwrap.wrap(f"{name}: {value}", _WIDTH, subsequent_indent="  ")
    for title, severity in (("Warnings", "warning"), ("Notes", "note")):
        found = [f for f in audit.findings if f.severity == severity]
        if found:
            lines += ["", f"{title}"]
            lines += _bullets([f"{f.message}. Cure: {f.cure}." for f in found])
    lines += ["", "Advice, with the gain it could bring at most (nats per image)"]
    lines += _bullets([f"{_gain(a)}{a.text}." for a in audit.advice])
    return "\n".join(lines)


def interval(row: Mapping[str, Any], spare: int = 0) -> str:
    """A mean with its interval: two decimals, and fewer where the interval is hundreds of nats wide.

    Args:
        row: mean, ci_low and ci_high.
        spare: decimals that may be left out where the interval is wide.

    Example:
        >>> interval({"mean": -0.001, "ci_low": -0.004, "ci_high": 0.002})
        '0.00 [0.00, 0.00]'
    """
    size = (row["ci_high"] - row["ci_low"]) * 10**spare
    places = 2 if size < 100 else 1 if size < 1000 else 0
    mean, low, high = (_signed(row[k], places) for k in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def _signed(value: float, places: int) -> str:
    """No minus before nothing."""
    return f"{round(value, places) + 0.0:.{places}f}"


def _gain(advice: Advice) -> str:
    """What stands before a piece of advice; nothing where it is not about nats."""
    if not advice.gain:
        return ""
    return f"[{_signed(advice.gain, 2)} measured] " if advice.measured else f"[{_signed(advice.gain, 2)}] "


def _bullets(items: list[str]) -> list[str]:
    lines = []
    for item in items:
        lines += textwrap.wrap(item, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    return lines
