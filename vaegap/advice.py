"""What to change in a VAE, derived from its gaps: each piece of advice comes with the nats it could gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from vaegap.audited import Certificate, Part

__all__ = ["ENOUGH_IMAGES", "FAMILY_WORDS", "Advice", "advise"]

FAMILY_WORDS = {
    "gaussian": "factorized Gaussian",
    "full_gaussian": "full-covariance Gaussian",
    "flow": "flow",
    "aux_flow": "auxiliary flow",
    "spline": "spline flow",
}

ENOUGH_IMAGES = 20  # fewer do not tell a latent that is inactive from one that they happen not to need

_FEW = 0.1  # of the images may lack a q* before gaps to it say nothing about the family
_SMALL = 0.1  # nats: less than anybody would change a model for


@dataclass(frozen=True)
class Advice:
    """One thing to change.

    Args:
        kind: "encoder", "family", "refine", "encoder_overfits", "decoder_overfits", "units", "blind", "enough" or
            "unclear".
        text: what, and why, with numbers.
        gain: nats per image that it could gain at most ("refine": that it gained when it was tried); 0 for none.
        low, high: 95 % interval of `gain` over images.
        measured: whether the gain was measured, not bounded.
    """

    kind: str
    text: str
    gain: float
    low: float
    high: float
    measured: bool = False


def advise(parts: dict[str, Part], family: str, certificate: Certificate | None = None) -> list[Advice]:
    """Advice from an audit's numbers, largest gain first.

    A gap that is not above its own error is no reason for any.

    Args:
        parts: audited images by name; "held-out" decides where it is there.
        family: the encoder's own posterior family.
        certificate: of log p̂; where it is wide, gaps below log p̂ may be larger than they look.
    """
    part = parts.get("held-out") or next(iter(parts.values()))
    rows = part.summary
    total, amortization = rows.loc["inference"], rows.loc[f"amortization_{family}"]
    loose = certificate.width if certificate is not None and certificate.width > _SMALL else 0.0
    both = set(parts) >= {"training", "held-out"}
    overfitting = _overfitting(parts["training"], part, family) if both else []
    learned = None
    if any(a.kind == "encoder_overfits" for a in overfitting):
        learned = parts["training"].table[f"amortization_{family}"].mean()
    found = []
    if _clear(amortization):
        found.append(_encoder(total, amortization, part, learned))
    # what is left of the way to q* would be laid at the family's door
    settled = len(part.unsettled) <= _FEW * len(part.table)
    if settled and _clear(rows.loc[f"approximation_{family}"]):
        found.append(_family(rows, family, loose))
    if part.refined is not None and part.refined.gain > _SMALL and part.refined.low > 0:
        tried = part.refined
        text = (
            f"{tried.steps} gradient steps on q at test time, started from the encoder, gained {_nats(tried.gain)} "
            "nats when they were tried here: a cure without retraining"
        )
        found.append(Advice("refine", text, tried.gain, tried.low, tried.high, True))
    found += overfitting
    if len(part.table) >= ENOUGH_IMAGES:
        found += _units(part)
    most = max(total["mean"], 0) + loose
    if most < 0.5:
        text = (
            f"at most {most:.2f} nats are lost to inference: a better log p(x) has to come from the decoder, the prior "
            "or the data"
        )
        found.append(Advice("enough", text, 0.0, 0.0, 0.0))
    elif not found:
        text = (
            f"the inference gap is {_nats(total['mean'])} nats, but neither of its parts is clear of its error: audit "
            "more images, with more samples"
        )
        found.append(Advice("unclear", text, 0.0, 0.0, 0.0))
    return sorted(found, key=lambda a: -a.gain)


def _nats(value: float, beside: float | None = None) -> str:
    """A gain in a sentence: one decimal, two where it or what it is compared with is below 1, none above 1000."""
    size = abs(value if beside is None else beside)
    return f"{value:.{2 if size < 1 else 0 if size >= 1000 else 1}f}"


def _clear(row: pd.Series) -> bool:
    """Whether a gap is worth a word: larger than anybody's noise, and than its own errors."""
    return bool(row["mean"] > max(_SMALL, 3 * row["mcse"]) and row["ci_low"] > 0)


