"""The images that an audit shows: their shape, the order of their pixels, what the decoder makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaegap.audited import Picture
from vaegap.channels import channels_last
from vaegap.models import Model

__all__ = ["drawing_order", "natural_shape", "picture", "picture_shape"]


def picture(model: Model, image: Tensor, z: Tensor, number: int, order: Tensor) -> Picture:
    """An image (D,) and the decoder's mean at a latent z (d,), with pixels in the order in which they are drawn."""
    out = model.decode(z.to(model.dtype)[None, None])
    try:
        shown = out.mean
    except NotImplementedError:  # a distribution without a mean
        shown = out.sample()
    flat = shown.double().reshape(-1).cpu()
    if len(flat) != len(image):
        flat = image.double().cpu()
    return Picture(number, *([round(v, 4) for v in values.cpu()[order].tolist()] for values in (image, flat)))


def drawing_order(size: int, *shapes: tuple[int, ...] | None) -> Tensor:
    """Order in which the pixels of a flat row make a picture with its channels first."""
    order = torch.arange(size, device="cpu")  # wherever torch's default device may be
    last = next((s for s in shapes if s and channels_last(s) and math.prod(s) == size), None)
    return order if last is None else order.reshape(last).movedim(-1, 0).flatten()


def natural_shape(x: Any) -> tuple[int, ...]:
    """The shape of one image, as it was handed over; () where it has none."""
    return tuple(getattr(x, "shape", ()))[1:]


def picture_shape(size: int, *candidates: Any) -> tuple[int, int, int]:
    """(channels, height, width) of a picture with `size` numbers; one row if nothing fits."""
    for given in candidates:
        shape = (given[2], *given[:2]) if given and (channels_last(given) or given[2:] == (1,)) else given
        if shape is None or len(shape) not in (2, 3) or min(shape[-2:]) == 1:
            continue
        channels = shape[0] if len(shape) == 3 else 1
        if channels * shape[-2] * shape[-1] == size:
            return (int(channels), int(shape[-2]), int(shape[-1]))
    for channels in (1, 3):
        side = round((size / channels) ** 0.5)
        if side > 3 and channels * side * side == size:
            return (channels, side, side)
    return (1, 1, size)
