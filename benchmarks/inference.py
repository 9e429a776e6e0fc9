"""Seconds to a given accuracy: our inference against straightforward code, in one run on one machine.

    python -m benchmarks.inference [--images 1000] [--only bdmc gaussian full aux ais train] [--threads 2]

The model is a published one if results/models holds it, else one trained here for a minute on the embedded digits.
Where straightforward code would take hours, it runs on fewer images, and its seconds are scaled by their number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import straightforward
from vaegap.annealing import bdmc
from vaegap.bounds import elbo, evaluating
from vaegap.energy import LogJoint
from vaegap.lab.datasets import load_images
from vaegap.lab.training import Schedule, train
from vaegap.lab.zoo import ModelSpec, trained
from vaegap.local import RECIPES, optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

ROOT = Path(__file__).resolve().parents[1]
FORCES = torch.bfloat16


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    seconds: float
    accuracy: str
    plain: str
    ratio: str


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that something takes, and what it returns."""
    start = time.perf_counter()
    out = work()
    return time.perf_counter() - start, out


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several times, after a warm-up."""
    work()
    return min(timed(work)[0] for _ in range(repeats))


def model() -> VAE:
    """The paper's MNIST architecture, trained."""
    published = ModelSpec("mnist", profile="laptop")
    if (ROOT / "results" / "models" / f"{published.id}.safetensors").exists():
        return trained(published, ROOT / "results" / "models")[0]
    vae = VAE(seed=0)
    train(vae, load_images("mnist-5k", "train").x, Schedule(60, 100))
    return vae


def fit_full(vae: VAE) -> Callable[[Tensor], Posterior]:
    """A fit of q* with full covariance, for BDMC's base."""
    quick = replace(RECIPES["full_gaussian"], rounds=1)

    def fit(x: Tensor) -> Posterior:
        first = optimize_local(
            vae, x, "gaussian", num_eval=2, force_dtype=FORCES, seed=1, recipe=replace(RECIPES["gaussian"], rounds=1)
        )
        return optimize_local(
            vae, x, "full_gaussian", first.posterior, num_eval=2, force_dtype=FORCES, seed=1, recipe=quick
        ).posterior

    return fit


def bench_bdmc(vae: VAE, x: Tensor, few: int = 20) -> Iterator[Row]:
    """Width of the sandwich on simulated images."""
    seconds, out = timed(
        lambda: bdmc(vae, len(x), num_temperatures=10, base=fit_full(vae), num_leapfrog=5, force_dtype=FORCES, seed=0)
    )
    with torch.no_grad():
        z = torch.randn(few, vae.latent_dim)
        images = vae.decode(z).sample()

    def plain() -> float:
        lower = straightforward.ais(vae, images, 16, 100)
        return (straightforward.ais(vae, images, 16, 100, exact=z) - lower).mean().item()

    slow, width = timed(plain)
    scaled = slow * len(x) / few
    yield Row(
        f"BDMC, {len(x)} simulated images x 16 chains",
        seconds,
        f"width {out.width:.3f} ± {out.mcse:.3f} nats",  # type: ignore[attr-defined]
        f"{scaled:.0f} s (100 temperatures from the prior; {few} images, scaled), width {width:.1f} nats",
        f"{scaled / seconds:.0f}x",
    )


def bench_local(vae: VAE, x: Tensor, which: list[str]) -> Iterator[Row]:
    """q* of the three families, each against a longer run."""
    fits: dict[str, Posterior] = {}
    for name, label, more in (("gaussian", "gaussian", 20), ("full_gaussian", "full", 5), ("aux_flow", "aux", 0)):
        start = fits.get(RECIPES[name].start)
        seconds, fit = timed(
            lambda n=name, s=start: optimize_local(vae, x, n, s, num_eval=500, force_dtype=FORCES, seed=0)
        )
        fits[name] = fit.posterior  # type: ignore[attr-defined]
        if label not in which:
            continue
        accuracy = f"L = {fit.bound.mean:.3f} ± {fit.bound.mcse:.3f}"  # type: ignore[attr-defined]
        if more:
            longer = replace(RECIPES[name], steps=RECIPES[name].steps * more, rounds=1)
            far = optimize_local(vae, x, name, start, num_eval=500, recipe=longer, force_dtype=FORCES, seed=1)
            accuracy += f", {far.bound.mean - fit.bound.mean:+.3f} in a run {more}x longer"  # type: ignore[attr-defined]
        plain, ratio = "", ""
        if name == "gaussian":
            slow, bound = timed(lambda: straightforward.optimize_gaussian(vae, x[:10], 300))
            scaled = slow / 10 * len(x) * 19_500 / 300
            plain = f"{scaled / 3600:.1f} h (19,500 steps x 100 samples; 300 steps on 10 images, scaled)"
            ratio = f"{scaled / seconds:.0f}x"
        yield Row(f"q* {name}, {len(x)} images", seconds, accuracy, plain, ratio)


