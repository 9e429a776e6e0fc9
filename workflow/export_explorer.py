"""Write `book/web/explorer/model.js`: a trained VAE with two latents, twenty test digits, and torch's numbers for them.

The explorer page computes the same numbers in the browser; tests compare the two. The weights are those of a record of
the experiment "posterior_2d", which is computed if it is not there.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaegap.exact import quadrature
from vaegap.lab import checkpoints, experiments
from vaegap.lab.datasets import load_images
from vaegap.models import VAE

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "book" / "web" / "explorer" / "model.js"
PREFIX = "window.VAEGAP_MODEL = "
NAMES = {
    "encoderWeight": "features.0.weight",
    "encoderBias": "features.0.bias",
    "headWeight": "head.linear.weight",
    "headBias": "head.linear.bias",
    "hiddenWeight": "decoder.0.weight",
    "hiddenBias": "decoder.0.bias",
    "logitWeight": "decoder.2.weight",
    "logitBias": "decoder.2.bias",
}
NODES = 48  # of the reference's own Gauss-Hermite rule along each axis; the page uses fewer


def elbo(vae: VAE, x: Tensor, mean: Tensor, log_sd: Tensor, nodes: int = NODES) -> Tensor:
    """L[q] (N,) in nats of factorized Gaussians (N, 2): Gauss-Hermite quadrature, and the entropy in closed form."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    w = torch.from_numpy(np.outer(weights, weights).ravel() / (2 * math.pi)).to(x.dtype)
    eps = torch.from_numpy(np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 1, 2)).to(x.dtype)
    keep = w > 1e-14
    log_joint = vae.log_joint(x, mean + log_sd.exp() * eps[keep])
    return (w[keep, None] * log_joint).sum(0) + log_sd.sum(-1) + math.log(2 * math.pi * math.e)


def best_gaussian(vae: VAE, x: Tensor, mean: Tensor, log_sd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log sd (1, 2) of the q* that is uphill of a start (1, 2), for one image: L-BFGS on the quadrature."""
    start = torch.cat([mean, log_sd], -1).detach()
    params = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([params], lr=0.5, max_iter=200, tolerance_change=1e-11, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -elbo(vae, x, params[:, :2], params[:, 2:], nodes=24).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    end = params.detach()
    return end[:, :2], end[:, 2:]


def reference(vae: VAE, x: Tensor) -> dict[str, list[Any]]:
    """What torch says about images (N, D), in double precision: log p(x), L[q], L[q*] in nats, and both posteriors."""
    vae, x = vae.double(), x.double()
    with torch.no_grad():
        mean, sd = vae.encode(x).moments()
        out = {
            "log_p": quadrature(vae, x, points=121).log_p,
            "elbo": elbo(vae, x, mean, sd.log()),
            "q_mean": mean,
            "q_sd": sd,
        }
    ends = [best_gaussian(vae, x[i : i + 1], mean[i : i + 1], sd[i : i + 1].log()) for i in range(len(x))]
    best_mean, best_log_sd = (torch.cat(part) for part in zip(*ends, strict=True))
    with torch.no_grad():
        best = elbo(vae, x, best_mean, best_log_sd)
    out |= {"best": best, "best_mean": best_mean, "best_sd": best_log_sd.exp()}
    return {name: np.round(value.numpy(), 6).tolist() for name, value in out.items()}


@torch.no_grad()
def choose(vae: VAE, x: Tensor, labels: Tensor) -> list[int]:
    """Two digits of each class: the one with the median inference gap, and the one with the largest but one.

    The very largest is left out because it may be a freak; a classroom wants the merely difficult. The decoder's last
    layer is linear in h(z), so its normalizers are computed once for all images.
    """
    axis = torch.linspace(-4.8, 4.8, 161)
    z = torch.cartesian_prod(axis, axis)
    h = vae.decoder[:-1](z)
    weight, bias = vae.decoder[-1].weight, vae.decoder[-1].bias
    normalizer = torch.cat([torch.nn.functional.softplus(part @ weight.T + bias).sum(1) for part in h.split(2048)])
    log_joint = x @ (weight @ h.T) + (x @ bias)[:, None] - normalizer + vae.log_prior(z)
    log_p = log_joint.logsumexp(1) + 2 * math.log(0.06)
    mean, sd = vae.encode(x).moments()
    gap = log_p - torch.cat(
        [elbo(vae, x[i : i + 50], mean[i : i + 50], sd[i : i + 50].log(), 10) for i in range(0, len(x), 50)]
    )
    chosen = []
    for label in range(10):
        own = torch.nonzero(labels == label).flatten()
        order = own[gap[own].argsort()]
        chosen += [int(order[len(order) // 2]), int(order[-2])]
    return chosen


def pack(values: Tensor, dtype: str) -> str:
    """Base64 of an array's bytes, little-endian."""
    return base64.b64encode(np.ascontiguousarray(values.detach().numpy().astype(dtype)).tobytes()).decode()


def unpack(text: str, dtype: str, *shape: int) -> Tensor:
    """The inverse of `pack`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy())


def read(path: Path = OUT) -> tuple[VAE, Tensor, dict[str, Any]]:
    """The model, its digits (N, D) and everything else from a `model.js`."""
    data = json.loads(path.read_text().split(PREFIX, 1)[1].rstrip().removesuffix(";"))
    vae = VAE(**data["config"])
    shapes = {name: value.shape for name, value in vae.state_dict().items()}
    vae.load_state_dict({name: unpack(data["weights"][key], "<f4", *shapes[name]) for key, name in NAMES.items()})
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["images"]), np.uint8))
    return vae.eval(), torch.from_numpy(bits.reshape(-1, 784)).float(), data


def export(vae: VAE, x: Tensor, labels: Tensor, run_id: str, out: Path) -> None:
    """Choose the digits, compute torch's numbers, write the script."""
    state = vae.state_dict()
    weights = {key: pack(state[name], "<f4") for key, name in NAMES.items()}
    chosen = choose(vae, x, labels)
    data = {
        "run": run_id,
        "config": vae.config,
        "positions": chosen,
        "labels": [int(labels[i]) for i in chosen],
        "reference": reference(vae, x[chosen]),
        "images": base64.b64encode(np.packbits(x[chosen].numpy().astype(np.uint8)).tobytes()).decode(),
        "weights": weights,
    }
    head = f"// Written by workflow/export_explorer.py from the record {run_id}. Weights are float32, base64.\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(head + PREFIX + json.dumps(data, separators=(",", ":")) + ";\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", default="quick", choices=experiments.PROFILES, help="of the record")
    parser.add_argument("--out", type=Path, default=OUT, help="the script to write")
    options = parser.parse_args()
    record = experiments.run("posterior_2d", {}, options.profile)
    vae = checkpoints.load_model(record.artifact("model.safetensors"))
    images = load_images(record.params["dataset"], "test")
    labels = torch.arange(len(images)) % 10  # mnist-5k takes its classes in turns
    export(vae, images.x, labels, record.run_id, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB, from {record.run_id}")


if __name__ == "__main__":
    main()
