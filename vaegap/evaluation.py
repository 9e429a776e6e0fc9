"""How a model is asked for numbers: without gradients, seeded, in parts that memory holds, of its own images only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.models import Model
from vaegap.posteriors import FullGaussian, Gaussian, Posterior

__all__ = ["encode", "evaluating", "image_chunks", "make_generator", "matching", "output_width", "samples_at_once"]

_CHUNK_FLOATS = 2**24  # numbers of the widest tensor of a chunk: 64 MB in float32, so memory stays far below 3 GB
_CACHE_FLOATS = 2**20  # the same on a CPU: what stays in its cache is computed more than twice as fast


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
        return _own_rows(vae.encode(x), len(x))
    try:
        pieces = [_own_rows(vae.encode(x[part]), part.stop - part.start) for part in parts]
    except InputError:
        return vae.encode(x)  # the same error, with the images' own indices
    shared = {k for k, v in pieces[0].params.items() if v.shape[0] == 1 < parts[0].stop}
    first = pieces[0].params
    joined = {k: v if k in shared else torch.cat([p.params[k] for p in pieces]) for k, v in first.items()}
    return Posterior(pieces[0].family, joined)


def output_width(vae: Model, x: Tensor) -> int:
    """Numbers that the decoder gives out for one image of x (N, D): the widest tensor of a sample."""
    return x.shape[-1] * vae.likelihood.params_per_pixel


def samples_at_once(vae: Model, x: Tensor, num_samples: int, cached: bool = False) -> int:
    """Samples of one image that a chunk has room for, or a CPU's cache."""
    return min(num_samples, max(1, (_CACHE_FLOATS if cached else _CHUNK_FLOATS) // output_width(vae, x)))


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
    return _own_rows(posterior, len(x))


def _own_rows(q: Posterior, num: int) -> Posterior:
    """q with one row an image in every tensor of a Gaussian; only networks are shared by images as they are climbed.

    Raises:
        InputError: a tensor has some other number of rows.
    """
    bad = {k: v.shape[0] for k, v in q.params.items() if v.shape[0] not in (1, num)}
    if bad:
        name, rows = next(iter(bad.items()))
        raise InputError(f"the posterior's {name} has {rows} rows for {num} images: one for each, or one for all")
    if not isinstance(q.family, Gaussian | FullGaussian):
        return q
    return Posterior(q.family, {k: v.expand(num, *v.shape[1:]) for k, v in q.params.items()})
