"""Hamiltonian Monte Carlo for many chains on many images at once, in whitened coordinates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["leapfrog", "transition"]

Force = Callable[[Tensor], Tensor]
Energy = Callable[[Tensor], tuple[Tensor, ...]]


def leapfrog(u: Tensor, velocity: Tensor, step: Tensor, force: Force, num_steps: int) -> tuple[Tensor, Tensor]:
    """Leapfrog integration with unit mass.

    Reversible and volume-preserving for any deterministic `force`, exact or not (Neal 2011, section 5.2.3).

    Args:
        u, velocity: (C, N, d).
        step: step size per image, broadcastable to (C, N, d).
        force: the (approximate) gradient of the log-density.
        num_steps: leapfrog steps.

    Returns:
        the end point and the velocity there.
    """
    velocity = velocity + 0.5 * step * force(u)
    for i in range(num_steps):
        u = u + step * velocity
        velocity = velocity + (step if i + 1 < num_steps else 0.5 * step) * force(u)
    return u, velocity


def transition(
    u: Tensor,
    parts: tuple[Tensor, ...],
    log_density: Callable[[tuple[Tensor, ...]], Tensor],
    energy: Energy,
    force: Force,
    step: Tensor,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """One HMC transition that leaves exp(log_density) invariant.

    Args:
        u: states (C, N, d).
        parts: `energy(u)`, carried along so that it is not computed twice.
        log_density: combines parts to the log-density (C, N).
        energy: the expensive parts of the log-density at a state, each (C, N), in full precision.
        force: gradient for the integrator, in any precision.
        step: step size (N, 1).
        num_steps: leapfrog steps.
        generator: source of randomness.

    Returns:
        new states, their parts, and the acceptance probabilities (C, N). A proposal whose energy is not finite is
        rejected, with acceptance 0.
    """
    velocity = torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)
    proposal, end = leapfrog(u, velocity, step, force, num_steps)
    new = energy(proposal)
    change = log_density(new) - log_density(parts) + 0.5 * (velocity.square().sum(-1) - end.square().sum(-1))
    change = torch.where(torch.isfinite(change), change, -torch.inf)
    accept = change.clamp(max=0).exp()
    coin = torch.rand(accept.shape, generator=generator, dtype=accept.dtype, device=accept.device)
    yes = coin < accept
    parts = tuple(torch.where(yes, a, b) for a, b in zip(new, parts, strict=True))
    return torch.where(yes.unsqueeze(-1), proposal, u), parts, accept
