"""What `vaegap verify` compares: the bounds that each protocol computes anew, and log p̂ from other chains beside them.

The protocols' own functions leave log p̂ out. It stands behind every approximation gap, so here it joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vaegap.energy import quickest_forces
from vaegap.evidence import log_evidence
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols import decompositions, encoder_form, over_training
from vaegap.lab.protocols.measuring import Rows
from vaegap.lab.protocols.models import kept_model
from vaegap.lab.records import Record
from vaegap.local import optimize_local

__all__ = ["log_p_again", "verify_form", "verify_gaps", "verify_generalization"]

_IMAGES = 20
_BLOCK = 50  # images at most, in which a protocol measures


def verify_gaps(ctx: Context, record: Record) -> Rows:
    """Bounds and log p̂ of some training images of a decomposition."""
    return _with_log_p(decompositions.verify_gaps, ctx, record)


def verify_form(ctx: Context, record: Record) -> Rows:
    """The same, with the optimum in the encoder's numbers."""
    return _with_log_p(encoder_form.verify_form, ctx, record)


def verify_generalization(ctx: Context, record: Record) -> Rows:
    """The same of the last epoch's model, on both sets of images."""
    return _with_log_p(over_training.verify_generalization, ctx, record)


def _with_log_p(bounds: Callable[[Context, Record], Rows], ctx: Context, record: Record) -> Rows:
    rows = bounds(ctx, record)
    measured = {(row["split"], row["model"]) for row in rows}
    return rows + [row for split, model in sorted(measured) for row in log_p_again(ctx, record, split, model)]


def log_p_again(ctx: Context, record: Record, split: str, model: str) -> Rows:
    """log p̂ of some images by the estimator that a record published, with other random numbers.

    They are the first ones; where a wider base has taken the estimator's place in some of the blocks in which modes
    were looked for, those after these blocks.

    Args:
        ctx: where the model lies.
        record: which.
        split: whose images.
        model: which of the record's models; its weights are the kept ones.

    Returns:
        rows as the record has them; none where it holds no such images.
    """
    p = record.params
    wide = record.select(metric="log_p_from_wide_base", split=split, model=model)["value"]
    first = 0 if len(wide) and wide.iloc[0] == 0 else -(-int(p.get("checked", 0)) // _BLOCK) * _BLOCK
    published = record.select(metric="log_p", split=split, model=model)
    mean = {kind: record.select(metric=f"log_p_{kind}", split=split, model=model)["value"] for kind in ("ais", "iwae")}
    num = min(_IMAGES, int((published["image"] != "mean").sum()) - first)
    if num < 1 or not all(map(len, mean.values())):
        return []
    kind = max(mean, key=lambda name: float(mean[name].iloc[0]))
    kept = p.get("keep_weights")
    vae = checkpoints.load_model(record.artifact("model.safetensors")) if kept else kept_model(ctx, p)
    x = load_images(p["dataset"], split, num_images=first + num).x[first:]
    best = optimize_local(vae, x, "full_gaussian", num_eval=2, force_dtype=quickest_forces(), seed=12345).posterior
    bound = getattr(log_evidence(vae, x, best, force_dtype=quickest_forces(), seed=54321), kind)
    same: dict[str, Any] = dict(published.iloc[0][["model", "encoder", "decoder"]].dropna())
    same |= {"metric": "log_p", "split": split, "unit": "nats", "bound": "lower"}
    pairs = zip(bound.per_image.tolist(), bound.mcse_per_image.tolist(), strict=True)
    return [{**same, "image": str(first + i), "value": value, "mcse": error} for i, (value, error) in enumerate(pairs)]
