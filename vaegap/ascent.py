"""Gradient ascent on L[q] for all per-image parameters at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from vaegap.energy import LogJoint
from vaegap.posteriors import Posterior

__all__ = ["ascend"]


class _Potential(torch.autograd.Function):
    """Σ log p(x, z) as a function of z whose value is not needed: only its gradient is computed."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, joint: LogJoint) -> Tensor:
        ctx.grad = joint.grad(z.detach())
        return z.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.grad * grad, None


def ascend(
    joint: LogJoint,
    q: Posterior,
    steps: int,
    samples: int,
    lr: float,
    beta2: float,
    generator: torch.Generator,
    frozen: Collection[str] = (),
    path: bool = True,
) -> Iterator[Posterior]:
    """Adam on every tensor of q that is not frozen; yields the posterior, changed in place, after each step.

    Without `path` as in the published procedure: one learning rate for all, and plain reparameterized gradients.
    """
    factors = q.family.learning_rates() if path else {}
    params: dict[str, Tensor] = {k: v.detach().clone() for k, v in q.params.items()}
    groups = []
    for name, value in params.items():
        if name not in frozen:
            value.requires_grad_(True)
            factor = next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)
            groups.append({"params": [value], "factor": factor})
    optimizer = torch.optim.Adam(groups, lr=lr, betas=(0.9, beta2), fused=joint.x.device.type in ("cpu", "cuda"))
    now = Posterior(q.family, params)
    for step in range(steps):
        scale = 1.0
        if path:  # a short warm-up, then a cosine down to 1 %; the published procedure has neither
            scale = min(1.0, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale * group["factor"]
        z, log_q = now.rsample_and_log_prob(samples, path=path, antithetic=path, generator=generator)
        loss = (log_q.sum() - _Potential.apply(z, joint)) / samples
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield now
