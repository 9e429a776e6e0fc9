"""Seconds to a given accuracy: our inference against straightforward code, in one run on one machine.

    python -m benchmarks.inference [--images 1000] [--only bdmc gaussian full aux far ais train] [--threads 2]
                                   [--out benchmarks/table.md]

The book shows what --out wrote last.

The model is a published one if results/models holds it, else one trained here for a minute on the embedded digits.
Where straightforward code would take hours, it runs on fewer images, and its seconds are scaled by their number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import straightforward
from vaegap.annealing import bdmc
from vaegap.bounds import elbo
from vaegap.energy import LogJoint, cpu_flags, quickest_forces
from vaegap.lab import provenance
from vaegap.lab.datasets import load_images
from vaegap.lab.training import Schedule, train
from vaegap.lab.zoo import ModelSpec, trained
from vaegap.local import RECIPES, optimize_local
from vaegap.models import VAE
from vaegap.posteriors import Posterior

ROOT = Path(__file__).resolve().parents[1]
FORCES = quickest_forces()
NAMES = ["train", "ais", "bdmc", "gaussian", "full", "aux", "far"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    seconds: float
    accuracy: str
    plain: str
    ratio: str
    asked: str = ""


def met(*conditions: tuple[str, bool]) -> str:
    """What was asked for, each with whether it holds."""
    return "; ".join(f"{text}: {'met' if holds else '**not met**'}" for text, holds in conditions)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
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
    return lambda x: optimize_local(vae, x, "full_gaussian", num_eval=2, force_dtype=FORCES, seed=1).posterior


def bench_bdmc(vae: VAE, x: Tensor, few: int = 20) -> Iterator[Row]:
    """Width of the sandwich on simulated images."""
    seconds, out = timed(
        lambda: bdmc(vae, len(x), num_temperatures=6, base=fit_full(vae), num_leapfrog=4, force_dtype=FORCES, seed=0)
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
        f"width {out.width:.3f} ± {out.mcse:.3f} nats",
        f"{scaled:.0f} s (100 temperatures from the prior; {few} images, scaled), width {width:.1f} nats",
        f"{scaled / seconds:.0f}x",
        met(("60 s", seconds <= 60), ("0.05 nats", out.width <= 0.05)),
    )


def bench_local(vae: VAE, x: Tensor, which: list[str], few: int, trained_with: str = "") -> Iterator[Row]:
    """q* of the three families, each against a far longer run on the first few images."""
    fits: dict[str, Posterior] = {}
    of = f" of a model trained with {trained_with}" if trained_with else ""
    for name, label, limit, long, share in (
        ("gaussian", "gaussian", 10, 4000, 0.2),
        ("full_gaussian", "full", 20, 1600, 0.2),
        ("aux_flow", "aux", 240, 1500, 0.064),
    ):
        if label == "aux" and label not in which:  # nothing starts from it
            break
        start, num = fits.get(RECIPES[name].start), max(few, int(len(x) * share))
        seconds, fit = timed(partial(optimize_local, vae, x, name, start, num_eval=2, force_dtype=FORCES, seed=0))
        fits[name] = fit.posterior
        if label not in which:
            continue
        longer = replace(RECIPES[name], steps=long, rounds=1, repeats=0, leaps=0)  # another way to the same end
        begin = start[:num] if start is not None else None
        far = optimize_local(vae, x[:num], name, begin, num_eval=500, recipe=longer, force_dtype=FORCES, seed=1).bound
        near = elbo(vae, x, 500, fit.posterior, seed=2)
        gain = (far.per_image - near.per_image[:num]).double().mean().item()
        error = (far.mcse_per_image.square() + near.mcse_per_image[:num].square()).sum().sqrt().item() / num
        accuracy = f"L = {near.mean:.3f} ± {near.mcse:.3f}; a run of {long} steps on {num} of them: "
        accuracy += f"{gain:+.3f} ± {error:.3f}"
        plain, ratio, asked = "", "", [(f"{limit} s", seconds <= limit)]
        if name == "gaussian":
            asked.append(("0.05 nats", gain <= 0.05))
        if name == "gaussian" and not trained_with:
            slow, _ = timed(lambda: straightforward.optimize_gaussian(vae, x[:10], 300))
            scaled = slow / 10 * len(x) * 19_500 / 300
            plain = f"{scaled / 3600:.1f} h (19,500 steps x 100 samples; 300 steps on 10 images, scaled)"
            ratio = f"{scaled / seconds:.0f}x"
        yield Row(f"q* {name}{of}, {len(x)} images", seconds, accuracy, plain, ratio, "" if of else met(*asked))


def bench_far(x: Tensor, num: int = 100) -> Iterator[Row]:
    """The same on a model trained with q_AF, whose posteriors are far from any factorized Gaussian."""
    published = ModelSpec("mnist", "aux_flow", profile="laptop")
    if (ROOT / "results" / "models" / f"{published.id}.safetensors").exists():
        vae = trained(published, ROOT / "results" / "models")[0]
        yield from bench_local(vae, x[:num], ["gaussian", "full", "aux"], num, "q_AF")


def bench_ais(vae: VAE, x: Tensor) -> Iterator[Row]:
    """Throughput of the forces, which AIS spends its time on."""
    z = torch.randn(16, len(x), vae.latent_dim)
    sizes = [(m.in_features, m.out_features) for m in vae.decoder.modules() if isinstance(m, torch.nn.Linear)]
    flops = 4 * z.shape[0] * z.shape[1] * sum(a * b for a, b in sizes)
    joint = LogJoint(vae, x, FORCES)
    fast, slow = best_of(lambda: joint.grad(z)), best_of(lambda: straightforward.gradient(vae, x, z), 2)
    single = best_of(lambda: LogJoint(vae, x).grad(z))
    kind = str(FORCES or vae.dtype).removeprefix("torch.")
    a, b = torch.randn(2048, 200).to(FORCES or vae.dtype), torch.randn(200, 784).to(FORCES or vae.dtype)
    peak = 2 * 2048 * 200 * 784 / best_of(lambda: [a @ b for _ in range(20)]) * 20 / 1e9
    asked = [("2x", slow >= 2 * fast)]
    if "amx_bf16" in cpu_flags():  # it is asked for where there are matrix units
        asked.append(("600 GFLOP/s", flops / fast >= 6e11))
    yield Row(
        f"forces of AIS, {kind}",
        fast,
        f"{flops / fast / 1e9:.0f} GFLOP/s (float32: {flops / single / 1e9:.0f}; a bare {kind} product: {peak:.0f})",
        f"{slow:.2f} s, {flops / slow / 1e9:.0f} GFLOP/s (autograd, float32)",
        f"{slow / fast:.1f}x",
        met(*asked),
    )


def bench_train(x: Tensor, batch: int = 100) -> Iterator[Row]:
    """One epoch at batch 100 against the bare matrix products and a DataLoader loop: on one thread, and on all.

    The grid trains on one thread, as many models side by side as there are cores.
    """
    shapes = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    tensors = [(torch.randn(batch, i), torch.randn(i, o), torch.randn(batch, o)) for i, o in shapes]

    def products() -> None:
        for _ in range(len(x) // batch):
            for k, (a, w, g) in enumerate(tensors):
                a @ w
                a.t() @ g
                if k:
                    g @ w.t()

    def epoch() -> float:
        """Seconds of one epoch, the model's making and the first epoch's warm-up left out."""
        history = train(VAE(seed=0), x, Schedule(8, batch), progress=False).history
        return min(b["seconds"] - a["seconds"] for a, b in zip(history, history[1:], strict=False))

    threads = torch.get_num_threads()
    for num in sorted({1, threads}):
        torch.set_num_threads(num)
        limit, ours = best_of(products, 8), min(epoch() for _ in range(3))
        other = VAE(seed=0)
        plain = best_of(partial(straightforward.train_epoch, other, x, batch))
        yield Row(
            f"training, one epoch of {len(x)} at batch {batch}, {num} thread{'s' * (num > 1)}",
            ours,
            f"{ours / limit:.2f}x the bare matrix products ({limit:.2f} s)",
            f"{plain:.2f} s (DataLoader, torch's softplus and ELU gradients)",
            f"{plain / ours:.1f}x",
            met(("2x the products", ours <= 2 * limit)),
        )
    torch.set_num_threads(threads)


def rows(vae: VAE, x: Tensor, only: list[str]) -> Iterator[Row]:
    """The rows asked for, each when it is measured."""
    if "train" in only:
        yield from bench_train(load_images("mnist-5k", "train").x)
    if "ais" in only:
        yield from bench_ais(vae, x)
    if "bdmc" in only:
        yield from bench_bdmc(vae, x)
    local = [name for name in only if name in ("gaussian", "full", "aux")]
    if local:
        yield from bench_local(vae, x, local, 64)
    if "far" in only:
        yield from bench_far(x)


def machine() -> str:
    """Processor, PyTorch and commit, in words."""
    known = provenance.collect()
    commit = str(known["commit"])[:9] + ("+" if known["dirty"] else "")
    return f"{known['processor']} ({known['cores']} cores), PyTorch {torch.__version__}, commit {commit}"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae, x = model(), load_images("mnist-5k", "train", num_images=options.images).x
    lines = [
        "| work | seconds | asked for | accuracy, nats | straightforward code | ratio |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for row in rows(vae, x, options.only):
        lines.append(f"| {row.work} | {row.seconds:.2f} | {row.asked} | {row.accuracy} | {row.plain} | {row.ratio} |")
        print(lines[-1], flush=True)
    note = f"{options.threads} threads, {machine()}."
    print(note)
    if options.out:
        options.out.write_text("\n".join([*lines, "", note, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
