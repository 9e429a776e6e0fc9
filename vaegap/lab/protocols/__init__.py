"""The experiments of the paper, one file a kind; importing this registers them all."""

from __future__ import annotations

from vaegap.lab.protocols.certificates import certificates
from vaegap.lab.protocols.decompositions import gap_decomposition, gap_tables, generalization, model_folder, model_of
from vaegap.lab.protocols.two_latents import load_2d, posterior_2d

__all__ = [
    "certificates",
    "gap_decomposition",
    "gap_tables",
    "generalization",
    "load_2d",
    "model_folder",
    "model_of",
    "posterior_2d",
]