def bench_ais(vae: VAE, x: Tensor) -> Iterator[Row]:
    """Throughput of the forces, which AIS spends its time on."""
    z = torch.randn(16, len(x), vae.latent_dim)
    sizes = [(m.in_features, m.out_features) for m in vae.decoder if isinstance(m, torch.nn.Linear)]  # type: ignore[union-attr]
    flops = 4 * z.shape[0] * z.shape[1] * sum(a * b for a, b in sizes)
    joint = LogJoint(vae, x, FORCES)
    fast, slow = best_of(lambda: joint.grad(z)), best_of(lambda: straightforward.gradient(vae, x, z), 2)
    single = best_of(lambda: LogJoint(vae, x).grad(z))
    a, b = torch.randn(2048, 200).to(FORCES), torch.randn(200, 784).to(FORCES)
    peak = 2 * 2048 * 200 * 784 / best_of(lambda: [a @ b for _ in range(20)]) * 20 / 1e9
    yield Row(
        "forces of AIS, bfloat16",
        fast,
        f"{flops / fast / 1e9:.0f} GFLOP/s (float32: {flops / single / 1e9:.0f}; a bare bfloat16 product: {peak:.0f})",
        f"{slow:.2f} s, {flops / slow / 1e9:.0f} GFLOP/s (autograd, float32)",
        f"{slow / fast:.1f}x",
    )


def bench_train(x: Tensor, batch: int = 100) -> Iterator[Row]:
    """One epoch at batch 100 against the bare matrix products and against a DataLoader loop."""
    quiet = {"progress": False}
    ours = best_of(lambda: train(VAE(seed=0), x, Schedule(1, batch), **quiet), 2)  # type: ignore[arg-type]
    shapes = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    tensors = [(torch.randn(batch, i), torch.randn(i, o), torch.randn(batch, o)) for i, o in shapes]

    def products() -> None:
        for _ in range(len(x) // batch):
            for k, (a, w, g) in enumerate(tensors):
                a @ w
                a.t() @ g
                if k:
                    g @ w.t()

    limit = best_of(products, 2)
    plain, _ = timed(lambda: straightforward.train_epoch(VAE(seed=0), x, batch))
    yield Row(
        f"training, one epoch of {len(x)} at batch {batch}",
        ours,
        f"{ours / limit:.2f}x the bare matrix products ({limit:.2f} s)",
        f"{plain:.2f} s (DataLoader, torch's softplus and ELU gradients)",
        f"{plain / ours:.1f}x",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=["train", "ais", "bdmc", "gaussian", "full", "aux"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae, x = model(), load_images("mnist-5k", "train", num_images=options.images).x
    with evaluating(vae):
        print(f"{options.threads} threads; encoder's L[q] = {elbo(vae, x, 100, seed=0).mean:.2f}", flush=True)
    print("| work | seconds | accuracy | straightforward code | ratio |\n|---|---|---|---|---|", flush=True)
    rows: list[tuple[str, Callable[[], Iterator[Row]]]] = [
        ("train", lambda: bench_train(load_images("mnist-5k", "train").x)),
        ("ais", lambda: bench_ais(vae, x)),
        ("bdmc", lambda: bench_bdmc(vae, x)),
    ]
    for name, bench in rows:
        if name in options.only:
            for row in bench():
                show(row)
    local = [k for k in options.only if k in ("gaussian", "full", "aux")]
    if local:
        for row in bench_local(vae, x, local):
            show(row)


def show(row: Row) -> None:
    """One line of Markdown."""
    print(f"| {row.work} | {row.seconds:.2f} | {row.accuracy} | {row.plain} | {row.ratio} |", flush=True)


if __name__ == "__main__":
    main()