def _encoder(total: pd.Series, row: pd.Series, part: Part, learned: float | None) -> Advice:
    """What the encoder costs. `learned` is the gap on training images, where that on held-out ones is larger."""
    gap = _nats(row["mean"], total["mean"])
    share = f"{gap} of {_nats(total['mean'])} nats are amortization"
    if learned is not None:
        text = (
            f"{share}, but only {_nats(max(learned, 0.0), total['mean'])} on training images: the rest is overfitting, "
            "which a larger encoder alone would not mend. "
            + ("A few refinement steps at test time" if part.refined is not None else "All cures of the encoder")
            + f" would buy at most {gap}"
        )
    elif part.refined is not None:
        text = f"{share}: a larger encoder or a few refinement steps at test time would buy at most {gap}"
    else:
        text = f"{share}: a larger or longer trained encoder would buy at most {gap}"
    return Advice("encoder", text, row["mean"], row["ci_low"], row["ci_high"])


def _family(rows: pd.DataFrame, family: str, loose: float) -> Advice:
    row, total = rows.loc[f"approximation_{family}"], rows.loc["inference", "mean"]
    gap = _nats(row["mean"], total)
    text = (
        f"{gap} of {_nats(total)} nats are approximation: with this decoder, a flow or any other family "
        f"richer than the {FAMILY_WORDS.get(family, family)} would buy at most {gap}"
    )
    if loose:
        text += f", and up to {_nats(loose)} more, as log p̂ may be too low by its BDMC width"
    tried = []
    for name, words in FAMILY_WORDS.items():
        gain = row["mean"] - rows.loc[f"approximation_{name}", "mean"] if f"approximation_{name}" in rows.index else 0.0
        if name != family and gain > _SMALL:
            tried.append(f"{_nats(gain, total)} with a {words}")
    if tried:
        text += f" ({', '.join(tried)}, at its optimum)"
    return Advice("family", text, row["mean"], row["ci_low"], row["ci_high"])


def _units(part: Part) -> list[Advice]:
    """Latents of which nobody makes use, and those of which only the encoder makes none."""
    found, size = [], part.latent_dim
    idle, blind = part.idle_units, size - part.active_units - part.idle_units
    if idle == size:
        text = (
            f"none of {size} latents is active, neither in the encoder nor at the best q: the posterior has collapsed, "
            "and the decoder models the images without latents. Anneal the KL term in training, or lower its weight"
        )
        found.append(Advice("units", text, 0.0, 0.0, 0.0))
    elif idle:
        text = (
            f"{idle} of {size} latents are inactive (the mean of q varies by less than 0.01 over these images, at its "
            f"best too): {size - idle} would do. That gains nothing by itself, and makes q easier to learn"
        )
        found.append(Advice("units", text, 0.0, 0.0, 0.0))
    if blind:
        text = (
            f"{blind} of {size} latents are ignored by the encoder (its mean varies by less than 0.01 over these "
            "images), but not by the best q: they are a part of the amortization gap"
        )
        found.append(Advice("blind", text, 0.0, 0.0, 0.0))
    return found


def _overfitting(training: Part, heldout: Part, family: str) -> list[Advice]:
    """Differences between the two sets of images, where they are more than noise."""
    found = []
    for kind, column, sign, text in (
        (
            "encoder_overfits",
            f"amortization_{family}",
            1,
            "the amortization gap is {} nats larger on held-out images: the encoder overfits. More or augmented "
            "data, or training it on samples of the decoder too, would buy at most that",
        ),
        (
            "decoder_overfits",
            "log_p",
            -1,
            "log p(x) itself is {} nats lower on held-out images: the decoder overfits, or the images differ. A "
            "smaller or regularized decoder, or stopping earlier, would buy at most that",
        ),
    ):
        one, two = heldout.table[column], training.table[column]
        gain = sign * (one.mean() - two.mean())
        error = (one.var() / len(one) + two.var() / len(two)) ** 0.5
        if gain > max(_SMALL, 1.96 * error):
            found.append(Advice(kind, text.format(_nats(gain)), gain, gain - 1.96 * error, gain + 1.96 * error))
    return found
