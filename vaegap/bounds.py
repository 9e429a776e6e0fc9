r"""Bounds on log p(x) from samples of q: the ELBO and the importance-weighted bound, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.evaluation import evaluating, image_chunks, make_generator, matching, output_width, samples_at_once
from vaegap.models import Model
from vaegap.posteriors import Posterior
from vaegap.weights import controlled_log_weights, log_mean_exp, pareto_khat

__all__ = ["Bound", "elbo", "elbo_unchecked", "iwae", "join_bounds"]


@dataclass(frozen=True)
class Bound:
    """A stochastic bound on log p(x), image by image, in nats.

    Args:
        per_image: values (N,).
        mcse_per_image: Monte-Carlo standard error of each value (N,). The error of a log-mean-exp is the delta
            method's: too small where `ess` is a few samples, and for upper bounds the error given the exact sample
            that all reverse chains of an image start from.
        kind: "lower" or "upper": on which side of log p(x) the values lie in expectation.
        num_samples: samples or chains behind each value.
        ess: effective sample size of the importance weights (N,), if there are any.
        khat: Pareto shape of the weights (N,); above 0.7 the value and its error are unreliable (Vehtari et al. 2024).
        accept: mean acceptance rate of HMC (N,), if there is any.
        flagged: indices of images whose value should not be trusted, with the reason.

    Example:
        >>> bound = Bound(torch.tensor([-1.0, -3.0]), torch.tensor([0.3, 0.4]), "lower", 10)
        >>> bound.mean, round(bound.mcse, 3)
        (-2.0, 0.25)
    """

    per_image: Tensor
    mcse_per_image: Tensor
    kind: str
    num_samples: int
    ess: Tensor | None = None
    khat: Tensor | None = None
    accept: Tensor | None = None
    flagged: dict[int, str] | None = None

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return self.per_image.double().mean().item()

    @property
    def mcse(self) -> float:
        """Monte-Carlo standard error of `mean`: errors of different images are independent."""
        return self.mcse_per_image.double().square().sum().sqrt().item() / len(self.per_image)

    def __repr__(self) -> str:
        return f"Bound({self.kind}, mean={self.mean:.3f} ± {self.mcse:.3f} nats, {len(self.per_image)} images)"


def join_bounds(parts: Sequence[Bound]) -> Bound:
    """The bounds of consecutive groups of images as one; of the diagnostics, those that all parts have."""
    optional = {}
    for name in ("ess", "khat", "accept"):
        found = [getattr(part, name) for part in parts]
        optional[name] = torch.cat(found) if all(v is not None for v in found) else None
    flagged: dict[int, str] = {}
    offset = 0
    for part in parts:
        flagged |= {offset + i: why for i, why in (part.flagged or {}).items()}
        offset += len(part.per_image)
    values = torch.cat([p.per_image for p in parts])
    errors = torch.cat([p.mcse_per_image for p in parts])
    return Bound(values, errors, parts[0].kind, parts[0].num_samples, **optional, flagged=flagged or None)


def elbo(
    vae: Model, x: Tensor, num_samples: int = 100, posterior: Posterior | None = None, seed: int | None = None
) -> Bound:
    r"""The evidence lower bound, L[q] = E_q[log p(x, z) − log q(z|x)] ≤ log p(x).

    Where KL(q||p(z)) has a closed form, log q(z) − log p(z) − KL has mean zero and is used as a control variate,
    with the coefficient fitted on the other half of the samples: the estimate stays unbiased, and its error is
    below that of log w alone and, unlike that of E_q[log p(x|z)] − KL, vanishes as q approaches the posterior.

    Args:
        vae: the model.
        x: images (N, D).
        num_samples: Monte-Carlo samples per image, at least 2.
        posterior: q for these images; None for the encoder's.
        seed: of the samples; None draws one from torch's global state.

    Returns:
        a lower `Bound`, per image in nats.

    Raises:
        InputError: unusable images, fewer than 2 samples, or a value that is not finite (the images are named).

    Source: Cremer et al. 2018, section 2; Kingma & Welling 2014, eq. 2-3.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae(data_dim=5, latent_dim=2)
        >>> bound = elbo(vae, vae.simulate(10, seed=0), seed=0)
        >>> bound.kind, bound.per_image.shape
        ('lower', torch.Size([10]))
    """
    if num_samples < 2:
        raise InputError(f"num_samples={num_samples}: an error bar needs at least 2")
    return _finite(elbo_unchecked(vae, vae.check(x), num_samples, posterior, seed), "the ELBO")


def elbo_unchecked(
    vae: Model, x: Tensor, num_samples: int, posterior: Posterior | None = None, seed: int | None = None
) -> Bound:
    """`elbo` for images that were checked before; values that are not finite stay in it."""
    means, errors = [], []
    for log_w in controlled_log_weights(vae, x, num_samples, posterior, seed):
        means.append(log_w.double().mean(0))
        errors.append(log_w.double().std(0) / math.sqrt(num_samples))
    return Bound(torch.cat(means), torch.cat(errors), "lower", num_samples)


def iwae(
    vae: Model, x: Tensor, num_samples: int = 5000, posterior: Posterior | None = None, seed: int | None = None
) -> Bound:
    r"""The importance-weighted bound, L_k = E[log (1/k) Σ_i p(x, z_i) / q(z_i|x)] ≤ log p(x).

    Args:
        vae: the model.
        x: images (N, D).
        num_samples: k, the importance samples of the one estimate per image (5,000 in the paper).
        posterior: the proposal; None for the encoder's q.
        seed: of the samples.

    Returns:
        a lower `Bound`, per image in nats, with `ess` and Pareto `khat` of the weights. The error is the delta
        method's, sd(w) / (mean(w) √k), which is trustworthy only where k̂ < 0.7.

    Raises:
        InputError: unusable images, fewer than 2 samples, or a value that is not finite (the images are named).

    Source: Burda et al. 2016, eq. 8; Cremer et al. 2018, ineq. 12.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae(data_dim=5, latent_dim=2)
        >>> x = vae.simulate(10, seed=0)
        >>> bool(iwae(vae, x, 500, seed=0).mean > elbo(vae, x, seed=0).mean)
        True
    """
    if num_samples < 2:
        raise InputError(f"num_samples={num_samples}: an error bar needs at least 2")
    x = vae.check(x)
    generator = make_generator(vae, seed)
    values, errors, ess, khat = [], [], [], []
    with evaluating(vae):
        q_all = matching(vae, x, posterior)
        inner = samples_at_once(vae, x, num_samples, cached=True)
        for part in image_chunks(len(x), inner * output_width(vae, x), 256, x.device):
            q, pieces = q_all[part], []
            for start in range(0, num_samples, inner):
                z, log_q = q.rsample_and_log_prob(min(inner, num_samples - start), generator=generator)
                pieces.append((vae.log_joint(x[part], z) - log_q).double())
            log_w = torch.cat(pieces)  # (k, n)
            value, error, size = log_mean_exp(log_w)
            values.append(value)
            errors.append(error)
            ess.append(size)
            khat.append(pareto_khat(log_w))
    bound = Bound(torch.cat(values), torch.cat(errors), "lower", num_samples, torch.cat(ess), torch.cat(khat))
    return _finite(bound, "the importance-weighted bound")


def _finite(bound: Bound, what: str) -> Bound:
    bad = (~torch.isfinite(bound.per_image)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"{what} is not finite for {len(bad)} images (first: image {bad[0]}). The encoder or decoder overflows "
            "there: look at its outputs for these images, or drop them",
            bad,
        )
    return bound
