"""Section 5.1: a VAE with two latents, where the true posterior can be drawn and every KL is a sum over a grid."""

from __future__ import annotations

from typing import Any

from vaegap.exact import Quadrature, quadrature
from vaegap.lab import checkpoints
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.decompositions import Rows, model_of
from vaegap.lab.records import Record
from vaegap.local import optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

__all__ = ["compute_posterior", "load_2d"]

FAMILIES = ("gaussian", "full_gaussian", "flow")


def compute_posterior(ctx: Context) -> Rows:
    """KL to the true posterior of the encoder's q and of each family's q*, by quadrature."""
    p = ctx.params
    vae, _ = model_of(p, ctx.profile, ctx.results)
    checkpoints.save_model(ctx.artifact("model.safetensors"), vae)
    rows: Rows = []
    for split in ("train", "test"):
        x = load_images(p["dataset"], split, num_images=p["num_images"]).x
        truth = quadrature(vae, x, points=p["points"])
        posteriors: dict[str, Posterior] = {"amortized": vae.encode(x).detach()}
        for family in FAMILIES:
            posteriors[family] = optimize_local(vae, x, family, seed=p["seed"]).posterior
        for name, q in posteriors.items():
            kl, mass = truth.kl(q), truth.mass(q)
            for i, value in enumerate(kl.tolist()):
                rows.append(
                    {
                        "split": split,
                        "metric": "kl",
                        "family": name,
                        "image": str(i),
                        "value": value,
                        "unit": "nats",
                        "bound": "exact",
                    }
                )
            rows.append(
                {
                    "split": split,
                    "metric": "kl",
                    "family": name,
                    "value": kl.mean().item(),
                    "unit": "nats",
                    "bound": "exact",
                }
            )
            rows.append(
                {"split": split, "metric": "mass", "family": name, "value": mass.min().item(), "unit": "probability"}
            )
        rows.append(
            {"split": split, "metric": "log_p", "value": truth.log_p.mean().item(), "unit": "nats", "bound": "exact"}
        )
        rows.append(
            {"split": split, "metric": "quadrature_error", "value": truth.coarse_error.max().item(), "unit": "nats"}
        )
    return rows


def load_2d(record: Record, images: list[int], split: str = "train") -> tuple[VAE, Quadrature, dict[str, Posterior]]:
    """What a contour plot of some images needs: the model, the true posterior on a grid, and the approximations.

    Args:
        record: of the experiment "posterior_2d".
        images: positions in the split.
        split: "train" or "test".

    Returns:
        the model, the quadrature of these images, and the posteriors "amortized", "gaussian" and "flow".
    """
    p: dict[str, Any] = record.params
    vae = checkpoints.load_model(record.artifact("model.safetensors")).eval()
    x = load_images(p["dataset"], split).x[images]
    posteriors = {"amortized": vae.encode(x).detach()}
    for family in ("gaussian", "flow"):
        posteriors[family] = optimize_local(vae, x, family, seed=p["seed"]).posterior
    return vae, quadrature(vae, x, points=p["points"]), posteriors
