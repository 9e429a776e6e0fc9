"""What the protocols measure on a model: the decomposition of images, in blocks, and the width of the sandwich.

Work is cut into blocks of images, each seeded by its own position and saved when done, so that a killed run goes on
where it was and ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaegap import decomposition, paired
from vaegap.annealing import bdmc
from vaegap.energy import quickest_forces
from vaegap.evaluation import evaluating
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.records import Record
from vaegap.local import optimize_local
from vaegap.models import VAE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows", "active_units", "decompose", "gap_rows", "gap_tables", "in_blocks", "measured_again", "width_rows"]

Rows = list[dict[str, Any]]
_BLOCK = {"mlp": 50, "conv": 5}  # images at a time: about a minute on one core, so that a killed run loses little


def in_blocks(
    ctx: Context, name: str, num: int, compute: Callable[[slice, int], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Run `compute(images, seed)` on blocks of images, each saved when done, and join the results (N, ...)."""
    pieces = []
    size = _BLOCK[ctx.params.get("architecture", "mlp")]
    for start in range(0, num, size):
        path = ctx.checkpoint(f"{name}-{start}")
        if not path.exists():
            checkpoints.save(path, compute(slice(start, min(start + size, num)), 1000 * start + 17), {})
        pieces.append(checkpoints.load(path)[0])
    return {key: torch.cat([p[key] for p in pieces]) for key in pieces[0]}


def decompose(
    ctx: Context, vae: VAE, x: Tensor, name: str, families: tuple[str, ...], checked: int = 0
) -> dict[str, Tensor]:
    """Per-image bounds of the decomposition in blocks: columns <bound> and <bound>_mcse, each (N,).

    Missed modes are looked for in blocks that start before image `checked`; elsewhere "missed" is NaN.
    """

    def block(part: slice, seed: int) -> dict[str, Tensor]:
        print(f"{ctx.run_id}: {name}, images {part.start} to {part.stop - 1}", flush=True)
        look = part.start < checked
        out = decomposition.gaps(
            vae, x[part], families, certify=0, check_modes=look, force_dtype=quickest_forces(), seed=seed
        )
        columns: dict[str, Tensor] = {}
        for key in [c for c in out.table.columns if c == "L_q" or c.startswith("L_star_")]:
            columns[key] = torch.tensor(out.table[key].to_numpy(copy=True))
            columns[f"{key}_mcse"] = torch.tensor(out.errors[key].to_numpy(copy=True))
        for key, bound in (("log_p", out.evidence.bound), ("ais", out.evidence.ais), ("iwae", out.evidence.iwae)):
            columns[key], columns[f"{key}_mcse"] = bound.per_image, bound.mcse_per_image
        assert out.evidence.iwae.khat is not None
        columns["khat"] = out.evidence.iwae.khat
        columns["wide"] = torch.full((len(x[part]),), float(out.evidence.source in ("prior", "mixture")))
        missed = torch.full((len(x[part]),), 0.0 if look else torch.nan, dtype=torch.float64)
        for i, excess in out.evidence.missed.items():
            missed[i] = excess
        columns["missed"] = missed
        columns["unfinished"] = torch.zeros(len(x[part]), dtype=torch.float64)
        for bound in out.bounds.values():
            columns["unfinished"][list(bound.flagged or {})] = 1.0
        return columns

    columns = in_blocks(ctx, name, len(x), block)
    # the larger mean of all images, not of each block: that would favour whichever was lucky there. A wide base takes
    # the place of both in the few blocks that try it, by mass that q* misses or by luck, so by an error at most
    wide, best = columns["wide"] > 0, "ais" if columns["ais"].mean() >= columns["iwae"].mean() else "iwae"
    for end in ("", "_mcse"):
        columns[f"log_p{end}"] = torch.where(wide, columns[f"log_p{end}"], columns[f"{best}{end}"])
    return columns


