"""Errors that say what is wrong with the input and how to cure it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["InputError"]


class InputError(ValueError):
    """Input that would give wrong numbers; the message names the cure.

    Args:
        message: what is wrong, where, and what to do about it.
        indices: positions of the offending images, if any.

    Example:
        >>> InputError("image 3 holds NaN", indices=[3]).indices
        [3]
    """

    def __init__(self, message: str, indices: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.indices = list(indices)

    def among(self, index: Sequence[int]) -> InputError:
        """The same error with the images' numbers in a larger batch, of which `index` was a part.

        Example:
            >>> error = InputError("no number (first: image 1)", [1]).among([40, 41, 42])
            >>> error.indices, str(error)
            ([41], 'no number (first: image 41)')
        """
        if not self.indices:
            return self
        own = [int(index[i]) for i in self.indices]
        return InputError(str(self).replace(f"image {self.indices[0]}", f"image {own[0]}"), own)
