"""Families that only one experiment needs, made known by name: the two flows of section 5.3 as they were published."""

from __future__ import annotations

from vaegap.local import RECIPES
from vaegap.posteriors import FAMILIES
from vaegap.posteriors.published_flows import BlindAuxFlow, FlowOnZ

__all__ = ["register"]


def register() -> None:
    """Make "flow_on_z" and "blind_aux_flow" known to all that takes a family's name; their q* is sought as their kin's.

    The lab calls it wherever a stored model may have one of them.

    Example:
        >>> from vaegap.posteriors import make_family
        >>> register()
        >>> make_family("flow_on_z", 4).name
        'flow_on_z'
    """
    for family, kin in ((FlowOnZ, "flow"), (BlindAuxFlow, "aux_flow")):
        FAMILIES.setdefault(family.name, family)
        RECIPES.setdefault(family.name, RECIPES[kin])