def gap_rows(columns: dict[str, Tensor], **labels: Any) -> Iterator[dict[str, Any]]:
    """Tidy rows: every bound of every image, and means of all bounds and gaps."""
    table, errors = _frames(columns)
    bounds = [c for c in table.columns if c in ("log_p", "L_q") or c.startswith("L_star_")]
    for metric in bounds:
        family = metric.removeprefix("L_star_") if metric.startswith("L_star_") else ""
        for i in range(len(table)):
            yield {
                **labels, "metric": metric, "image": str(i), "value": float(table[metric].iat[i]), "unit": "nats",
                "mcse": float(errors[metric].iat[i]), "bound": "lower", "family": family or None,
            }  # fmt: skip
    for metric, row in paired.summarize(table, errors).iterrows():
        kind = "lower" if metric in bounds else ""
        yield {**labels, "metric": metric, "value": row["mean"], "mcse": row["mcse"], "unit": "nats", "bound": kind}
    for key in ("ais", "iwae"):
        error = float(columns[f"{key}_mcse"].square().sum().sqrt()) / len(columns[key])
        yield {
            **labels,
            "metric": f"log_p_{key}",
            "value": float(columns[key].mean()),
            "mcse": error,
            "unit": "nats",
            "bound": "lower",
        }
    yield {
        **labels,
        "metric": "khat_above_0.7",
        "value": float((columns["khat"] > 0.7).double().mean()),
        "unit": "fraction",
    }
    looked = ~columns["missed"].isnan()
    yield {**labels, "metric": "checked_for_modes", "value": float(looked.sum()), "unit": "images"}
    if looked.any():
        yield {**labels, "metric": "missed_modes", "value": float((columns["missed"] > 0).sum()), "unit": "images"}
    yield {**labels, "metric": "unfinished_ascents", "value": float(columns["unfinished"].sum()), "unit": "images"}
    yield {**labels, "metric": "log_p_from_wide_base", "value": float(columns["wide"].sum()), "unit": "images"}


def _frames(columns: Mapping[str, Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    names = ["log_p", "L_q", *[k for k in columns if k.startswith("L_star_") and not k.endswith("_mcse")]]
    table = pd.DataFrame({k: columns[k].numpy() for k in names})
    errors = pd.DataFrame({k: columns[f"{k}_mcse"].numpy() for k in names})
    return paired.complete_gaps(table, errors)


def gap_tables(record: Record, **labels: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Per-image values and errors of a record's bounds and gaps (nats), for rows with these labels (split, ...)."""
    rows = record.select(bound="lower", **labels)
    rows = rows[rows["image"] != "mean"].assign(image=lambda r: r["image"].astype(int))
    order = list(dict.fromkeys(rows["metric"]))
    table = rows.pivot(index="image", columns="metric", values="value")[order].sort_index()
    errors = rows.pivot(index="image", columns="metric", values="mcse")[order].sort_index()
    return paired.complete_gaps(table, errors)


def active_units(vae: VAE, x: Tensor, threshold: float = 0.01) -> int:
    """Latents whose posterior mean varies over the data: Var_x E_q[z_i] > 0.01 (Burda et al. 2016, section 5.2)."""
    with evaluating(vae):
        return int((vae.encode(vae.check(x)).mean.var(0) > threshold).sum())


def width_rows(ctx: Context, vae: VAE, num: int, name: str = "bdmc", **labels: str) -> Rows:
    """BDMC with the settings of the published log p̂, on `num` images that the model makes."""

    def fit(images: Tensor) -> Any:
        return optimize_local(vae, images, "full_gaussian", num_eval=2, force_dtype=quickest_forces(), seed=5).posterior

    def block(part: slice, seed: int) -> dict[str, Tensor]:
        sandwich = bdmc(
            vae, part.stop - part.start, num_temperatures=20, base=fit, force_dtype=quickest_forces(), seed=seed
        )
        return {"width": (sandwich.upper.per_image - sandwich.lower.per_image).double()}

    width = in_blocks(ctx, name, num, block)["width"]
    error = width.std().item() / len(width) ** 0.5
    row = {"metric": "bdmc_width", "value": width.mean().item(), "mcse": error, "unit": "nats"}
    return [{**row, "split": "simulated", "num_samples": num, **labels}]


def measured_again(vae: VAE, p: Mapping[str, Any], num: int, split: str, **labels: str) -> Rows:
    """The bounds of some images with other random numbers than a record's."""
    x = load_images(p["dataset"], split, num_images=num).x
    out = decomposition.gaps(vae, x, tuple(p["families"]), certify=0, force_dtype=quickest_forces(), seed=12345)
    rows: Rows = []
    for metric in [c for c in out.table.columns if c == "L_q" or c.startswith("L_star_")]:
        family = metric.removeprefix("L_star_") if metric.startswith("L_star_") else None
        same = {**labels, "metric": metric, "family": family, "split": split, "unit": "nats", "bound": "lower"}
        values, errors = out.table[metric], out.errors[metric]
        rows += [{**same, "image": str(i), "value": values.iat[i], "mcse": errors.iat[i]} for i in range(num)]
    return rows
