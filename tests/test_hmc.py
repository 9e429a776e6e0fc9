"""Leapfrog and HMC: reversible, volume-preserving, and the target left invariant, also with a rounded force."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import assert_mean
from torch import Tensor

from vaegap.hmc import leapfrog, transition


def gaussian_force(u: Tensor) -> Tensor:
    return -u


def swirl(u: Tensor) -> Tensor:
    """No gradient of anything: leapfrog must preserve volume all the same."""
    return torch.stack([torch.sin(u[..., 1]) - u[..., 0], u[..., 0] ** 2], -1)


def rounded(force: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda u: force(u.to(torch.bfloat16)).to(u.dtype)


@pytest.mark.parametrize("force", [gaussian_force, swirl, rounded(gaussian_force), rounded(swirl)])
def test_leapfrog_is_reversible(force: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 50, 3, 2, generator=generator, dtype=torch.float64)
    step = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    end, speed = leapfrog(u, v, step, force, 7)
    assert (end - u).abs().mean() > 0.3
    back, opposite = leapfrog(end, -speed, step, force, 7)
    # a rounded force can flip a last bit where the way back is off by 1e-16; that moves the point by 1e-3
    off = (back - u).abs().amax(-1)
    assert off.median() < 1e-12 and (off < 1e-12).double().mean() > 0.98
    assert (opposite + v).abs().median() < 1e-12


@pytest.mark.parametrize("force", [gaussian_force, swirl])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_leapfrog_preserves_volume(force: Callable[[Tensor], Tensor], num_steps: int) -> None:
    def flow(state: Tensor) -> Tensor:
        u, v = state.view(1, 1, 4).chunk(2, -1)
        return torch.cat(leapfrog(u, v, torch.tensor([[0.3]], dtype=torch.float64), force, num_steps), -1).flatten()

    jacobian = torch.autograd.functional.jacobian(flow, torch.tensor([0.4, -1.0, 0.7, 0.2], dtype=torch.float64))
    assert (jacobian - torch.eye(4)).abs().max() > 0.1
    assert abs(torch.linalg.det(jacobian).item() - 1) < 1e-12


def test_leapfrog_is_second_order() -> None:
    """The energy error falls by about 4 when the step is halved over the same time."""
    generator = torch.Generator().manual_seed(1)
    u, v = torch.randn(2, 500, 1, 2, generator=generator, dtype=torch.float64)

    def error(num_steps: int) -> float:
        step = torch.tensor([[1.0 / num_steps]], dtype=torch.float64)
        a, b = leapfrog(u, v, step, gaussian_force, num_steps)
        return (a**2 + b**2 - u**2 - v**2).sum(-1).abs().mean().item()

    assert 3.7 < error(5) / error(10) < 4.3
    step = torch.tensor([[0.01]], dtype=torch.float64)
    a, _ = leapfrog(u, v, step, gaussian_force, 100)
    torch.testing.assert_close(a, math.cos(1) * u + math.sin(1) * v, atol=1e-4, rtol=0)


def skewed(u: Tensor) -> Tensor:
    """Log-density of two independent standard Gumbel variables: skewness 1.14."""
    return (-u - torch.exp(-u)).sum(-1)


def skewed_force(u: Tensor) -> Tensor:
    return -1 + torch.exp(-u)


def normal(u: Tensor) -> Tensor:
    return -0.5 * u.square().sum(-1)


EULER = 0.5772156649015329
TARGETS = {
    "normal": (normal, gaussian_force, (0.0, 1.0, 0.0), 1.1),
    "skewed": (skewed, skewed_force, (EULER, math.pi**2 / 6, 2.404113806319188), 0.8),
    "rounded": (skewed, rounded(skewed_force), (EULER, math.pi**2 / 6, 2.404113806319188), 0.8),
    "wrong force": (skewed, lambda u: 0.7 * gaussian_force(u), (EULER, math.pi**2 / 6, 2.404113806319188), 0.6),
}


@pytest.mark.parametrize("name", TARGETS)
def test_transitions_leave_the_target_invariant(name: str) -> None:
    """From exact samples, after 15 large steps: mean, variance and third central moment are still the target's."""
    log_density, force, (mean, variance, third), size = TARGETS[name]
    generator = torch.Generator().manual_seed(2)
    shape = (8000, 1, 2)
    if log_density is normal:
        u = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        u = -torch.log(-torch.log(torch.rand(shape, generator=generator, dtype=torch.float64)))
    start, rates = u, []
    parts: tuple[Tensor, ...] = (log_density(u),)
    step = torch.tensor([[size]], dtype=torch.float64)
    for _ in range(15):
        u, parts, accept = transition(
            u, parts, lambda p: p[0], lambda at: (log_density(at),), force, step, 2, generator
        )
        rates.append(accept.mean().item())
        torch.testing.assert_close(parts[0], log_density(u))  # what is carried along belongs to the state
    assert 0.4 < sum(rates) / 15 < 0.97, "rejections must matter, or the test sees no accept step"
    u = u.squeeze(1)
    assert_mean(u, mean)
    assert_mean((u - mean) ** 2, variance)
    assert_mean((u - mean) ** 3, third)
    moved = (u - start.squeeze(1)).abs().amax(-1) > 1e-9
    assert moved.double().mean() > 0.97
    correlation = torch.corrcoef(torch.stack([u[:, 0], start[:, 0, 0]]))[0, 1]
    assert correlation.abs() < 0.2, "the chains hardly mix"


def test_acceptance_is_the_energy_change() -> None:
    """One step from a known state: the probability is exp of the change in total energy, at most 1."""
    generator = torch.Generator().manual_seed(3)
    u = torch.full((2000, 1, 1), 0.5, dtype=torch.float64)
    step = torch.tensor([[1.5]], dtype=torch.float64)
    _, _, accept = transition(
        u, (normal(u),), lambda p: p[0], lambda at: (normal(at),), gaussian_force, step, 1, generator
    )
    velocity = torch.randn(u.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    half = velocity - 0.75 * u
    end = u + 1.5 * half
    last = half - 0.75 * end
    expected = (0.5 * (u**2 + velocity**2 - end**2 - last**2)).sum(-1).clamp(max=0).exp()
    torch.testing.assert_close(accept, expected)


def test_an_overflowing_proposal_is_rejected() -> None:
    generator = torch.Generator().manual_seed(4)
    u = torch.zeros(10, 2, 1)

    def energy(at: Tensor) -> tuple[Tensor, ...]:
        value = -0.5 * at.square().sum(-1)
        value[:, 1] = torch.where(at[:, 1, 0] == 0, value[:, 1], torch.nan)
        return (value,)

    new, parts, accept = transition(
        u, energy(u), lambda p: p[0], energy, gaussian_force, torch.full((2, 1), 0.2), 3, generator
    )
    assert (accept[:, 1] == 0).all() and (new[:, 1] == 0).all() and torch.isfinite(parts[0]).all()
    assert (accept[:, 0] > 0.9).all()
