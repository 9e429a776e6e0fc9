"""The command `vaegap audit`: somebody's model and images from files, the report on the terminal and as a page."""

from __future__ import annotations

import importlib.util
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["audit"]


class Likelihood(StrEnum):
    """Of the pixels."""

    bernoulli = "bernoulli"
    gaussian = "gaussian"
    discretized_logistic = "discretized_logistic"
    categorical = "categorical"


class Scale(StrEnum):
    """What the encoder's second output is."""

    logvar = "logvar"
    log_sigma = "log_sigma"
    sigma = "sigma"
    variance = "variance"


class Activation(StrEnum):
    """Between the layers of a plain MLP."""

    auto = "auto"
    elu = "elu"
    tanh = "tanh"
    relu = "relu"


def audit(
    data: Annotated[Path, typer.Option(help="Images: .npy, .npz, .safetensors or .pt, as (N, D) or (N, C, H, W).")],
    model: Annotated[
        str | None, typer.Argument(help="model.py:make_vae, or a TorchScript file with methods encode and decode.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: safetensors or a state dict; alone, a plain MLP is recognised.")
    ] = None,
    heldout: Annotated[Path | None, typer.Option(help="Images that the model was not trained on.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the HTML report goes.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where all numbers go, as JSON.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="TorchScript or torch.export file of the encoder.")] = None,
    decoder: Annotated[Path | None, typer.Option(help="TorchScript or torch.export file of the decoder.")] = None,
    likelihood: Annotated[Likelihood, typer.Option(help="Of the pixels.")] = Likelihood.bernoulli,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of Gaussian pixels; without it the decoder predicts one.")
    ] = None,
    encoder_scale: Annotated[Scale, typer.Option(help="The encoder's second output.")] = Scale.logvar,
    probabilities: Annotated[bool, typer.Option(help="The decoder gives probabilities, no logits.")] = False,
    data_shape: Annotated[str | None, typer.Option(help="How the encoder takes an image, e.g. 1,28,28.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Binarize images: pixel >= threshold.")] = None,
    encoder_layers: Annotated[str | None, typer.Option(help="Of a state dict, e.g. fc1,fc2,fc3.")] = None,
    decoder_layers: Annotated[str | None, typer.Option(help="Of a state dict, e.g. fc4,fc5,fc6.")] = None,
    mean_layer: Annotated[str | None, typer.Option(help="The layer that gives means alone.")] = None,
    logvar_layer: Annotated[str | None, typer.Option(help="The layer that gives log-variances alone.")] = None,
    activation: Annotated[Activation, typer.Option(help="Of a state dict; auto: the best ELBO.")] = Activation.auto,
    families: Annotated[str, typer.Option(help="Posterior families to optimise.")] = "gaussian,full_gaussian",
    num_images: Annotated[int, typer.Option(min=2, help="Audited per file, drawn at random.")] = 100,
    certify: Annotated[int, typer.Option(min=0, help="Simulated images behind the BDMC width.")] = 100,
    modes: Annotated[bool, typer.Option(help="Look for posterior modes that were missed.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Audit a VAE: how many nats its encoder and its posterior family lose, and what would help.

    For example: vaegap audit model.py:make_vae --data images.npy --out report.html

    Weights are never unpickled. Programs (model.py, TorchScript, torch.export) run: audit those you would run anyway.
    """
    from vaegap.auditing import audit as run
    from vaegap.intake import Finding, as_images
    from vaegap.lab.weights import read_images

    images = _binary(read_images(data), threshold)
    held = None if heldout is None else _binary(read_images(heldout), threshold)
    shape = tuple(int(n) for n in data_shape.split(",")) if data_shape else None
    options: dict[str, Any] = {"likelihood": likelihood.value, "encoder_scale": encoder_scale.value}
    if likelihood is Likelihood.gaussian:
        options["scale"] = noise
    notes: list[Finding] = []
    if model is None and checkpoint is not None:
        names = (encoder_layers, decoder_layers, mean_layer, logvar_layer)
        thing, notes = _from_weights(checkpoint, as_images(images), names, activation, {**options, "data_shape": shape})
        options = {}
    else:
        thing = _from_code(model, checkpoint, encoder, decoder)
        from vaegap.models import Model

        options = {} if isinstance(thing, Model) else {**options, "data_shape": shape, "probabilities": probabilities}
    report = run(
        thing,
        images,
        held,
        families=tuple(families.split(",")),
        num_images=num_images,
        certify=certify,
        check_modes=modes,
        seed=seed,
        progress=sys.stderr.isatty(),
        **options,
    )
    report.findings.extend(notes)
    typer.echo(repr(report))
    for path, write in ((out, report.to_html), (json_file, report.to_json)):
        if path is not None:
            write(path)
            typer.echo(f"written: {path}")


def _binary(images: Tensor, threshold: float | None) -> Tensor:
    return images if threshold is None else (images >= threshold).float()


def _from_weights(
    path: Path, x: Tensor, names: tuple[str | None, ...], activation: Activation, options: dict[str, Any]
) -> tuple[Any, list[Any]]:
    """A plain MLP from weights alone, and what was guessed about it."""
    from vaegap.errors import InputError
    from vaegap.intake import Finding
    from vaegap.lab.weights import read_weights
    from vaegap.layouts import Layers, choose_activation, from_state_dict, guess_layers
    from vaegap.models import VAE

    state, config = read_weights(path)
    if config:
        vae = VAE(**config)
        vae.load_state_dict(state)
        return vae.eval(), []
    first, second, mean, logvar = names
    if (first is None) != (second is None):
        raise InputError("give both --encoder-layers and --decoder-layers, or neither")
    layers = guess_layers(state)  if first is None or second is None else Layers(
        first.split(","), second.split(","), mean, logvar
    )  # fmt: skip
    if activation is not Activation.auto:
        return from_state_dict(state, layers, activation.value, **options), []
    chosen, values = choose_activation(state, x, layers, **options)
    listed = ", ".join(f"{name} {value:.1f}" for name, value in values.items())
    note = Finding(
        "activation",
        f"the weights do not say which activation they belong to; mean ELBOs are {listed}: {chosen} was taken",
        f"say --activation {chosen}, or another, if you know",
        "note",
    )
    return from_state_dict(state, layers, chosen, **options), [note]


def _from_code(model: str | None, checkpoint: Path | None, encoder: Path | None, decoder: Path | None) -> Any:
    """A model from somebody's Python or program file, with weights loaded into it if there are any."""
    from vaegap.errors import InputError
    from vaegap.lab.weights import read_program, read_weights

    if model is None:
        if encoder is None or decoder is None:
            raise InputError(
                "give a model: model.py:make_vae, a TorchScript file, --checkpoint weights.safetensors, or both "
                "--encoder and --decoder"
            )
        return read_program(encoder), read_program(decoder)
    file, colon, name = model.rpartition(":")
    if not colon or not file.endswith(".py"):
        if model.endswith(".py"):
            raise InputError(f"{model}: name the function that makes the model, e.g. {model}:make_vae")
        return read_program(Path(model))
    thing = _call(Path(file), name)
    if checkpoint is not None:
        state, _ = read_weights(checkpoint)
        _load(thing, state, checkpoint)
    return thing


def _call(file: Path, name: str) -> Any:
    """Run file.py and call one of its functions."""
    from vaegap.errors import InputError

    if not file.is_file():
        raise InputError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location("audited_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audited_model"] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    made = getattr(module, name, None)
    if made is None:
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise InputError(f"{file} has no {name!r}; it has: {known}")
    return made() if callable(made) and not hasattr(made, "parameters") else made


def _load(thing: Any, state: dict[str, Tensor], path: Path) -> None:
    """Load weights into the torch module behind somebody's model."""
    from torch import nn

    from vaegap.errors import InputError
    from vaegap.layouts import stripped
    from vaegap.wrapping import WrappedVAE

    targets: list[nn.Module] = list(thing.registered) if isinstance(thing, WrappedVAE) else [thing]
    if len(targets) != 1 or not isinstance(targets[0], nn.Module):
        raise InputError(
            f"the weights in {path} belong to one module, but the model has {len(targets)}: return that module with "
            "methods encode and decode, or load the weights in make_vae"
        )
    try:
        targets[0].load_state_dict(stripped(state))
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model: {' '.join(str(error).split())[:400]}") from None
