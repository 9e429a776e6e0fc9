"""Section 5.5: gaps on training and held-out images as training goes on."""

from __future__ import annotations

from vaegap.errors import InputError
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.measuring import Rows, decompose, gap_rows, measured_again, width_rows
from vaegap.lab.protocols.models import kept_model, layer_labels, model_folder, spec_of
from vaegap.lab.records import Record
from vaegap.lab.zoo import origin_of, trained
from vaegap.models import VAE

__all__ = ["compute_generalization", "verify_generalization"]

_CERTIFY = 100  # simulated images behind a milestone's width


def compute_generalization(ctx: Context) -> Rows:
    """Gaps at the milestones of a training, and the width of the sandwich behind each one's log p̂."""
    p = ctx.params
    spec = spec_of(p, ctx.profile)
    milestones = tuple(sorted({max(1, round(f * spec.schedule.epochs)) for f in p["fractions"]}))
    images = {
        split: load_images(p["dataset"], split, num_images=p["num_images"]).x for split in ("train", p["heldout"])
    }
    rows: Rows = []

    def measure(epoch: int, vae: VAE) -> None:
        labels = {"model": f"{p['family']} epoch {epoch}", **layer_labels(p)}
        for split, x in images.items():
            columns = decompose(ctx, vae, x, f"{split}-epoch{epoch}", tuple(p["families"]))
            rows.extend(gap_rows(columns, split=split, **labels))
        rows.extend(width_rows(ctx, vae, min(_CERTIFY, p["num_images"]), f"bdmc-epoch{epoch}", **labels))

    _, meta = trained(spec, model_folder(ctx.results, ctx.profile), milestones, measure)
    ctx.notes["model_trained"] = origin_of(meta)
    rows.append({"metric": "epochs", "value": spec.schedule.epochs, "unit": "epochs"})
    return rows


def verify_generalization(ctx: Context, record: Record) -> Rows:
    """The bounds of the last epoch's model, on both sets of images.

    Raises:
        InputError: the record is from before widths were measured at milestones, or the weights are not here.
    """
    if record.select(metric="bdmc_width").empty:
        raise InputError("it has no BDMC widths, which milestones are measured with today: vaegap run --refresh")
    p, spec = record.params, spec_of(record.params, ctx.profile)
    vae = kept_model(ctx, p)
    labels = {"model": f"{p['family']} epoch {spec.schedule.epochs}", **layer_labels(p)}
    return [
        row
        for split in ("train", p["heldout"])
        for row in measured_again(vae, p, min(20, p["num_images"]), split=split, **labels)
    ]
