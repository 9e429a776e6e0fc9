r"""Bounds on log p(x) from samples of q: the ELBO and the importance-weighted bound, with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.models import Model
from vaegap.posteriors import Posterior

__all__ = [
    "Bound",
    "controlled_log_weights",
    "elbo",
    "elbo_unchecked",
    "encode",
    "evaluating",
    "image_chunks",
    "iwae",
    "join_bounds",
    "make_generator",
    "matching",
    "output_width",
]

_CHUNK_FLOATS = 2**24  # numbers of the widest tensor of a chunk: 64 MB in float32, so memory stays far below 3 GB
_CACHE_FLOATS = 2**20  # the same on a CPU: what stays in its cache is computed more than twice as fast


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


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Switch batch norm and dropout to evaluation, without gradients, and back afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def make_generator(model: Model, seed: int | None) -> torch.Generator:
    """A random generator on the model's device; seeded from torch's global state if seed is None.

    Raises:
        InputError: the device has no double precision, in which all bounds are summed (Apple's mps).
    """
    if model.device.type == "mps":
        raise InputError("mps has no float64, in which bounds are summed: move the model with model.to('cpu')")
    generator = torch.Generator(model.device)
    return generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)


def image_chunks(
    num_images: int, floats_per_image: int, most: int | None = None, device: torch.device | None = None
) -> list[slice]:
    """Slices of images such that a chunk's widest tensor stays within the memory budget, or a CPU's cache."""
    on_cpu = device is not None and device.type == "cpu"
    budget = min(_CHUNK_FLOATS, _CACHE_FLOATS) if on_cpu else _CHUNK_FLOATS
    step = max(1, min(num_images, most or num_images, budget // max(1, floats_per_image)))
    return [slice(i, min(i + step, num_images)) for i in range(0, num_images, step)]


def encode(vae: Model, x: Tensor) -> Posterior:
    """The encoder's q for images (N, D), a part at a time: a convolutional encoder needs megabytes an image."""
    parts = image_chunks(len(x), 16 * x.shape[-1])
    if len(parts) == 1:
        return vae.encode(x)
    try:
        pieces = [vae.encode(x[part]) for part in parts]
    except InputError:
        return vae.encode(x)  # the same error, with the images' own indices
    shared = {k for k, v in pieces[0].params.items() if v.shape[0] == 1 < parts[0].stop}
    first = pieces[0].params
    joined = {k: v if k in shared else torch.cat([p.params[k] for p in pieces]) for k, v in first.items()}
    return Posterior(pieces[0].family, joined)


def output_width(vae: Model, x: Tensor) -> int:
    """Numbers that the decoder gives out for one image of x (N, D): the widest tensor of a sample."""
    return x.shape[-1] * vae.likelihood.params_per_pixel


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


def controlled_log_weights(
    vae: Model, x: Tensor, num_samples: int, posterior: Posterior | None = None, seed: int | None = None
) -> Iterator[Tensor]:
    """The terms (S, n) that the ELBO is the mean of, for one group of consecutive images after the other.

    Posteriors of one family that are given the same images and the same seed get the same noise.
    """
    generator = make_generator(vae, seed)
    with evaluating(vae):
        q_all = matching(vae, x, posterior)
        width = output_width(vae, x)
        inner = min(num_samples, max(1, _CHUNK_FLOATS // width))  # samples drawn at once
        for part in image_chunks(len(x), num_samples * width, device=x.device):
            q, pieces = q_all[part], []
            for start in range(0, num_samples, inner):
                z, log_q = q.rsample_and_log_prob(min(inner, num_samples - start), generator=generator)
                log_prior = vae.log_prior(z)
                pieces.append((vae.log_likelihood(x[part], z) + log_prior - log_q, log_q - log_prior))
            log_w, excess = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            kl = q.kl() if vae.prior is None else None
            if kl is not None:
                log_w = _control(log_w, excess - kl)
            yield log_w


def matching(vae: Model, x: Tensor, posterior: Posterior | None) -> Posterior:
    """The encoder's q, or the posterior given if it belongs to these images: broadcasting would hide a mismatch.

    Raises:
        InputError: it is for another number of images or latents, or in another precision or place.
    """
    if posterior is None:
        return encode(vae, x)
    have, want = (len(posterior), posterior.family.latent_dim), (len(x), vae.latent_dim)
    if have != want:
        raise InputError(
            f"the posterior is for {have[0]} images and {have[1]} latents, but there are {want[0]} images and "
            f"{want[1]} latents"
        )
    some = posterior.params["mean"]
    if (some.dtype, some.device) != (vae.dtype, vae.device):
        raise InputError(
            f"the posterior is in {some.dtype} on {some.device}, the model in {vae.dtype} on {vae.device}: bring its "
            "tensors there with .to(...)"
        )
    return posterior


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
        inner = min(num_samples, max(1, _CACHE_FLOATS // output_width(vae, x)))  # samples drawn at once
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


def _finite(bound: Bound, what: str) -> Bound:
    bad = (~torch.isfinite(bound.per_image)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"{what} is not finite for {len(bad)} images (first: image {bad[0]}). The encoder or decoder overflows "
            "there: look at its outputs for these images, or drop them",
            bad,
        )
    return bound
