"""Importance log-weights log p(x, z) − log q(z|x): drawn with a control variate, averaged, and judged by their tail."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaegap.evaluation import evaluating, image_chunks, make_generator, matching, output_width, samples_at_once
from vaegap.models import Model
from vaegap.posteriors import Posterior

__all__ = ["controlled_log_weights", "log_mean_exp", "pareto_khat"]


def controlled_log_weights(
    vae: Model, x: Tensor, num_samples: int, posterior: Posterior | None = None, seed: int | None = None
) -> Iterator[Tensor]:
    """The terms (S, n) that the ELBO is the mean of, for one group of consecutive images after the other.

    Posteriors of one family that are given the same images and the same seed get the same noise.
    """
    generator = make_generator(vae, seed)
    with evaluating(vae):  # not across a yield: taking turns between two of these would mix their modes up
        q_all = matching(vae, x, posterior)
    for part in image_chunks(len(x), num_samples * output_width(vae, x), device=x.device):
        with evaluating(vae):
            log_w = _log_weights(vae, x[part], num_samples, q_all[part], generator)
        yield log_w


def _log_weights(vae: Model, x: Tensor, num_samples: int, q: Posterior, generator: torch.Generator) -> Tensor:
    """The terms (S, n) of some images."""
    inner, pieces = samples_at_once(vae, x, num_samples), []
    for start in range(0, num_samples, inner):
        z, log_q = q.rsample_and_log_prob(min(inner, num_samples - start), generator=generator)
        pieces.append((vae.log_joint(x, z) - log_q, log_q - vae.log_prior(z)))
    log_w, excess = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    kl = q.kl() if vae.standard_prior else None
    return log_w if kl is None else _control(log_w, excess - kl)


def _control(value: Tensor, zero_mean: Tensor) -> Tensor:
    """value + β · zero_mean per image, β regressed on the other half of the samples: (S, N) -> (S, N)."""
    half = value.shape[0] // 2
    out = value.clone()
    for mine, other in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        v, c = value[other].double(), zero_mean[other].double()
        c = c - c.mean(0)
        beta = -((v - v.mean(0)) * c).sum(0) / c.square().sum(0).clamp_min(1e-12)
        out[mine] = value[mine] + beta.clamp(-2, 2).to(value.dtype) * zero_mean[mine]
    return out


def log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log of the mean weight, its delta-method standard error, and the effective sample size: (k, N) -> 3 x (N,)."""
    k = log_w.shape[0]
    value = torch.logsumexp(log_w, 0) - math.log(k)
    relative = (log_w - value).exp()  # weights with mean 1
    return value, relative.std(0) / math.sqrt(k), relative.sum(0).square() / relative.square().sum(0)


_VANISHING = -700.0  # nats: exp of it is about the smallest number of double precision


def pareto_khat(log_w: Tensor) -> Tensor:
    """Pareto shape k̂ of importance log-weights (k, N) -> (N,); NaN below 25 samples, −inf for equal weights.

    Infinite where the tail's own weights vanish beside the largest one: a shape fitted to zeros would look harmless.
    """
    k = log_w.shape[0]
    if k < 25:
        return torch.full((log_w.shape[1],), torch.nan, dtype=torch.float64, device="cpu")
    import warnings

    from arviz_stats.base import array_stats

    weights = log_w.double().cpu()  # float32 loses tails that double precision still sees
    tail = math.ceil(min(k / 5, 3 * k**0.5))
    cutoff = weights.sort(0, descending=True).values[tail] - weights.max(0).values
    out = torch.empty(log_w.shape[1], dtype=torch.float64, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, column in enumerate(weights.T.numpy()):
            try:
                out[i] = float(array_stats.psislw(-column)[1])  # psislw takes log-likelihoods, i.e. minus log-weights
            except ValueError:  # "All tail values are the same": the proposal is the posterior, there is no tail
                out[i] = -torch.inf
    return out.where(cutoff > _VANISHING, torch.inf)
