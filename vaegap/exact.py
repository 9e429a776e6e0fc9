r"""Oracles: a linear-Gaussian VAE, whose gaps are known in closed form, and quadrature for two latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaegap.errors import InputError
from vaegap.evaluation import evaluating, image_chunks, matching
from vaegap.models import VAE, Model
from vaegap.posteriors import Posterior

__all__ = ["ExactGaps", "LinearGaussianVAE", "Quadrature", "linear_gaussian_vae", "quadrature"]


@dataclass(frozen=True)
class ExactGaps:
    """Exact values per image, all in nats (N,): log p(x), the best L[q*] of each family, L[q], and the gaps.

    `approximation` and `amortization` are those of the factorized family; a full covariance contains the posterior.
    """

    log_p: Tensor
    best_gaussian: Tensor
    best_full_gaussian: Tensor
    elbo: Tensor

    @property
    def approximation(self) -> Tensor:
        """log p(x) − L[q*] of the best factorized Gaussian (N,), nats."""
        return self.log_p - self.best_gaussian

    @property
    def amortization(self) -> Tensor:
        """L[q*] of the best factorized Gaussian − L[q] of the encoder (N,), nats."""
        return self.best_gaussian - self.elbo


class LinearGaussianVAE(VAE):
    r"""x = W z + b + σ ε with z ~ N(0, I): every quantity of the decomposition has a closed form.

    With precision Λ = I + WᵀW/σ², the posterior is N(Λ⁻¹Wᵀ(x − b)/σ², Λ⁻¹). The best factorized q has the same mean
    and variances 1/Λ_ii, at KL(q*||p) = ½ (Σ_i log Λ_ii − log|Λ|). The encoder is linear, and off by a known amount.

    Args:
        data_dim, latent_dim: sizes of x and z.
        noise: σ.
        encoder_error: size of the random error in the encoder's weights; 0 makes the amortization gap vanish.
        seed: of W, b and the encoder's error.
    """

    weight: Tensor
    offset: Tensor

    def __init__(self, data_dim: int, latent_dim: int, noise: float, encoder_error: float, seed: int) -> None:
        super().__init__(
            data_dim,
            latent_dim,
            encoder_hidden=(),
            decoder_hidden=(),
            likelihood="gaussian",
            likelihood_options={"scale": noise},
            seed=seed,
        )
        generator = torch.Generator().manual_seed(seed)
        d, device = latent_dim, self.device

        def draw(*shape: int) -> Tensor:  # on the CPU, wherever torch's default device may be: seeds mean the same
            return torch.randn(shape, generator=generator, device="cpu").to(device)

        with torch.no_grad():
            # buffers move with the model; they follow from the seed, so its state_dict is that of any VAE
            self.register_buffer("weight", draw(data_dim, d) / math.sqrt(d), False)
            self.register_buffer("offset", draw(data_dim), False)
            self.noise = noise
            layer = next(m for m in self.decoder.modules() if isinstance(m, nn.Linear))
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.offset)
            precision = self.precision()
            gain = torch.linalg.solve(precision, self.weight.double().mT) / noise**2
            gain = gain + encoder_error * draw(*gain.shape) / math.sqrt(data_dim)
            logvar = -precision.diagonal().log() + encoder_error * draw(d)
            linear = next(m for m in self.head.modules() if isinstance(m, nn.Linear))
            linear.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
            linear.bias.copy_(torch.cat([-gain @ self.offset.double(), logvar]))

    def precision(self) -> Tensor:
        """Λ (d, d), in double precision."""
        w = self.weight.double()
        return torch.eye(self.latent_dim, dtype=w.dtype, device=w.device) + w.mT @ w / self.noise**2

    def simulate(self, num: int, seed: int = 0) -> Tensor:
        """Images from the model (num, D)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num, self.latent_dim, generator=generator, device="cpu").to(self.weight)
        eps = torch.randn(num, self.data_dim, generator=generator, device="cpu").to(self.weight)
        return (z @ self.weight.T + self.offset + self.noise * eps).to(self.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) (N,), nats."""
        cov = self.weight.double() @ self.weight.double().mT
        cov = cov + self.noise**2 * torch.eye(self.data_dim, dtype=cov.dtype, device=cov.device)
        return torch.distributions.MultivariateNormal(self.offset.double(), cov).log_prob(x.double())

    def posterior_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact posterior means (N, d) and the covariance (d, d) that all images share."""
        cov = torch.linalg.inv(self.precision())
        return (x.double() - self.offset.double()) @ self.weight.double() @ cov / self.noise**2, cov

    def kl_to_posterior(self, x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        """KL(N(mean, cov) || p(z|x)) (N,) for mean (N, d) and cov (N, d, d)."""
        true_mean, true_cov = self.posterior_moments(x)
        p = torch.distributions.MultivariateNormal(true_mean, true_cov)
        q = torch.distributions.MultivariateNormal(mean.double(), cov.double())
        return torch.distributions.kl_divergence(q, p)

    @torch.no_grad()
    def exact_gaps(self, x: Tensor) -> ExactGaps:
        """The whole decomposition in closed form for images x (N, D)."""
        log_p = self.log_evidence(x)
        precision = self.precision()
        loss = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        mean, sd = self.encode(x).moments()
        elbo = log_p - self.kl_to_posterior(x, mean, torch.diag_embed(sd**2))
        return ExactGaps(log_p, log_p - loss, log_p, elbo)


def linear_gaussian_vae(
    data_dim: int = 20, latent_dim: int = 5, noise: float = 0.5, encoder_error: float = 0.1, seed: int = 0
) -> LinearGaussianVAE:
    """A VAE whose log p(x), best posteriors and gaps are known exactly.

    Args:
        data_dim, latent_dim: sizes of x and z.
        noise: standard deviation of the observation noise.
        encoder_error: how wrong the encoder is; 0 for the best factorized posterior.
        seed: of everything random in it.

    Returns:
        a `LinearGaussianVAE`, usable wherever a `VAE` is; its `exact_gaps(x)` are in nats, (N,) each.

    Raises:
        InputError: a noise that is not positive.

    Source: Bishop 2006, eqs. 2.113-2.117; design of the oracle: book, "Exact oracles".

    Example:
        >>> vae = linear_gaussian_vae()
        >>> gaps = vae.exact_gaps(vae.simulate(4, seed=1))
        >>> bool((gaps.amortization >= 0).all() and (gaps.approximation > 0).all())
        True
    """
    return LinearGaussianVAE(data_dim, latent_dim, noise, encoder_error, seed)


@dataclass(frozen=True)
class Quadrature:
    """The true posterior on a grid, image by image.

    Args:
        vae, x: the model and its images (N, D).
        log_p: log p(x) (N,), nats.
        axes: grid coordinates (N, G, 2): the two axes of each image's own window.
        log_posterior: log p(z|x) at the grid (N, G, G); entry [n, i, j] is at z = (axes[n, i, 0], axes[n, j, 1]).
        coarse_error: absolute difference of log p̂ on the full grid and on every other point (N,): an estimate of the
            quadrature error.
    """

    vae: Model
    x: Tensor
    log_p: Tensor
    axes: Tensor
    log_posterior: Tensor
    coarse_error: Tensor

    @property
    def edge(self) -> Tensor:
        """Share of the posterior's mass on the outermost points of its window (N,)."""
        inner = self.log_posterior[:, 1:-1, 1:-1].flatten(1).logsumexp(1)
        return (1 - (inner - self.log_posterior.flatten(1).logsumexp(1)).exp()).clamp_min(0)

    @property
    def flagged(self) -> dict[int, str]:
        """Images whose log p should not be trusted, with the reason: a grid too coarse, or a window too small."""
        found = {i: f"half the grid gives {self.coarse_error[i]:.2g} nats another log p: take more points"
                 for i in (self.coarse_error > 0.05).nonzero().flatten().tolist()}  # fmt: skip
        cut = {i: f"{self.edge[i]:.1%} of the posterior lies on the window's edge: take a larger radius"
               for i in (self.edge > 1e-4).nonzero().flatten().tolist()}  # fmt: skip
        return found | cut

    def grid(self) -> Tensor:
        """Grid points (G * G, N, 2), in the order of `log_posterior[n].flatten()`."""
        return _product(self.axes)

    def kl(self, posterior: Posterior, reach: float = 8.0) -> Tensor:
        """KL(q || p(z|x)) (N,) in nats for a family with a tractable density.

        Summed over a window of `reach` standard deviations of q around its mean, so that a q far from the posterior
        is seen whole; the sum is divided by q's mass there, which `mass` reports.

        Raises:
            InputError: q is for other images or latents.
        """
        out = []
        for part, grid, log_q, _ in self._windows(posterior, reach):
            x = self.x[part]
            with evaluating(self.vae):
                log_joint = torch.stack([_log_joint_at(self.vae, x[i : i + 1], grid[:, i]) for i in range(len(x))])
            q = log_q.exp()
            out.append((q * (log_q - log_joint + self.log_p[part, None])).sum(1) / q.sum(1))
        return torch.cat(out)

    def mass(self, posterior: Posterior, reach: float = 8.0) -> Tensor:
        """Probability that q puts on its own window (N,): 1 unless its tails are heavy or the grid too coarse."""
        return torch.cat([log_q.exp().sum(1) * cell for *_, log_q, cell in self._windows(posterior, reach)])

    def _windows(self, posterior: Posterior, reach: float) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Some images at a time: a grid (G * G, n, 2) around q, log q there (n, G * G), and the cells' areas (n,)."""
        posterior = matching(self.vae, self.x, posterior)
        g = self.axes.shape[1]
        unit = torch.linspace(-reach, reach, g, dtype=torch.float64, device=self.x.device)
        for part in _parts(len(self.x), g):
            q = posterior[part]
            mean, sd = (v.double() for v in q.moments())
            axes = mean[:, None] + sd[:, None] * unit[:, None]  # (n, G, 2)
            grid = _product(axes)
            with torch.no_grad():
                log_q = q.log_prob(grid.to(q.params["mean"].dtype)).double().T
            yield part, grid, log_q, (axes[:, 1] - axes[:, 0]).prod(-1)


def _product(axes: Tensor) -> Tensor:
    """All points of per-image grids: axes (N, G, 2) -> (G * G, N, 2)."""
    g = axes.shape[1]
    first = axes[:, :, 0].unsqueeze(2).expand(-1, g, g)
    second = axes[:, :, 1].unsqueeze(1).expand(-1, g, g)
    return torch.stack([first, second], -1).flatten(1, 2).transpose(0, 1)


def quadrature(vae: Model, x: Tensor, points: int = 151, radius: float = 7.0) -> Quadrature:
    """log p(x) and the posterior on a grid, for any decoder with two latents and a N(0, I) prior.

    A coarse grid over the prior's ±`radius` finds each image's posterior; a window of 8 standard deviations around
    it, never narrower than the coarse cells need, is then resolved with points × points values.

    Args:
        vae: a model with latent_dim 2.
        x: images (N, D).
        points: grid points along each axis, odd.
        radius: half width of the coarse grid; the prior's mass outside 7 is 5e-11.

    Returns:
        a `Quadrature`: `.log_p` (N,) in nats with `.coarse_error`, the posterior on each image's grid, and `.kl(q)`.

    Raises:
        InputError: the model has other than two latents, or a prior of its own; or log p(x, z) is not a number.

    Source: the experiment it serves: Cremer et al. 2018, section 5.1; design of the oracle: book, "Exact oracles".

    Example:
        >>> vae = linear_gaussian_vae(data_dim=4, latent_dim=2)
        >>> x = vae.simulate(3)
        >>> bool((quadrature(vae, x).log_p - vae.log_evidence(x)).abs().max() < 1e-3)
        True
    """
    if vae.latent_dim != 2:
        raise InputError(f"quadrature needs two latents; this model has {vae.latent_dim}")
    if vae.prior is not None:
        raise InputError("quadrature looks where a N(0, I) prior has its mass; this model has a prior of its own")
    if points < 5 or not 0 < radius < math.inf:
        raise InputError(f"points={points}, radius={radius}: at least 5 points and a positive radius")
    x = vae.check(x)
    points += 1 - points % 2
    axes = torch.empty(len(x), points, 2, dtype=torch.float64, device=x.device)
    table = torch.empty(len(x), points, points, dtype=torch.float64, device=x.device)
    log_p, error = torch.empty(2, len(x), dtype=torch.float64, device=x.device)
    with evaluating(vae):
        for part in _parts(len(x), points):
            try:
                axes[part], table[part] = _resolve(vae, x[part], points, radius)
            except InputError as problem:
                raise problem.among(list(range(len(x)))[part]) from problem
            cell = (axes[part, 1] - axes[part, 0]).prod(-1).log()
            log_p[part] = table[part].flatten(1).logsumexp(1) + cell
            rough = table[part, ::2, ::2].flatten(1).logsumexp(1) + cell + math.log(4)
            error[part] = (log_p[part] - rough).abs()
            table[part] -= log_p[part, None, None]
    return Quadrature(vae, x, log_p, axes, table, error)


def _parts(num_images: int, points: int) -> list[slice]:
    """Images at a time: what lies on a grid is double precision, and a few such tables are needed at once."""
    return image_chunks(num_images, 32 * points * points)


def _resolve(vae: Model, x: Tensor, points: int, radius: float) -> tuple[Tensor, Tensor]:
    """Axes of each image's window (N, G, 2) and log p(x, z) there (N, G, G)."""
    coarse = torch.linspace(-radius, radius, 141, device=x.device).repeat(len(x), 1).unsqueeze(-1).expand(-1, -1, 2)
    log_joint = _log_joint_on(vae, x, coarse)
    weight = (log_joint - log_joint.flatten(1).logsumexp(1)[:, None, None]).exp()
    windows = []
    for axis, marginal in ((0, weight.sum(2)), (1, weight.sum(1))):
        grid = coarse[:, :, axis].double()
        mean = (marginal * grid).sum(1)
        sd = (marginal * (grid - mean[:, None]).square()).sum(1).sqrt().clamp_min(2 * radius / 140)
        unit = torch.linspace(-1, 1, points, dtype=torch.float64, device=x.device)
        seen = torch.where(marginal > 1e-9, grid, mean[:, None])  # a second mode far away widens the window
        low = torch.minimum(mean - 8 * sd, seen.amin(1))
        high = torch.maximum(mean + 8 * sd, seen.amax(1))
        windows.append((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * unit)
    axes = torch.stack(windows, -1)  # (N, G, 2)
    return axes, _log_joint_on(vae, x, axes.to(vae.dtype))


def _log_joint_on(vae: Model, x: Tensor, axes: Tensor) -> Tensor:
    """log p(x, z) in double on each image's grid: axes (N, G, 2) -> (N, G, G)."""
    g = axes.shape[1]
    grid = _product(axes.to(vae.dtype))
    out = torch.stack([_log_joint_at(vae, x[i : i + 1], grid[:, i]).view(g, g) for i in range(len(x))])
    bad = (out.isnan() | (out == torch.inf)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"log p(x, z) is not finite on the grid of {len(bad)} images (first: image {bad[0]}): the decoder "
            "overflows there; look at its outputs for latents far from 0, or take a smaller radius",
            bad,
        )
    return out


def _log_joint_at(vae: Model, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) (M,) in double for one image x (1, D) at points z (M, 2)."""
    rows = [vae.log_joint(x, part).double().squeeze(1) for part in z.to(vae.dtype).unsqueeze(1).split(4096)]
    return torch.cat(rows)
