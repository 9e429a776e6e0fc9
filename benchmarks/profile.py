"""Where the forces of annealing and local optimisation spend their time, operation by operation.

python -m benchmarks.profile [--threads 2] [--out book/reference/profile.inc]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.inference import FORCES, machine
from vaegap import VAE
from vaegap.energy import LogJoint

KINDS = {
    "matrix products": ("aten::addmm", "aten::mm"),
    "sigmoid of the likelihood": ("aten::sigmoid",),
    "activations, slopes, sums": (
        *("aten::exp_", "aten::clamp", "aten::maximum", "aten::mul_"),
        *("aten::neg_", "aten::add_", "aten::sub_", "aten::sub", "aten::rsub"),
    ),
    "copies and changes of precision": ("aten::copy_", "aten::fill_"),
}


def shares(repeats: int = 10, samples: int = 16, images: int = 1000) -> dict[str, float]:
    """Each kind's share of the processor's time."""
    vae = VAE(seed=0)
    joint = LogJoint(vae, (torch.rand(images, 784) < 0.2).float(), FORCES)
    z = torch.randn(samples, images, vae.latent_dim)
    joint.grad(z)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            joint.grad(z)
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values())
    parts = {kind: sum(times.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    return {**parts, "the rest": 1 - sum(parts.values())}


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kind = str(FORCES or torch.float32).removeprefix("torch.")
    lines = [f"| forces in {kind} | share of the time |", "|---|---|"]
    lines += [f"| {name} | {share:.0%} |" for name, share in shares().items()]
    text = "\n".join([*lines, "", f"{options.threads} threads, {machine()}.", ""])
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
