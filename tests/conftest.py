"""Somebody's model, images and exported files, for the tests of audits and adapters that do not bring their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from somebody import LATENT, D, Dense
from torch import Tensor


@pytest.fixture
def model() -> Dense:
    torch.manual_seed(0)
    return Dense().eval()


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(7, D, generator=torch.Generator().manual_seed(1)) < 0.5).float()


@pytest.fixture
def exported(model: Dense, tmp_path: Path) -> tuple[Path, Path]:
    many = {0: torch.export.Dim.DYNAMIC}
    for name, module, size in (("encoder", model.encoder, D), ("decoder", model.decoder, LATENT)):
        program = torch.export.export(module, (torch.zeros(4, size),), dynamic_shapes={"input": many})
        torch.export.save(program, tmp_path / f"{name}.pt2")
    return tmp_path / "encoder.pt2", tmp_path / "decoder.pt2"
