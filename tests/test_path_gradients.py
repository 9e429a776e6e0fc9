"""Path gradients of every family: unbiased, and without noise where q meets the posterior."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import KINDS, TRACTABLE, assert_mean, member
from torch import Tensor

from vaegap.posteriors import Posterior


def log_banana(z: Tensor) -> Tensor:
    """An unnormalized target that is far from Gaussian."""
    return -0.5 * z[..., 0] ** 2 - (z[..., 1] - 0.5 * z[..., 0] ** 2) ** 2 - 0.3 * z[..., 2:].square().sum(-1)


def directions(q: Posterior, count: int) -> list[dict[str, Tensor]]:
    """Random directions in parameter space, the mean's and the log-variance's own among them."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for i in range(count):
        keep = {0: "mean", 1: "logvar"}.get(i, "")
        out.append(
            {
                k: torch.randn(v.shape, generator=generator, dtype=v.dtype) * k.startswith(keep)
                for k, v in q.params.items()
            }
        )
    return out


def gradients(q: Posterior, path: bool, batches: int) -> Tensor:
    """Directional derivatives of the loss (batches, directions), one for each batch of samples."""
    params = {k: v.detach().clone().requires_grad_(True) for k, v in q.params.items()}
    ways, rows = directions(q, 6), []
    for batch in range(batches):
        generator = torch.Generator().manual_seed(batch)  # the same noise with and without path: a sharper comparison
        z, log_q = Posterior(q.family, params).rsample_and_log_prob(20, path=path, generator=generator)
        loss = (log_q - log_banana(z)).mean()
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        pairs = list(zip(params, grads, strict=True))
        rows.append([sum((g * way[k]).sum().item() for k, g in pairs if g is not None) for way in ways])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("name", "form"), KINDS)
def test_path_gradient_is_unbiased(name: str, form: str) -> None:
    q = member(name, form, count=2)
    plain, path = (gradients(q, way, 40) for way in (False, True))
    assert_mean(plain - path, 0.0)
    assert (plain.mean(0).abs() > 4 * plain.std(0) / math.sqrt(40)).any(), "the test sees no gradient at all"


@pytest.mark.parametrize(("name", "form"), TRACTABLE)
def test_path_gradient_vanishes_at_the_optimum(name: str, form: str) -> None:
    q = member(name, form)
    noises = {}
    for path in (False, True):
        params = {k: v.clone().requires_grad_(True) for k, v in q.params.items()}
        z, log_q = Posterior(q.family, params).rsample_and_log_prob(8, path=path)
        loss = (log_q - q.log_prob(z)).sum()
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        noises[path] = max(g.abs().max().item() for g in grads if g is not None)
    assert noises[True] < 1e-9 < 1e-2 < noises[False]
