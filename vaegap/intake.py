"""What an audit takes in, and the form of what it finds odd: each finding names its cure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaegap.errors import InputError

__all__ = ["Finding", "as_images"]


@dataclass(frozen=True)
class Finding:
    """Something odd about the model or the images.

    Args:
        kind: a word for programs: "training_mode", "no_module", "random_encoder", "random_decoder", "batch_dependent",
            "wrong_gradient", "ignored_latents", "layout", "scale", "probabilities", "pixel_range", "sandwich", "khat",
            "missed_modes", "wide_evidence", "order", "unsettled", "stuck" or "unchecked_modes".
        message: what was seen, with numbers.
        cure: what to do about it.
        severity: "warning" if it may make numbers wrong, "note" otherwise.
    """

    kind: str
    message: str
    cure: str
    severity: str = "warning"


def as_images(x: object, what: str = "x") -> Tensor:
    """Images as a float matrix (N, D), from a tensor or an array of any shape (N, ...).

    Raises:
        InputError: no images, or not numbers.

    Example:
        >>> as_images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).shape
        torch.Size([3, 16])
    """
    try:
        tensor = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is no array of numbers ({error}); pass a tensor or array (N, ...)") from None
    if tensor.dim() < 2 or tensor.shape[0] == 0 or tensor.numel() == 0:
        raise InputError(f"{what} holds no images: its shape is {tuple(tensor.shape)}, expected (N, D) or (N, C, H, W)")
    if tensor.is_complex():
        raise InputError(f"{what} is complex; images are real numbers")
    tensor = tensor.flatten(1)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
