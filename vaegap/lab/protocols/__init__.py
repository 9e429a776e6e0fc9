"""The experiments of the paper; importing this registers them all. What they compute is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vaegap.lab.protocols.catalog import gap_decomposition, generalization, posterior_2d

__all__ = ["gap_decomposition", "gap_tables", "generalization", "load_2d", "model_folder", "model_of", "posterior_2d"]

_HOME = {
    "gap_tables": "measuring",
    "model_folder": "models",
    "model_of": "models",
    "load_2d": "two_latents",
}

if TYPE_CHECKING:
    from vaegap.lab.protocols.measuring import gap_tables
    from vaegap.lab.protocols.models import model_folder, model_of
    from vaegap.lab.protocols.two_latents import load_2d


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
