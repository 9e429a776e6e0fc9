"""Channels first or last: images whose axes stand in another order than the model reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vaegap.bounds import elbo
from vaegap.errors import InputError
from vaegap.intake import Finding
from vaegap.models import Model

__all__ = ["channels_last", "check_axes", "layout_of", "layout_readings", "with_layout"]

_MOST_CHANNELS = 4
_ENOUGH = 0.02  # nats a pixel: scrambled pictures cost a trained model far more, and an untrained one less
_SAMPLES = 16


def channels_last(shape: Sequence[int]) -> bool:
    """Whether an image's shape is (H, W, C) with several channels.

    Example:
        >>> channels_last((32, 32, 3)), channels_last((3, 32, 32)), channels_last((28, 28, 1)), channels_last((28, 28))
        (True, False, False, False)
    """
    return len(shape) == 3 and 1 < shape[2] <= _MOST_CHANNELS < min(shape[:2])


def _channels_first(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and channels_last((shape[1], shape[2], shape[0]))


def layout_of(model: Model) -> tuple[int, ...] | None:
    """The shape in which a model takes one image, where it says so."""
    inner: Any = getattr(model, "wrapped", model)
    shape = getattr(inner, "data_shape", None)
    return None if shape is None or isinstance(shape, int) else tuple(shape)


def check_axes(given: Sequence[int], wanted: Sequence[int] | None, what: str = "x", whose: str = "data_shape") -> None:
    """Raise `InputError` where one image's axes come in another order than they are read in.

    Axes of size 1 do not matter, and rows of pixels have no axes.

    Args:
        given: shape of one image, as it was handed over.
        wanted: shape in which it is read; None if nobody says.
        what: name of the images.
        whose: name of what says the shape.

    Example:
        >>> check_axes((28, 28, 1), (1, 28, 28))
    """
    mine, theirs = ([n for n in shape if n != 1] for shape in (given, wanted or ()))
    if mine == theirs or sorted(mine) != sorted(theirs):
        return
    cure = f"bring them into the order of {tuple(wanted or ())} with permute"
    if len(given) == 3 and wanted is not None and len(wanted) == 3:
        if tuple(wanted) == (given[2], given[0], given[1]):
            cure = f"their channels come last: move them first with {what} = {what}.movedim(-1, 1) (numpy: moveaxis)"
        elif tuple(wanted) == (given[1], given[2], given[0]):
            cure = f"their channels come first: move them last with {what} = {what}.movedim(1, -1) (numpy: moveaxis)"
    raise InputError(
        f"the images in {what} have shape (N, {', '.join(map(str, given))}), but {whose} is {tuple(wanted or ())}: "
        f"flattened, their pixels would be scrambled. {cure[0].upper()}{cure[1:]}"
    )


@contextmanager
def with_layout(given: Sequence[int], wanted: Sequence[int] | None) -> Iterator[None]:
    """An encoder that failed may have met images of another shape than it takes: the message says how to give them.

    Args:
        given: shape of one image, as it was handed over.
        wanted: shape in which the encoder got it; None for a flat row.
    """
    try:
        yield
    except InputError as error:
        last = channels_last(given if wanted is None else wanted)
        if not str(error).startswith("the encoder failed") or not (last or (wanted is None and len(given) > 1)):
            raise
        h, w, c = given if len(given) == 3 else (1, 1, 1)
        if last and wanted is not None:
            h, w, c = wanted
        shape = (c, h, w) if last else tuple(given) if len(given) == 3 else (1, *given)
        move = ""
        if channels_last(given):
            move = f" Your images are (N, {', '.join(map(str, given))}), with channels last: a convolution of torch's "
            move += "takes them first, so say x = x.movedim(-1, 1) (numpy: moveaxis) too."
        cure = f" If it takes pictures, say data_shape={shape}.{move}"
        raise InputError(f"{str(error).rstrip('.')}.{cure}", error.indices) from error


def layout_readings(vae: Model, x: Tensor, *shapes: Sequence[int] | None, seed: int = 0) -> list[Finding]:
    """Do the channels of rows of pixels stand where the model was trained to find them? The right order explains more.

    Args:
        vae: the model.
        x: images (N, D), in the order in which the model gets them.
        shapes: candidates for the shape of one image, the first with channels decides.
        seed: of the samples; all readings share them.

    Returns:
        a finding where images with their channels moved have an ELBO higher by more than 0.02 nats a pixel, 1 nat and
        four standard errors.
    """
    sizes = next((s for s in shapes if s and (channels_last(s) or _channels_first(s))), None)
    if sizes is None or math.prod(sizes) != x.shape[1]:
        return []
    h, w, c = sizes if channels_last(sizes) else (sizes[1], sizes[2], sizes[0])
    x = vae.check(x)
    moved = {
        "first": x.reshape(-1, h, w, c).movedim(-1, 1).flatten(1),
        "last": x.reshape(-1, c, h, w).movedim(1, -1).flatten(1),
    }
    taken = elbo(vae, x, _SAMPLES, seed=seed).per_image.double()
    found: dict[str, tuple[float, float]] = {}
    for where, images in moved.items():
        try:
            gain = elbo(vae, images, _SAMPLES, seed=seed).per_image.double() - taken
        except InputError:  # no reading: it overflows
            continue
        error = gain.std().item() / len(x) ** 0.5 if len(x) > 1 else math.inf
        if gain.mean().item() > max(1.0, 4 * error, _ENOUGH * x.shape[1]):
            found[where] = (gain.mean().item(), taken.mean().item())
    if not found:
        return []
    where = max(found, key=lambda k: found[k])
    gain_, before = found[where]
    axes, cure = ("(C, H, W)", "movedim(-1, 1)") if where == "first" else ("(H, W, C)", "movedim(1, -1)")
    start = (h, w, c) if where == "first" else (c, h, w)
    return [
        Finding(
            "layout",
            f"the model seems to read pixels in another order: with each image's channels moved {where}, as {axes}, "
            f"the ELBO is {gain_:.1f} nats higher ({before + gain_:.1f} instead of {before:.1f})",
            f"give the images as x.reshape(-1, {', '.join(map(str, start))}).{cure}; numbers of this report are for "
            "the images as they were passed",
        )
    ]
