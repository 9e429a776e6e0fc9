"""Section 5.5: gaps on training and held-out images as training goes on."""

from __future__ import annotations

from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.measuring import Rows, decompose, gap_rows, measured_again, width_rows
from vaegap.lab.protocols.models import kept_model, model_folder, spec_of, widths
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
        labels = {"model": f"{p['family']} epoch {epoch}", **widths(p)}
        for split, x in images.items():
            columns = decompose(ctx, vae, x, f"{split}-epoch{epoch}", tuple(p["families"]))
            rows.extend(gap_rows(columns, split=split, **labels))
        rows.extend(width_rows(ctx, vae, min(_CERTIFY, p["num_images"]), f"bdmc-epoch{epoch}", **labels))

    _, meta = trained(spec, model_folder(ctx.results, ctx.profile), milestones, measure)
    ctx.notes["model_trained"] = origin_of(meta)
    rows.append({"metric": "epochs", "value": spec.schedule.epochs, "unit": "epochs"})
    return rows


def verify_generalization(ctx: Context, record: Record) -> Rows:
    """The same for the last epoch of a training, on both sets of images."""
    p, spec = record.params, spec_of(record.params, ctx.profile)
    vae = kept_model(ctx, p)
    labels = {"model": f"{p['family']} epoch {spec.schedule.epochs}", **widths(p)}
    return [
        row
        for split in ("train", p["heldout"])
        for row in measured_again(vae, p, min(20, p["num_images"]), split=split, **labels)
    ]
