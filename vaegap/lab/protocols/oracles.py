"""Estimates of log p(x) against the truth: on a linear-Gaussian model, and by quadrature over two latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from torch import Tensor

from vaegap.annealing import ais
from vaegap.bounds import Bound
from vaegap.exact import linear_gaussian_vae, quadrature
from vaegap.lab.datasets import load_images
from vaegap.lab.experiments import Context
from vaegap.lab.protocols.models import model_of
from vaegap.models import VAE

__all__ = ["Known", "Weighings", "oracle_errors", "oracles"]

Weighings = dict[str, tuple[int | None, Callable[[], Bound]]]
Known = Callable[[], tuple[VAE, Tensor, Tensor, float]]
_MOST = 100  # temperatures: more only take longer
_SMALL = {"family": "gaussian", "latent_dim": 2, "encoder": [100], "decoder": [100], "activation": "tanh"}


def oracles(ctx: Context, num_images: int) -> dict[str, Known]:
    """What gives a model, images (N, D), their log p(x) (N,) by other means than sampling, and the latter's error.

    "linear-Gaussian" has 50 latents and a closed form; "two latents" is trained on the run's data set, and its log p(x)
    is a sum over a grid.
    """

    @cache
    def linear() -> tuple[VAE, Tensor, Tensor, float]:
        vae = linear_gaussian_vae(data_dim=100, latent_dim=50, encoder_error=0.2, seed=ctx.params["seed"])
        x = vae.simulate(num_images, seed=ctx.params["seed"] + 1)
        return vae, x, vae.log_evidence(x), 0.0

    @cache
    def plane() -> tuple[VAE, Tensor, Tensor, float]:
        asked: dict[str, Any] = {"dataset": ctx.params["dataset"], "seed": ctx.params["seed"], **_SMALL}
        vae, _ = model_of(asked, ctx.profile, ctx.results)
        x = load_images(asked["dataset"], "train", num_images=num_images).x
        truth = quadrature(vae, x)
        return vae, x, truth.log_p, truth.coarse_error.max().item()

    return {"linear-Gaussian": linear, "two latents": plane}


def oracle_errors(
    known: Known, weighings: Callable[[VAE, Tensor], Weighings], temperatures: list[int]
) -> Iterator[tuple[str, Callable[[], list[float]]]]:
    """What each estimator misses of a known log p(x).

    Args:
        known: one of `oracles`.
        weighings: estimators by name, of a model's images.
        temperatures: lengths of the published annealing, from the prior with a linear schedule; long ones are left out.

    Yields:
        the estimator's name, and what computes the mean of log p̂(x) − log p(x) over the images and its Monte Carlo
        error (nats).
    """

    def missing(way: str) -> list[float]:
        vae, x, truth, _ = known()
        bound = weighings(vae, x)[way][1]()
        return [bound.mean - truth.double().mean().item(), bound.mcse]

    def annealed(steps: int) -> list[float]:
        vae, x, truth, _ = known()
        bound = ais(vae, x, num_temperatures=steps, base="prior", schedule="linear", num_leapfrog=10, seed=9)
        return [bound.mean - truth.double().mean().item(), bound.mcse]

    for way in weighings(*known()[:2]):
        yield way, partial(missing, way)
    for steps in temperatures:
        if steps <= _MOST:
            yield f"AIS from the prior, linear, {steps} temperatures", partial(annealed, steps)
