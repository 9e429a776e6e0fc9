"""Where a VAE loses its nats: bounds on log p(x), locally optimal posteriors, and the gaps between them.

The names below are imported when first used, so that `import vaegap` stays quick. No module is called like one of
them: importing a submodule would put it in the name's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "VAE": "models",
    "wrap": "wrapping",
    "InputError": "errors",
    "Bound": "bounds",
    "elbo": "bounds",
    "iwae": "bounds",
    "ais": "annealing",
    "bdmc": "annealing",
    "Sandwich": "annealing",
    "optimize_local": "local",
    "LocalFit": "local",
    "gaps": "decomposition",
    "Gaps": "decomposition",
    "linear_gaussian_vae": "exact",
    "quadrature": "exact",
    "Posterior": "posteriors",
    "make_family": "posteriors",
    "audit": "auditing",
    "Audit": "auditing",
    "load_images": "lab.datasets",
    "Images": "lab.datasets",
}

__all__ = [
    "VAE",
    "Audit",
    "Bound",
    "Gaps",
    "Images",
    "InputError",
    "LocalFit",
    "Posterior",
    "Sandwich",
    "__version__",
    "ais",
    "audit",
    "bdmc",
    "elbo",
    "gaps",
    "iwae",
    "linear_gaussian_vae",
    "load_images",
    "make_family",
    "optimize_local",
    "quadrature",
    "wrap",
]

if TYPE_CHECKING:
    from vaegap.annealing import Sandwich, ais, bdmc
    from vaegap.auditing import Audit, audit
    from vaegap.bounds import Bound, elbo, iwae
    from vaegap.decomposition import Gaps, gaps
    from vaegap.errors import InputError
    from vaegap.exact import linear_gaussian_vae, quadrature
    from vaegap.lab.datasets import Images, load_images
    from vaegap.local import LocalFit, optimize_local
    from vaegap.models import VAE
    from vaegap.posteriors import Posterior, make_family
    from vaegap.wrapping import wrap


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"vaegap.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vaegap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
