"""What the tests of the science half share: random members of every family, known answers, and honest error bars."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vaegap
from vaegap.posteriors import FAMILIES, Posterior, make_family
from vaegap.registering import register

torch.set_num_threads(1)  # results and CPU seconds then do not depend on the machine

register()
FAMILY_NAMES = tuple(FAMILIES)  # the registry: a new family is tested on arrival
BESIDE_GAUSSIANS: tuple[str, ...] = ()  # families that hold no Gaussian, so need not reach what the Gaussians reach
HOLD_GAUSSIANS = tuple(name for name in FAMILY_NAMES if name not in BESIDE_GAUSSIANS)
FORMS = ("amortized", "local")
KINDS = [(name, form) for name in FAMILY_NAMES for form in FORMS]
TRACTABLE = [(name, form) for name, form in KINDS if FAMILIES[name].tractable]


def member(
    name: str,
    form: str,
    count: int = 3,
    dim: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    spread: float = 0.1,
) -> Posterior:
    """A random posterior of a family: from a random encoder head, or with its own random weights for every image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = make_family(name, dim)
        if "hidden" in family.options:
            family = make_family(name, dim, **{**family.options, "hidden": 16})  # smaller nets, the same formulas
        if form == "amortized":
            head = family.head(8).to(dtype)
            with torch.no_grad():
                for p in head.parameters():
                    p.add_(0.05 * torch.randn_like(p))
            params = head(torch.randn(count, 8, dtype=dtype))
            return Posterior(family, {k: v.detach().to(dtype) for k, v in params.items()})
        q = family.local_variant().posterior(
            torch.randn(count, dim, dtype=dtype), 0.5 * torch.randn(count, dim, dtype=dtype) - 0.5
        )
        return Posterior(q.family, {k: v + spread * torch.randn_like(v) for k, v in q.params.items()})


def noise(q: Posterior, samples: int, seed: int = 0) -> Tensor:
    """Standard normal numbers (S, N, noise_dim) for `Family.transform`."""
    some = q.params["mean"]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, len(q), q.family.noise_dim, generator=generator, dtype=some.dtype)


def assert_mean(samples: Tensor, exact: Tensor | float, slack: float = 0.0) -> None:
    """The mean over the first axis is `exact` within 4 of its own standard errors, everywhere."""
    samples = samples.double()
    error = samples.std(0) / math.sqrt(samples.shape[0])
    off = (samples.mean(0) - exact).abs()
    assert torch.isfinite(off).all()
    assert (off <= 4 * error + slack).all(), f"{(off / error).max():.1f} standard errors, {off.max():.2g} off"


def assert_bound(bound: vaegap.Bound, exact: Tensor, slack: float = 0.0) -> None:
    """Every image, and the mean over images, within 4 standard errors."""
    off = bound.per_image.double() - exact.double()
    error = bound.mcse_per_image.double()
    assert torch.isfinite(off).all() and torch.isfinite(error).all()
    assert (off.abs() <= 4 * error + slack).all(), f"off by {off.abs().max():.3g} nat"
    assert abs(off.mean().item()) <= 4 * bound.mcse + slack


def best_member(name: str, vae: vaegap.exact.LinearGaussianVAE, x: Tensor) -> tuple[Posterior, Tensor, float]:
    """A member of a family whose ELBO on a linear-Gaussian VAE is known: the posterior, L per image, and the slack.

    Families with a closed-form optimum are at it; flows at the Gaussian optimum that they contain.
    """
    mean, cov = vae.posterior_moments(x)
    exact = vae.exact_gaps(x)
    logvar = -vae.precision().diagonal().log().expand_as(mean)
    if name in ("full_gaussian", "aux_flow"):
        lower = torch.linalg.cholesky(cov)
        sd = lower.diagonal()
        params = {
            "mean": mean,
            "logvar": 2 * sd.log().expand_as(mean),
            "tril": (lower / sd[:, None]).tril(-1).expand(len(x), -1, -1),
        }
        params = {k: v.to(x.dtype).contiguous() for k, v in params.items()}
        if name == "full_gaussian":
            return Posterior(make_family(name, vae.latent_dim), params), exact.log_p, 2e-5
        family = make_family(name, vae.latent_dim).local_variant()
        return Posterior(family, family.from_full_gaussian(**params)), exact.log_p, 5e-3
    family = make_family(name, vae.latent_dim).local_variant()
    return family.posterior(mean.to(x.dtype), logvar.to(x.dtype)), exact.best_gaussian, 2e-5
