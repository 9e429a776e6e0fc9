"""What to change in a VAE, derived from its gaps: each piece of advice comes with the nats it could gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from vaegap.audited import Part

__all__ = ["ENOUGH_IMAGES", "FAMILY_WORDS", "Advice", "advise"]

FAMILY_WORDS = {
    "gaussian": "factorized Gaussian",
    "full_gaussian": "full-covariance Gaussian",
    "flow": "flow",
    "aux_flow": "auxiliary flow",
    "spline": "spline flow",
}

ENOUGH_IMAGES = 20  # fewer do not tell a latent that is inactive from one that they happen not to need

_SMALL = 0.1  # nats: less than anybody would change a model for


@dataclass(frozen=True)
class Advice:
    """One thing to change.

    Args:
        kind: "encoder", "family", "refine", "encoder_overfits", "decoder_overfits", "units" or "enough".
        text: what, and why, with numbers.
        gain: nats per image that it could gain at most ("refine": that it gained when it was tried).
        low, high: 95 % interval of `gain` over images.
        measured: whether the gain was measured, not bounded.
    """

    kind: str
    text: str
    gain: float
    low: float
    high: float
    measured: bool = False


def advise(parts: dict[str, Part], family: str) -> list[Advice]:
    """Advice from an audit's numbers, largest gain first.

    Args:
        parts: audited images by name; "held-out" decides where it is there.
        family: the encoder's own posterior family.
    """
    part = parts.get("held-out") or next(iter(parts.values()))
    rows = part.summary
    total, amortization = rows.loc["inference"], rows.loc[f"amortization_{family}"]
    found = [_encoder(total, amortization, part), _family(rows, family)]
    if part.refined is not None and part.refined.gain > _SMALL:
        tried = part.refined
        text = (
            f"{tried.steps} gradient steps on q at test time, started from the encoder, gained {tried.gain:.1f} nats "
            "when they were tried here: a cure without retraining"
        )
        found.append(Advice("refine", text, tried.gain, tried.low, tried.high, True))
    if {"training", "held-out"} <= set(parts):
        found += _overfitting(parts["training"], parts["held-out"], family)
    idle = part.latent_dim - part.active_units
    if idle and len(part.table) >= ENOUGH_IMAGES:
        text = (
            f"{idle} of {part.latent_dim} latents are inactive (their posterior mean varies by less than 0.01 over "
            f"these images): {part.active_units} would do, and would make q easier to learn"
        )
        found.append(Advice("units", text, 0.0, 0.0, 0.0))
    if total["mean"] < 0.5:
        text = (
            f"at most {max(total['mean'], 0):.2f} nats are lost to inference: a better log p(x) has to come from the "
            "decoder, the prior or the data"
        )
        found.append(Advice("enough", text, 0.0, 0.0, 0.0))
    kept = [a for a in found if a.gain > _SMALL or a.kind in ("units", "enough")]
    return sorted(kept, key=lambda a: -a.gain) or found[:1]


def _encoder(total: pd.Series, row: pd.Series, part: Part) -> Advice:
    share = f"{row['mean']:.1f} of {total['mean']:.1f} nats are amortization"
    text = f"{share}: a larger or longer trained encoder would buy at most {row['mean']:.1f}"
    if part.refined is not None:
        text = f"{share}: a larger encoder or a few refinement steps at test time would buy at most {row['mean']:.1f}"
    return Advice("encoder", text, row["mean"], row["ci_low"], row["ci_high"])


def _family(rows: pd.DataFrame, family: str) -> Advice:
    row, total = rows.loc[f"approximation_{family}"], rows.loc["inference", "mean"]
    text = (
        f"{row['mean']:.1f} of {total:.1f} nats are approximation: with this decoder, a flow or any other family "
        f"richer than the {FAMILY_WORDS.get(family, family)} would buy at most {row['mean']:.1f}"
    )
    tried = []
    for name, words in FAMILY_WORDS.items():
        gain = row["mean"] - rows.loc[f"approximation_{name}", "mean"] if f"approximation_{name}" in rows.index else 0.0
        if name != family and gain > _SMALL:
            tried.append(f"{gain:.1f} with a {words}")
    if tried:
        text += f" ({', '.join(tried)}, at its optimum)"
    return Advice("family", text, row["mean"], row["ci_low"], row["ci_high"])


def _overfitting(training: Part, heldout: Part, family: str) -> list[Advice]:
    """Differences between the two sets of images, where they are more than noise."""
    found = []
    for kind, column, sign, text in (
        (
            "encoder_overfits",
            f"amortization_{family}",
            1,
            "the amortization gap is {:.1f} nats larger on held-out images: the encoder overfits. More or augmented "
            "data, or training it on samples of the decoder too, would buy at most that",
        ),
        (
            "decoder_overfits",
            "log_p",
            -1,
            "log p(x) itself is {:.1f} nats lower on held-out images: the decoder overfits, or the images differ. A "
            "smaller or regularized decoder, or stopping earlier, would buy at most that",
        ),
    ):
        one, two = heldout.table[column], training.table[column]
        gain = sign * (one.mean() - two.mean())
        error = (one.var() / len(one) + two.var() / len(two)) ** 0.5
        if gain > max(_SMALL, 1.96 * error):
            found.append(Advice(kind, text.format(gain), gain, gain - 1.96 * error, gain + 1.96 * error))
    return found
