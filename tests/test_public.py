"""The names that other tools call: they import, quickly, and do what their documentation says."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
import torch

import vaegap
from vaegap.errors import InputError


def test_every_name_imports() -> None:
    assert set(vaegap.__all__) == {"__version__", *vaegap._HOME}
    for name in vaegap.__all__:
        value = getattr(vaegap, name)
        assert not inspect.ismodule(value), f"a module hides vaegap.{name}"
        if name != "__version__":
            assert (inspect.getdoc(value) or "").strip(), f"vaegap.{name} has no docstring"
            assert value.__module__ == f"vaegap.{vaegap._HOME[name]}" or "." in value.__module__
    assert set(vaegap.__all__) <= set(dir(vaegap))
    with pytest.raises(AttributeError, match="elbow"):
        _ = vaegap.elbow


NAMES = ["load_images", "VAE", "wrap", "elbo", "iwae", "ais", "bdmc", "optimize_local", "gaps", "linear_gaussian_vae"]


@pytest.mark.parametrize("name", NAMES)
def test_documentation_says_what_goes_in_and_out(name: str) -> None:
    function = getattr(vaegap, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Example:"):
        assert section in text, f"vaegap.{name}: no {section}"
    signature = inspect.signature(function)
    undocumented = [p for p in signature.parameters if p not in text]
    assert not undocumented, f"vaegap.{name} does not document {undocumented}"


def test_names_survive_the_import_of_all_submodules() -> None:
    """`import vaegap.x` puts the module in the namespace: no module may be called like a function."""
    code = (
        "import pkgutil, vaegap, types\n"
        "for m in pkgutil.iter_modules(vaegap.__path__):\n"
        "    if m.name != '__main__': __import__('vaegap.' + m.name)\n"
        "assert not any(isinstance(getattr(vaegap, n), types.ModuleType) for n in vaegap.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_is_quick_and_light() -> None:
    """Less than a second of CPU beyond torch, and none of the heavy packages."""
    code = (
        "import time, sys, torch\n"
        "start = time.process_time()\n"
        "import vaegap\n"
        "for n in ('VAE', 'elbo', 'iwae', 'ais', 'bdmc', 'optimize_local', 'gaps', 'linear_gaussian_vae', 'wrap'):\n"
        "    getattr(vaegap, n)\n"
        "spent = time.process_time() - start\n"
        "heavy = ['matplotlib', 'pandas', 'zuko', 'arviz_stats', 'torchvision', 'pyarrow', 'papermill', 'scipy']\n"
        "print(spent, *[m for m in heavy if m in sys.modules])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    spent, *heavy = out.stdout.split()
    assert float(spent) < 1.0 and not heavy, out.stdout


def test_the_whole_interface_on_one_small_model() -> None:
    vae = vaegap.VAE((1, 3, 4), latent_dim=2, encoder_hidden=(8,), decoder_hidden=(8,), seed=0)
    x = (torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert isinstance(vae.encode(x), vaegap.Posterior) and vae.latent_dim == 2
    assert isinstance(vae.decode(torch.zeros(5, 2)), torch.distributions.Distribution)
    wrapped = vaegap.wrap(
        encode=lambda a: (vae.encode(a).mean, 2 * vae.encode(a).stddev.log()), decode=vae.decoder_params, latent_dim=2
    )
    for bound in (
        vaegap.elbo(vae, x, num_samples=50, seed=0),
        vaegap.iwae(vae, x, num_samples=50, seed=0),
        vaegap.ais(vae, x, num_chains=4, num_temperatures=5, base="prior", seed=0),
        vaegap.elbo(wrapped, x, num_samples=50, seed=0),
        vaegap.ais(wrapped, x, num_chains=4, num_temperatures=5, base="posterior", seed=0),
    ):
        assert isinstance(bound, vaegap.Bound) and bound.kind == "lower"
        assert bound.per_image.shape == bound.mcse_per_image.shape == (5,)
        assert isinstance(bound.mean, float) and isinstance(bound.mcse, float)
    torch.testing.assert_close(
        vaegap.elbo(vae, x, 50, seed=0).per_image, vaegap.elbo(wrapped, x, 50, seed=0).per_image, atol=1e-4, rtol=0
    )
    sandwich = vaegap.bdmc(vae, num_images=4, num_temperatures=4, seed=0)
    assert isinstance(sandwich, vaegap.Sandwich) and sandwich.upper.kind == "upper"
    assert sandwich.width == sandwich.upper.mean - sandwich.lower.mean
    fit = vaegap.optimize_local(vae, x, family="gaussian", seed=0)
    assert isinstance(fit, vaegap.LocalFit) and isinstance(fit.bound, vaegap.Bound)
    assert isinstance(fit.posterior, vaegap.Posterior) and len(fit.posterior) == 5
    assert issubclass(InputError, ValueError)


def test_load_images() -> None:
    part = vaegap.load_images("mnist-5k", "test", num_images=20)
    assert isinstance(part, vaegap.Images) and part.x.shape == (20, 784) and part.x.dtype == torch.float32
    assert set(part.x.unique().tolist()) == {0.0, 1.0} and part.shape == (1, 28, 28) and part.name == "mnist-5k"
    assert part.digest
