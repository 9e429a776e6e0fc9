"""The model behind a run of an experiment: which it is, where its weights lie, trained where they are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaegap.errors import InputError
from vaegap.lab import provenance
from vaegap.lab.experiments import Context
from vaegap.lab.zoo import ModelSpec, trained
from vaegap.models import VAE

__all__ = ["kept_model", "model_folder", "model_of", "spec_of", "layer_labels"]

_SPEC = ("dataset", "family", "latent_dim", "encoder", "decoder", "activation", "architecture", "anneal", "seed")


def model_folder(results: Path, profile: str) -> Path:
    """Where trained models lie; those of the quick profile belong to the code that made them."""
    if profile == "quick":
        digest = provenance.science_digest(provenance.training_modules())
        return results / "_work" / "models" / digest[:12]
    return results / "models"


def spec_of(params: Mapping[str, Any], profile: str) -> ModelSpec:
    """The model that an experiment's parameters ask for, without its frozen decoder."""
    said: dict[str, Any] = {
        k: tuple(params[k]) if isinstance(params[k], list) else params[k] for k in _SPEC if k in params
    }
    return ModelSpec(**said, profile=profile)


def model_of(params: Mapping[str, Any], profile: str, results: Path) -> tuple[VAE, dict[str, Any]]:
    """Load or train the model of an experiment, its frozen decoder's donor first."""
    folder, spec = model_folder(results, profile), spec_of(params, profile)
    if params.get("frozen"):
        donor = replace(spec, family="gaussian", encoder=(200, 200))
        trained(donor, folder)
        spec = replace(spec, frozen=donor.id)
    return trained(spec, folder)


def kept_model(ctx: Context, p: Mapping[str, Any]) -> VAE:
    """The model of a record, from the weights that its training left.

    Raises:
        InputError: they are not here.
    """
    weights = model_folder(ctx.results, ctx.profile) / f"{spec_of(p, ctx.profile).id}.safetensors"
    if not weights.exists() and not p.get("frozen"):
        raise InputError(f"{weights} is not here, and to train it anew takes minutes: vaegap run --refresh does")
    return model_of(p, ctx.profile, ctx.results)[0]


def layer_labels(params: Mapping[str, Any]) -> dict[str, str]:
    """Hidden layers as records name them: "200-200", or "linear"."""
    return {"encoder": _word(params["encoder"]), "decoder": _word(params["decoder"])}


def _word(hidden: list[int]) -> str:
    return "-".join(map(str, hidden)) or "linear"
