"""Section 5.2 and its kin: one model's gaps on training and held-out images."""

from __future__ import annotations

from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.measuring import Rows, active_units, decompose, gap_rows, measured_again, width_rows
from vaegap.lab.protocols.models import kept_model, layer_labels, model_of, spec_of
from vaegap.lab.records import Record
from vaegap.lab.zoo import origin_of

__all__ = ["compute_gaps", "verify_gaps"]


def compute_gaps(ctx: Context) -> Rows:
    """The decomposition of training and held-out images, active units, and the width of the sandwich."""
    p = ctx.params
    vae, meta = model_of(p, ctx.profile, ctx.results)
    checkpoints.save_model(ctx.artifact("model.safetensors"), vae) if p["keep_weights"] else None
    rows: Rows = []
    for split, num in (("train", p["num_train"]), ("test", p["num_heldout"])):
        x = load_images(p["dataset"], split, num_images=num).x
        columns = decompose(ctx, vae, x, split, tuple(p["families"]), p["checked"])
        rows += gap_rows(columns, split=split, model=p["family"], **layer_labels(p))
        rows.append({"split": split, "metric": "active_units", "value": active_units(vae, x), "unit": "units"})
    rows += width_rows(ctx, vae, p["certify"], model=p["family"], **layer_labels(p))
    rows.append({"metric": "train_elbo", "value": meta["history"][-1]["elbo"], "unit": "nats", "split": "train"})
    rows.append({"metric": "train_seconds", "value": meta["seconds"], "unit": "s"})
    ctx.notes |= {"model": spec_of(p, ctx.profile).id, "model_trained": origin_of(meta)}
    return rows


def verify_gaps(ctx: Context, record: Record) -> Rows:
    """The bounds of the first images, with other random numbers, from the kept weights."""
    p = record.params
    if p["keep_weights"]:
        vae = checkpoints.load_model(record.artifact("model.safetensors"))
    else:
        vae = kept_model(ctx, p)
    labels = {"split": "train", "model": p["family"], **layer_labels(p)}
    return measured_again(vae, p, min(20, p["num_train"]), **labels)
