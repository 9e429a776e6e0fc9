"""All experiments of the paper: their parameters, and what a profile changes in them.

What they compute stands in the modules beside this one, which are imported when it is computed: to know a run's name
(`vaegap status`, a grid that is done) takes no PyTorch, and so a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vaegap.lab.experiments import Context, Experiment, register

__all__ = ["certificates", "encoder_form", "gap_decomposition", "generalization", "posterior_2d"]

_MODEL: dict[str, Any] = {
    "dataset": "mnist-5k",
    "family": "gaussian",
    "latent_dim": 50,
    "encoder": [200, 200],
    "decoder": [200, 200],
    "activation": "elu",
    "architecture": "mlp",
    "anneal": True,
    "seed": 0,
}
_BIG = {
    "num_train": 1000,
    "num_heldout": 500,
    "certify": 200,
    "families": ["gaussian", "full_gaussian", "aux_flow"],
    "checked": 100,
    "keep_weights": False,  # they lie in results/models, once
}


def _later(module: str, function: str) -> Callable[..., Any]:
    """A function of a module beside this one, imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"vaegap.lab.protocols.{module}"), function)(*arguments)

    return call


def _weights(ctx: Context) -> list[Path]:
    """Where `model_of` keeps the model of a run, and before it the one whose decoder it takes over, if it does."""
    from vaegap.lab.protocols.models import model_folder, spec_of

    spec, donors = spec_of(ctx.params, ctx.profile), []
    if ctx.params.get("frozen"):
        donors = [replace(spec, family="gaussian", encoder=(200, 200))]
        spec = replace(spec, frozen=donors[0].id)
    folder = model_folder(ctx.results, ctx.profile)
    return [folder / f"{each.id}.safetensors" for each in (*donors, spec)]


def _train(ctx: Context) -> None:
    from vaegap.lab.protocols.models import model_of

    model_of(ctx.params, ctx.profile, ctx.results)


gap_decomposition = register(
    Experiment(
        "gap_decomposition",
        _later("decompositions", "compute_gaps"),
        {
            **_MODEL,
            "frozen": False,
            "families": ["gaussian", "full_gaussian"],
            "num_train": 50,
            "num_heldout": 50,
            "certify": 20,
            "checked": 0,
            "keep_weights": True,
        },
        {"laptop": _BIG, "paper": _BIG},
        verify=_later("again", "verify_gaps"),
        weights=_weights,
        train=_train,
    )
)
encoder_form = register(
    Experiment(
        "encoder_form",
        _later("encoder_form", "compute_form"),
        {
            **_MODEL,
            "family": "aux_flow",
            "families": ["gaussian", "full_gaussian"],
            "num_train": 10,
            "num_heldout": 10,
            "certify": 10,
        },
        {profile: {"num_train": 100, "num_heldout": 50, "certify": 50} for profile in ("laptop", "paper")},
        verify=_later("again", "verify_form"),
        weights=_weights,
        train=_train,
    )
)
generalization = register(
    Experiment(
        "generalization",
        _later("over_training", "compute_generalization"),
        {
            **_MODEL,
            "latent_dim": 20,
            "heldout": "test",
            "families": ["gaussian"],
            "num_images": 50,
            "fractions": [0.05, 0.3, 1.0],
        },
        {
            "laptop": {
                "num_images": 1000,
                "fractions": [0.03, 0.1, 0.3, 0.6, 1.0],
                "families": ["gaussian", "full_gaussian"],
            },
            "paper": {
                "num_images": 1000,
                "fractions": [0.03, 0.12, 0.5, 0.85, 1.0],
                "families": ["gaussian", "full_gaussian"],
            },
        },
        verify=_later("again", "verify_generalization"),
        needs="bdmc_width",
        weights=_weights,
        train=_train,
    )
)
posterior_2d = register(
    Experiment(
        "posterior_2d",
        _later("two_latents", "compute_posterior"),
        {
            "dataset": "mnist-5k",
            "latent_dim": 2,
            "encoder": [100],
            "decoder": [100],
            "activation": "tanh",
            "seed": 0,
            "num_images": 20,
            "points": 101,
        },
        {"laptop": {"num_images": 200, "points": 151}, "paper": {"num_images": 200, "points": 151}},
        verify=_later("two_latents", "verify_posterior"),
    )
)
certificates = register(
    Experiment(
        "certificates",
        _later("certificates", "compute_certificates"),
        {**_MODEL, "num_simulated": 50, "num_images": 50, "prior_temperatures": [100]},
        {
            "laptop": {"num_simulated": 100, "num_images": 200, "prior_temperatures": [100, 1000]},
            "paper": {"num_simulated": 200, "num_images": 200, "prior_temperatures": [500, 2000, 10000]},
        },
        verify=_later("certificates", "verify_certificates"),
        needs="log_p_error",
        weights=_weights,
        train=_train,
    )
)
