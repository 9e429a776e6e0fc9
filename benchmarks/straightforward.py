"""The same work as published scripts do it: plain autograd in float32, no tricks. The yardstick of `inference.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vaegap.models import VAE


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) with torch's own operations: x (N, D), z (S, N, d) -> (S, N)."""
    bce = nn.functional.binary_cross_entropy_with_logits(
        vae.decoder_params(z), x.expand(*z.shape[:-1], -1), reduction="none"
    )
    return -bce.sum(-1) - 0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def gradient(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """d log p(x, z) / dz by autograd."""
    z = z.detach().requires_grad_(True)
    return torch.autograd.grad(log_joint(vae, x, z).sum(), z)[0]


def ais(vae: VAE, x: Tensor, num_chains: int, num_temperatures: int, exact: Tensor | None = None) -> Tensor:
    """AIS from the prior with a linear schedule, 10 leapfrog steps and step sizes adapted on the way.

    Args:
        exact: exact posterior samples (N, d): run backwards from them, and return the upper bound instead.

    Returns:
        the bound per image (N,).
    """
    n, d = len(x), vae.latent_dim
    betas = torch.linspace(0, 1, num_temperatures + 1).tolist()
    if exact is not None:
        betas = betas[::-1]
    z = torch.randn(num_chains, n, d) if exact is None else exact.expand(num_chains, -1, -1).clone()
    step, log_w = torch.full((num_chains, n, 1), 0.01), torch.zeros(num_chains, n)
    accepted = torch.zeros(num_chains, n)

    def log_prior(z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - 0.5 * d * math.log(2 * math.pi)

    def log_f(z: Tensor, beta: float) -> Tensor:
        return (1 - beta) * log_prior(z) + beta * log_joint(vae, x, z)

    def force(z: Tensor, beta: float) -> Tensor:
        return -(1 - beta) * z + beta * gradient(vae, x, z)

    for t in range(1, num_temperatures + 1):
        with torch.no_grad():
            log_w += log_f(z, betas[t]) - log_f(z, betas[t - 1])
        beta = betas[t]
        velocity = torch.randn_like(z)
        new, v = z, velocity + 0.5 * step * force(z, beta)
        for i in range(10):
            new = new + step * v
            v = v + (step if i < 9 else 0.5 * step) * force(new, beta)
        with torch.no_grad():
            change = log_f(new, beta) - log_f(z, beta) + 0.5 * (velocity.square() - v.square()).sum(-1)
            yes = torch.rand_like(change) < change.exp()
            z = torch.where(yes.unsqueeze(-1), new, z)
            accepted += yes
            step = (step * torch.where((accepted / t > 0.65).unsqueeze(-1), 1.02, 0.98)).clamp(1e-4, 0.5)
    bound = torch.logsumexp(log_w, 0) - math.log(num_chains)
    return bound if exact is None else -bound


def optimize_gaussian(vae: VAE, x: Tensor, num_steps: int, num_samples: int = 100) -> Tensor:
    """q*_FFG from mean 0 and variance 1 by Adam at 1e-3 with the usual gradient; returns L[q*] per image."""
    mean = torch.zeros(len(x), vae.latent_dim, requires_grad=True)
    logvar = torch.zeros(len(x), vae.latent_dim, requires_grad=True)
    optimizer = torch.optim.Adam([mean, logvar], lr=1e-3)

    def bound() -> Tensor:
        eps = torch.randn(num_samples, len(x), vae.latent_dim)
        z = mean + (0.5 * logvar).exp() * eps
        log_q = -0.5 * (eps.square() + logvar + math.log(2 * math.pi)).sum(-1)
        return (log_joint(vae, x, z) - log_q).mean(0)

    for _ in range(num_steps):
        optimizer.zero_grad()
        (-bound().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return bound()


def train_epoch(vae: VAE, x: Tensor, batch_size: int = 100) -> None:
    """One epoch through a DataLoader with torch's default Adam."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, eps=1e-4)
    for (batch,) in DataLoader(TensorDataset(x), batch_size, shuffle=True):
        posterior = vae.encode(batch)
        mean, logvar = posterior.params["mean"], posterior.params["logvar"]
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        log_q = -0.5 * ((z - mean).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(-1)
        loss = (log_q - log_joint(vae, batch, z.unsqueeze(0))[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
