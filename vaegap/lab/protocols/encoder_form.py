"""Which q* an encoder can reach: the best flow in the numbers that it gives for each image, beside the best flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vaegap.climbing import LocalFit, climb
from vaegap.energy import quickest_forces
from vaegap.errors import InputError
from vaegap.evaluation import encode, evaluating
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.measuring import Rows, decompose, gap_rows, in_blocks, measured_again, width_rows
from vaegap.lab.protocols.models import kept_model, layer_labels, model_of, spec_of
from vaegap.lab.records import Record
from vaegap.lab.zoo import origin_of
from vaegap.local import RECIPES
from vaegap.models import VAE
from vaegap.natural import is_plain_gaussian

__all__ = ["best_in_form", "compute_form", "verify_form"]

_METRIC = "L_star_encoder_form"


def best_in_form(vae: VAE, x: Tensor, num_eval: int = 500, seed: int = 0, **options: Any) -> LocalFit:
    """The best posterior of each image that differs from the encoder's in this image's own numbers alone.

    An amortized flow has weights that all images share; for each image the encoder gives the mean, the variances and,
    of an auxiliary flow, the first biases of its networks. These move here, and the shared weights stay. The encoder's
    posterior is the start, and the better of start and end is kept.

    Args:
        vae: a model whose encoder predicts a flow.
        x: images (N, D).
        num_eval: samples behind the reported bound.
        seed: of everything random.
        options: `force_dtype` and `progress`, as in `optimize_local`.

    Raises:
        InputError: the encoder's family is Gaussian, all of whose numbers are the image's own: `optimize_local`.
    """
    with evaluating(vae):
        encoder = encode(vae, x).detach()
        twice = vae.encode(x[:1].expand(2, -1))
    if is_plain_gaussian(encoder):
        raise InputError(
            f"family {encoder.family.name!r} shares no weights among images, so its q* is the encoder's form already; "
            "choose one of the flows"
        )
    shared = frozenset(name for name, value in twice.params.items() if value.shape[0] == 1)
    plan = replace(RECIPES[encoder.family.name], steps=400, samples=8, lr=1e-2, chunk=64, rounds=2, repeats=6)
    options = {"force_dtype": None, "progress": False} | options
    return climb(vae, x, encoder, encoder.family, plan, num_eval, seed=seed, shared=shared, **options)


def compute_form(ctx: Context) -> Rows:
    """The decomposition of some images with both optima."""
    p = ctx.params
    vae, meta = model_of(p, ctx.profile, ctx.results)
    rows: Rows = []
    for split, num in (("train", p["num_train"]), ("test", p["num_heldout"])):
        x = load_images(p["dataset"], split, num_images=num).x
        columns = decompose(ctx, vae, x, split, tuple(p["families"]))
        form = _form(ctx, vae, x, split)
        columns["unfinished"] = torch.maximum(columns["unfinished"], form.pop("unfinished"))
        columns |= form
        rows += gap_rows(columns, split=split, model=p["family"], **layer_labels(p))
    rows += width_rows(ctx, vae, p["certify"], model=p["family"], **layer_labels(p))
    ctx.notes |= {"model": spec_of(p, ctx.profile).id, "model_trained": origin_of(meta)}
    return rows


def _form(ctx: Context, vae: VAE, x: Tensor, split: str) -> dict[str, Tensor]:
    def block(part: slice, seed: int) -> dict[str, Tensor]:
        print(f"{ctx.run_id}: {split}, encoder's form, images {part.start} to {part.stop - 1}", flush=True)
        bound = best_in_form(vae, x[part], seed=seed, force_dtype=quickest_forces()).bound
        unfinished = torch.zeros(len(x[part]), dtype=torch.float64)
        unfinished[list(bound.flagged or {})] = 1.0
        values = {_METRIC: bound.per_image, f"{_METRIC}_mcse": bound.mcse_per_image}
        return {name: value.double() for name, value in values.items()} | {"unfinished": unfinished}

    return in_blocks(ctx, f"{split}-form", len(x), block)


def verify_form(ctx: Context, record: Record) -> Rows:
    """Both optima of the first images, with other random numbers, from the kept weights."""
    p: Mapping[str, Any] = record.params
    vae, num = kept_model(ctx, p), min(20, record.params["num_train"])
    labels = {"split": "train", "model": p["family"], **layer_labels(p)}
    rows = measured_again(vae, p, num, **labels)
    x = load_images(p["dataset"], "train", num_images=num).x
    bound = best_in_form(vae, x, seed=12345, force_dtype=quickest_forces()).bound
    same = {**labels, "metric": _METRIC, "family": "encoder_form", "unit": "nats", "bound": "lower"}
    pairs = torch.stack([bound.per_image, bound.mcse_per_image], 1).tolist()
    return rows + [{**same, "image": str(i), "value": value, "mcse": error} for i, (value, error) in enumerate(pairs)]
