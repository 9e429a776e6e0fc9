"""The command `vaegap audit`: somebody's model and images from files, the report on the terminal and as a page."""

from __future__ import annotations

import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

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
    likelihood: Annotated[
        Likelihood | None, typer.Option(help="Of the pixels; by default bernoulli, or what a pythae model says.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of Gaussian pixels; without it the decoder predicts one.")
    ] = None,
    encoder_scale: Annotated[Scale | None, typer.Option(help="The encoder's second output; by default logvar.")] = None,
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
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything random.")] = 0,
) -> None:
    """Audit a VAE: how many nats its encoder and its posterior family lose, and what would help.

    For example: vaegap audit model.py:make_vae --data images.npy --out report.html

    Weights are never unpickled. Programs (model.py, TorchScript, torch.export) run: audit those you would run anyway.
    """
    from vaegap.auditing import audit as run
    from vaegap.auditing import known_families
    from vaegap.intake import Finding, as_images
    from vaegap.lab.user_code import from_code

    wanted = known_families([name.strip() for name in families.split(",")])
    program = None if model is None else Path(model.rpartition(":")[0] or model)
    read = [data, heldout, checkpoint, encoder, decoder, program]
    _check_writable(out, [*read, json_file])
    _check_writable(json_file, read)
    given = {"likelihood": likelihood and likelihood.value, "encoder_scale": encoder_scale and encoder_scale.value,
             "data_shape": _shape(data_shape), "probabilities": probabilities or None, "scale": noise}  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    names = (encoder_layers, decoder_layers, mean_layer, logvar_layer)
    alone = model is None and checkpoint is not None
    _check_combination(model, encoder or decoder, alone, any(names) or activation is not Activation.auto)
    images = _binary(_images(data), threshold)
    held = None if heldout is None else _binary(_images(heldout), threshold)
    _check_shape(options.get("data_shape"), images)
    notes: list[Finding] = []
    if alone and checkpoint is not None:
        thing, notes = _from_weights(checkpoint, as_images(images), names, activation, _scaled(options))
        options = {}
    else:
        thing = from_code(model, checkpoint, encoder, decoder)
        options = _scaled(options, thing)
    report = run(
        thing,
        images,
        held,
        families=wanted,
        num_images=num_images,
        certify=certify,
        check_modes=modes,
        seed=seed,
        progress=sys.stderr.isatty(),
        **options,
    )
    report.findings.extend(notes)
    typer.echo(repr(report))
    for path, made in ((out, report.to_html), (json_file, report.to_json)):
        if path is not None:
            _write(path, made())
            typer.echo(f"written: {path}")


def _write(path: Path, text: str) -> None:
    """A report is there as a whole or not at all; a device or a pipe is written to, and not replaced."""
    from vaegap.lab.files import storage_errors, write_atomic

    if path.exists() and not path.is_file():
        with storage_errors(path, "the report"), path.open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
    else:
        write_atomic(path, (text + "\n").encode(), "the report")


def _check_writable(path: Path | None, others: list[Path | None]) -> None:
    """Refuse a place for a report before the work, and not after it."""
    from vaegap.errors import InputError

    if path is None:
        return
    for other in others:
        if other is not None and (other == path or (other.is_file() and path.is_file() and other.samefile(path))):
            raise InputError(f"{path} is named twice: a report would overwrite it. Choose another place")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the file that is to be written, e.g. {path / 'report.html'}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: choose another place")


def _check_combination(model: str | None, program: Path | None, alone: bool, layout: bool) -> None:
    """Options that nobody would read are refused."""
    from vaegap.errors import InputError

    if program is not None and (model is not None or alone):
        other = "MODEL" if model is not None else "--checkpoint"
        raise InputError(f"--encoder and --decoder are the whole model: leave out {other}")
    if layout and not alone:
        raise InputError(
            "--encoder-layers, --decoder-layers, --mean-layer, --logvar-layer and --activation describe weights "
            "without code: give them with --checkpoint alone"
        )


def _shape(text: str | None) -> tuple[int, ...] | None:
    """ "1,28,28" as numbers."""
    from vaegap.errors import InputError

    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--data-shape {text!r}: give whole numbers, e.g. --data-shape 1,28,28")
    return shape


def _check_shape(shape: tuple[int, ...] | None, images: Tensor) -> None:
    from vaegap.errors import InputError

    if shape is not None and images.dim() > 1 and math.prod(shape) != math.prod(images.shape[1:]):
        raise InputError(
            f"--data-shape {','.join(map(str, shape))} has {math.prod(shape)} pixels, an image of the file "
            f"{math.prod(images.shape[1:])} (it holds {tuple(images.shape)})"
        )


def _scaled(options: dict[str, Any], thing: Any = None) -> dict[str, Any]:
    """Gaussian pixels without --noise have a scale that the decoder predicts; a pythae model's is 1."""
    from vaegap.adapters import is_pythae
    from vaegap.errors import InputError

    if "scale" in options and options.get("likelihood") != Likelihood.gaussian.value and not is_pythae(thing):
        raise InputError("--noise is the standard deviation of Gaussian pixels: say --likelihood gaussian too")
    if options.get("likelihood") == Likelihood.gaussian.value and "scale" not in options and not is_pythae(thing):
        return {**options, "scale": None}
    return options


def _images(path: Path) -> Tensor:
    from vaegap.lab.user_code import check_file
    from vaegap.lab.weights import read_images

    check_file(path)
    return read_images(path)


def _binary(images: Tensor, threshold: float | None) -> Tensor:
    from vaegap.errors import InputError

    if threshold is None:
        return images
    binary = (images >= threshold).float()
    if binary.numel() and bool((binary == binary.flatten()[0]).all()):  # what a threshold of nan does, too
        least, most = images.min(), images.max()
        raise InputError(
            f"--threshold {threshold} leaves all pixels equal (they lie between {least:.4g} and {most:.4g}): choose a "
            "number between these"
        )
    return binary


def _from_weights(
    path: Path, x: Tensor, names: tuple[str | None, ...], activation: Activation, options: dict[str, Any]
) -> tuple[Any, list[Any]]:
    """A plain MLP from weights alone, and what was guessed about it."""
    from vaegap.errors import InputError
    from vaegap.intake import Finding
    from vaegap.lab.user_code import check_file
    from vaegap.lab.weights import read_weights
    from vaegap.layouts import Layers, choose_activation, from_state_dict, guess_layers
    from vaegap.models import VAE

    if "probabilities" in options:
        raise InputError("weights alone give logits, whatever stands behind them: leave out --probabilities")
    check_file(path)
    state, config = read_weights(path)
    if config:
        if options or any(names) or activation is not Activation.auto:
            raise InputError(f"{path} says itself what model it is: leave out the options that describe one")
        try:
            vae = VAE(**config)
            vae.load_state_dict(state)
        except (TypeError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} describes a model that this version does not know ({reason})") from None
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
