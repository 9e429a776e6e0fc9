"""The names that other tools call: they import, quickly, and do what their documentation says."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

import vaegap
from vaegap.errors import InputError
from vaegap.local import RECIPES
from vaegap.posteriors import FAMILIES


def test_every_name_imports() -> None:
    assert set(vaegap.__all__) == {"__version__", *vaegap._HOME}
    for name in vaegap.__all__:
        value = getattr(vaegap, name)
        assert not inspect.ismodule(value), f"a module hides vaegap.{name}"
        if name != "__version__":
            assert (inspect.getdoc(value) or "").strip(), f"vaegap.{name} has no docstring"
            assert value.__module__.startswith("vaegap."), f"vaegap.{name} comes from {value.__module__}"
    assert set(vaegap.__all__) <= set(dir(vaegap))
    with pytest.raises(AttributeError, match="elbow"):
        _ = vaegap.elbow


NAMES = ["load_images", "VAE", "wrap", "elbo", "iwae", "ais", "bdmc", "optimize_local", "gaps", "linear_gaussian_vae"]


OBJECTS = ["Audit", "Bound", "Gaps", "Images", "LocalFit", "Posterior", "Sandwich"]


@pytest.mark.parametrize("name", OBJECTS)
def test_documentation_of_results_names_every_field(name: str) -> None:
    cls = getattr(vaegap, name)
    text = inspect.getdoc(cls) or ""
    assert "Example:" in text
    undocumented = [p for p in inspect.signature(cls).parameters if not re.search(rf"\b{p}(, \w+)*:", text)]
    assert not undocumented, f"vaegap.{name} does not document {undocumented}"


@pytest.mark.parametrize("name", [*NAMES, "quadrature", "make_family", "audit"])
def test_documentation_says_what_goes_in_and_out(name: str) -> None:
    function = getattr(vaegap, name)
    text = inspect.getdoc(function) or ""
    results = () if inspect.isclass(function) else ("Returns:",)
    for section in ("Args:", *results, "Raises:", "Source:", "Example:"):
        assert section in text, f"vaegap.{name}: no {section}"
    signature = inspect.signature(function)
    undocumented = [p for p in signature.parameters if not re.search(rf"\b{p}(, \w+)*:", text)]
    assert not undocumented, f"vaegap.{name} does not document {undocumented}"


ANNEALED = {
    "num_chains": 16,
    "num_temperatures": 50,
    "base": "posterior",
    "schedule": "sigmoid",
    "num_leapfrog": 6,
    "force_dtype": None,
    "seed": None,
}

# What other tools may write: positional order, names and defaults. A new argument may be added behind these.
SIGNATURES: dict[str, dict[str, object]] = {
    "load_images": {"name": ..., "split": "train", "root": None, "num_images": None},
    "VAE": {
        "data_shape": (1, 28, 28),
        "latent_dim": 50,
        "family": "gaussian",
        "encoder_hidden": (200, 200),
        "decoder_hidden": (200, 200),
        "activation": "elu",
        "architecture": "mlp",
        "likelihood": "bernoulli",
        "family_options": None,
        "likelihood_options": None,
        "seed": None,
    },
    "wrap": {"encode": ..., "decode": ..., "latent_dim": ..., "likelihood": "bernoulli", "prior": None},
    "elbo": {"vae": ..., "x": ..., "num_samples": 100, "posterior": None, "seed": None},
    "iwae": {"vae": ..., "x": ..., "num_samples": 5000, "posterior": None, "seed": None},
    "ais": {"vae": ..., "x": ..., **ANNEALED},
    "bdmc": {"vae": ..., "num_images": 100, **ANNEALED},
    "optimize_local": {
        "vae": ...,
        "x": ...,
        "family": "gaussian",
        "start": None,
        "protocol": "fast",
        "num_eval": 300,
        "recipe": None,
        "force_dtype": None,
        "seed": None,
    },
    "gaps": {
        "vae": ...,
        "x": ...,
        "families": ("gaussian", "full_gaussian"),
        "num_samples": 500,
        "num_chains": 16,
        "num_temperatures": 20,
        "certify": 100,
        "check_modes": False,
        "force_dtype": None,
        "seed": 0,
    },
    "linear_gaussian_vae": {"data_dim": 20, "latent_dim": 5, "noise": 0.5, "encoder_error": 0.1, "seed": 0},
}


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_documented_ones(name: str) -> None:
    assert set(SIGNATURES) == set(NAMES)
    found = inspect.signature(getattr(vaegap, name)).parameters
    wanted = SIGNATURES[name]
    assert list(found)[: len(wanted)] == list(wanted)
    for argument, default in wanted.items():
        parameter = found[argument]
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameter.default == (inspect.Parameter.empty if default is ... else default), argument
    added = list(found.values())[len(wanted) :]
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in added), "old calls must go on working"


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
    for family in FAMILIES:
        brief = replace(RECIPES[family], steps=2, rounds=1)
        fit = vaegap.optimize_local(vae, x, family=family, start=vae.encode(x).detach(), recipe=brief, num_eval=20)
        assert fit.family == family and fit.bound.per_image.shape == fit.bound.mcse_per_image.shape == (5,)
        assert fit.posterior.mean.shape == fit.posterior.stddev.shape == (5, 2)
    assert issubclass(InputError, ValueError)


def test_what_bounds_and_gaps_carry() -> None:
    """Diagnostics, units and shapes, on a model whose log p(x) is known: nats with the Gaussian constants in."""
    vae = vaegap.linear_gaussian_vae(data_dim=4, latent_dim=2, encoder_error=0.1)
    x = vae.simulate(5, seed=1)
    exact = vae.log_evidence(x)
    weighted = vaegap.iwae(vae, x, num_samples=2000, seed=0)
    annealed = vaegap.ais(vae, x, num_chains=16, num_temperatures=20, base="posterior", seed=0)
    for bound, has, lacks in ((weighted, ("ess", "khat"), ("accept",)), (annealed, ("ess", "accept"), ("khat",))):
        for name in has:
            assert getattr(bound, name).shape == (5,), name
        assert all(getattr(bound, name) is None for name in lacks)
        assert (bound.per_image - exact).abs().max() < 0.3 and bound.kind == "lower"
    assert ((weighted.ess > 1) & (weighted.ess <= 2000)).all() and (
        (annealed.accept > 0) & (annealed.accept <= 1)
    ).all()
    plain = vaegap.elbo(vae, x, num_samples=50, seed=0)
    assert plain.ess is None and plain.khat is None and plain.accept is None and not plain.flagged
    sandwich = vaegap.bdmc(vae, num_images=3, num_chains=4, num_temperatures=5, seed=0)
    assert sandwich.lower.per_image.shape == sandwich.upper.per_image.shape == (3,)
    assert isinstance(sandwich.width, float) and isinstance(sandwich.mcse, float)
    result = vaegap.gaps(vae, x, families=("gaussian",), num_samples=50, certify=0, seed=0)
    assert isinstance(result, vaegap.Gaps)
    assert isinstance(result.per_image, pd.DataFrame) and len(result.per_image) == 5
    assert isinstance(result.summary, pd.DataFrame) and "inference" in result.summary.index
    axes = result.plot()
    assert isinstance(axes, Axes)
    plt.close(axes.figure)


def test_load_images() -> None:
    part = vaegap.load_images("mnist-5k", "test", num_images=20)
    assert isinstance(part, vaegap.Images) and part.x.shape == (20, 784) and part.x.dtype == torch.float32
    assert set(part.x.unique().tolist()) == {0.0, 1.0} and part.shape == (1, 28, 28) and part.name == "mnist-5k"
    assert part.digest and len(part) == 20
    assert torch.equal(vaegap.load_images("mnist-5k", "test").x[:20], part.x), "the first ones of all"
