"""From a poorer family's posterior to the member of a richer one that equals it."""

from __future__ import annotations

from vaegap.errors import InputError
from vaegap.posteriors.aux_flow import AuxFlow
from vaegap.posteriors.base import Family, Posterior
from vaegap.posteriors.gaussian import FullGaussian, Gaussian

__all__ = ["lift", "same_form"]


def lift(posterior: Posterior, family: Family) -> Posterior:
    """The member of `family` that equals, or has the moments of, a posterior of a poorer family.

    Raises:
        InputError: a full covariance or a flow as a start for a family that cannot hold it.
    """
    own = posterior.family
    if same_form(own, family):
        return posterior
    if isinstance(own, FullGaussian) and isinstance(family, AuxFlow):
        return Posterior(family, family.from_full_gaussian(**posterior.params))
    if isinstance(own, FullGaussian) and not isinstance(family, Gaussian):
        raise InputError(f"a full-covariance Gaussian is not a member of {family.name!r}: start from 'gaussian'")
    if isinstance(own, Gaussian):
        return family.posterior(posterior.params["mean"], posterior.params["logvar"])
    mean, stddev = posterior.moments()
    return family.posterior(mean, 2 * stddev.log())


def same_form(one: Family, two: Family) -> bool:
    return type(one) is type(two) and one.options == two.options
