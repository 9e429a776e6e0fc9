"""Trained models by specification: train once, find again by the hash of what was asked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vaegap.errors import InputError
from vaegap.lab import provenance
from vaegap.lab.datasets import load_images
from vaegap.lab.training import Schedule, train
from vaegap.models import VAE

__all__ = ["DATA_SHAPES", "PROFILES", "ModelSpec", "origin_of", "trained", "training_images"]

PROFILES = ("quick", "laptop", "paper")

DATA_SHAPES = {"mnist-5k": (1, 28, 28), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@dataclass(frozen=True)
class ModelSpec:
    """All that determines a trained model.

    Args:
        dataset: name of the images.
        family: the amortized posterior's.
        latent_dim: size of z.
        encoder, decoder: hidden widths.
        activation: of the MLPs.
        architecture: "mlp" or "conv".
        anneal: whether the entropy is annealed.
        seed: of weights, shuffling and sampling.
        profile: "quick", "laptop" or "paper": see `schedule`.
        frozen: id of the model whose decoder is taken over and held fixed (section 5.3); "" for none.

    Example:
        >>> ModelSpec("mnist-5k", profile="quick").id == ModelSpec("mnist-5k", profile="quick").id
        True
    """

    dataset: str
    family: str = "gaussian"
    latent_dim: int = 50
    encoder: tuple[int, ...] = (200, 200)
    decoder: tuple[int, ...] = (200, 200)
    activation: str = "elu"
    architecture: str = "mlp"
    anneal: bool = True
    seed: int = 0
    profile: str = "quick"
    frozen: str = ""

    def __post_init__(self) -> None:
        if self.dataset not in DATA_SHAPES:
            raise InputError(f"unknown dataset {self.dataset!r}; choose from {', '.join(DATA_SHAPES)}")
        if self.profile not in PROFILES:
            raise InputError(f"unknown profile {self.profile!r}; choose from {', '.join(PROFILES)}")

    @property
    def schedule(self) -> Schedule:
        """How this profile trains."""
        if self.profile == "paper":
            schedule = (
                Schedule(300, 100, "constant", 1e-4, 50 / 300, 1e-4) if self.dataset == "cifar10" else Schedule.paper()
            )
        elif self.profile == "laptop":
            schedule = Schedule(20, 100, lr=1e-3) if self.dataset == "cifar10" else Schedule(100, 200)
        else:
            schedule = Schedule(30, 50, lr=3e-3)
        return schedule if self.anneal else replace(schedule, anneal=0.0)

    @property
    def id(self) -> str:
        """Twelve hex digits that change with anything above, the schedule included.

        What is at its default is left out, so that a new argument leaves the names of old models alone.
        """
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        text = json.dumps({**said, "schedule": asdict(self.schedule)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def build(self) -> VAE:
        """The untrained model."""
        return VAE(
            DATA_SHAPES[self.dataset],
            self.latent_dim,
            self.family,
            self.encoder,
            self.decoder,
            self.activation,
            self.architecture,
            seed=self.seed,
        )


def training_images(dataset: str, num_images: int | None = None) -> Tensor:
    """The images that a model is trained on (N, D)."""
    return load_images(dataset, "train", num_images=num_images).x


def trained(
    spec: ModelSpec,
    folder: Path,
    milestones: tuple[int, ...] = (),
    on_milestone: Callable[[int, VAE], None] | None = None,
    progress: bool = True,
) -> tuple[VAE, dict[str, Any]]:
    """Load a model if its weights are there, else train it, continuing from its checkpoint if there is one.

    Weights at milestones are kept beside the checkpoint, and measured when training is over: so a computation that was
    cut off anywhere is given each of them again, and does not train twice.

    Args:
        spec: which model.
        folder: where the weights lie, as <id>.safetensors; checkpoints of unfinished training and the weights at
            milestones (<id>-epoch<k>.safetensors) lie in folder/unfinished.
        milestones: epochs whose weights are wanted too.
        on_milestone: called as `on_milestone(epoch, vae)` for every milestone, in order, on every call.
        progress: show a bar.

    Returns:
        the model in evaluation mode, and {"history", "seconds", "spec", "origin"}.

    Raises:
        InputError: a milestone lies beyond the last epoch.
        CheckpointError: weights or a checkpoint are damaged; the message names the file to delete.
    """
    from vaegap.lab import checkpoints
    from vaegap.lab.locks import Lock

    epochs = spec.schedule.epochs
    if any(not 1 <= epoch <= epochs for epoch in milestones):
        raise InputError(f"milestones must lie between 1 and {epochs}, the last epoch; got {milestones}")
    path, unfinished = folder / f"{spec.id}.safetensors", folder / "unfinished"
    kept = {epoch: unfinished / f"{spec.id}-epoch{epoch}.safetensors" for epoch in sorted(milestones)}
    unfinished.mkdir(parents=True, exist_ok=True)
    with Lock(unfinished / f"{spec.id}.lock"):
        if not path.exists() or not all(file.exists() for file in kept.values()):
            _train(spec, folder, kept, progress)
        tensors, meta = checkpoints.load(path)
    changed = provenance.changed_modules((meta.get("origin") or {}).get("modules", {}))
    if changed:
        print(f"{path}: trained before {', '.join(changed)} changed; delete it to train anew", file=sys.stderr)
    for epoch, file in kept.items():
        if on_milestone is not None:
            on_milestone(epoch, checkpoints.load_model(file))
    vae = VAE(**meta["config"])
    vae.load_state_dict(tensors)
    return vae.eval(), meta


def origin_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Which code trained a model, for a record's notes: `ctx.notes["model_trained"] = origin_of(meta)`.

    Weights outlive changes of the code, so the record's own commit does not tell.
    """
    origin = meta.get("origin") or {}  # weights of older versions do not know theirs
    return {name: origin.get(name) for name in ("commit", "dirty", "digest")}


def _train(spec: ModelSpec, folder: Path, kept: Mapping[int, Path], progress: bool) -> None:
    """Train a model and write its weights, at milestones too."""
    from vaegap.lab import checkpoints

    checkpoint = folder / "unfinished" / f"{spec.id}.safetensors"
    vae = spec.build()
    if spec.frozen:
        donor, _ = checkpoints.load(folder / f"{spec.frozen}.safetensors")
        own = {k: donor[k] if k.startswith("decoder.") else v for k, v in vae.state_dict().items()}
        vae.load_state_dict(own)
    if checkpoint.exists():
        reached = len(checkpoints.load(checkpoint)[1]["history"])
        if any(epoch <= reached and not file.exists() for epoch, file in kept.items()):
            checkpoint.unlink()  # it cannot go back to a milestone that it has passed
    result = train(
        vae,
        training_images(spec.dataset),
        spec.schedule,
        seed=spec.seed,
        checkpoint=checkpoint,
        milestones=tuple(kept),
        on_milestone=lambda epoch, model: checkpoints.save_model(kept[epoch], model),
        encoder_only=bool(spec.frozen),
        origin=provenance.training_origin(),
        progress=progress,
    )
    meta = {"config": vae.config, "spec": asdict(spec), "history": result.history, "seconds": result.seconds}
    meta["origin"] = result.origin
    checkpoints.save(folder / f"{spec.id}.safetensors", vae.state_dict(), meta)
    checkpoint.unlink(missing_ok=True)
