"""Families of approximate posteriors, by name."""

from __future__ import annotations

from typing import Any

from vaegap.errors import InputError
from vaegap.posteriors.aux_flow import AuxFlow
from vaegap.posteriors.base import Family, Posterior
from vaegap.posteriors.coupling import Flow, Spline
from vaegap.posteriors.gaussian import FullGaussian, Gaussian

__all__ = ["FAMILIES", "AuxFlow", "Family", "Flow", "FullGaussian", "Gaussian", "Posterior", "Spline", "make_family"]

FAMILIES: dict[str, type[Family]] = {c.name: c for c in (Gaussian, FullGaussian, Flow, AuxFlow, Spline)}


def make_family(name: str | Family, latent_dim: int, **options: Any) -> Family:
    """Build a family by name.

    Args:
        name: "gaussian", "full_gaussian", "flow", "aux_flow" or "spline", or a `Family`, returned as it is.
        latent_dim: size of z.
        **options: the family's own keyword arguments.

    Returns:
        the `Family`; `.posterior(mean, logvar)` of (N, d) tensors is its member nearest to that Gaussian.

    Raises:
        InputError: an unknown name, options for an object, or too few latents for a flow.

    Source: Kingma & Welling 2014 ("gaussian"); Cremer et al. 2018, eqs. 9-11 ("flow", "aux_flow");
    Durkan et al. 2019, section 3 ("spline").

    Example:
        >>> make_family("flow", 4).name
        'flow'
    """
    if isinstance(name, Family):
        if options:
            raise InputError(f"a {type(name).__name__} object has its options already: leave out {', '.join(options)}")
        return name
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"unknown posterior family {name!r}; choose from {', '.join(FAMILIES)}")
    return FAMILIES[name](latent_dim, **options)
