"""Fixtures that several files share: somebody's model and exported files, an exact model, projects with results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from grid_lab import ASK, DECLARED, PRELUDE, ROOT
from notebook_lab import notebook
from somebody import LATENT, D, Dense
from torch import Tensor
from toy_runs import CALLS

from vaegap import Audit, audit
from vaegap.exact import LinearGaussianVAE, linear_gaussian_vae
from vaegap.lab import provenance, runs, zoo
from vaegap.lab.training import Schedule


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


@pytest.fixture(scope="module")
def oracle() -> tuple[LinearGaussianVAE, Tensor]:
    """An exact model whose encoder is off, for the tests of annealing; other files have their own."""
    vae = linear_gaussian_vae(data_dim=6, latent_dim=2, noise=0.8, encoder_error=0.3)
    return vae, vae.simulate(8, seed=1)


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is trained for three epochs of 500 images."""
    read = zoo.training_images
    monkeypatch.setattr(zoo.ModelSpec, "schedule", property(lambda spec: Schedule(3, 50)))
    monkeypatch.setattr(zoo, "training_images", lambda dataset, num=None: read(dataset, 500))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two notebooks, and results of its own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "workflow").mkdir()
    notebook(tmp_path / "notebooks/toy.ipynb", PRELUDE, ASK, declared=DECLARED)
    notebook(tmp_path / "notebooks/page.ipynb", "print('a page')", declared='profile: str = "quick"')
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def fresh_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the stand-in experiment is counted yet, and nobody's own results are found."""
    CALLS.clear()
    monkeypatch.delenv("VAEGAP_RESULTS", raising=False)


@pytest.fixture
def copied_science(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's code that a test may change."""
    copy = tmp_path / "package"
    shutil.copytree(ROOT / "vaegap", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    return copy


@pytest.fixture(scope="session")
def report() -> Audit:
    """The audit of a model whose gaps are known exactly."""
    exact = linear_gaussian_vae(encoder_error=0.3)
    return audit(exact, exact.simulate(60, seed=1), exact.simulate(50, seed=2), num_images=40, num_samples=200,
                 certify=30)  # fmt: skip
