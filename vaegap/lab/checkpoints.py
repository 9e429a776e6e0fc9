"""Checkpoints: tensors and a little JSON in one safetensors file, written whole or not at all. No pickles."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor

from vaegap.lab.errors import CheckpointError
from vaegap.lab.files import write_atomic
from vaegap.registering import register

if TYPE_CHECKING:
    from vaegap.models import VAE

__all__ = ["load", "load_model", "save", "save_model"]

register()  # a stored model may have one of them

_KEY = "vaegap"  # our entry in the header of a safetensors file


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, rename it into place.

    After a crash at any moment the file is the old checkpoint or the new one. Tensors that share memory are written
    apart; the device they were on is not kept.

    Args:
        path: the file, by custom `*.safetensors`.
        tensors: of any shape and type (random number generators' states too: `torch.get_rng_state()` is a tensor).
        meta: anything that JSON can hold.

    Raises:
        StorageError: the disk is full or the folder cannot be written to; the old checkpoint is untouched.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/c.safetensors"
        >>> save(path, {"w": torch.arange(3)}, {"epoch": 7})
        >>> tensors, meta = load(path)
        >>> tensors["w"].tolist(), meta["epoch"]
        ([0, 1, 2], 7)
    """
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    told = json.dumps(dict(meta or {}))
    entry = json.dumps({"meta": json.loads(told), "sha256": _digest(own), "meta_sha256": _digest_text(told)})
    write_atomic(path, _save_tensors(own, {_KEY: entry}), "the checkpoint")


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back.

    Returns:
        The tensors, on the CPU, and the metadata. Names are in alphabetical order: that of the file changes from one
        writing to the next, and with it would change the order of a record's rows.

    Raises:
        CheckpointError: it is not there, truncated, damaged, or was not written by `save`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read this checkpoint: {error.strerror or error}") from None
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        entry = header.get("__metadata__", {}).get(_KEY)
        tensors = _load_tensors(data)
    except (ValueError, AttributeError, SafetensorError, OverflowError):
        raise CheckpointError(_broken(path, "is truncated, or is no safetensors file")) from None
    if entry is None:
        raise CheckpointError(_broken(path, "is a safetensors file that vaegap did not write"))
    return {name: tensors[name] for name in sorted(tensors)}, verified_meta(path, entry, tensors)


def verified_meta(path: Path, entry: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The metadata in a checkpoint's header, where it and the tensors have the digests that were written with them.

    Args:
        path: the file, for the message.
        entry: what its header says under "vaegap".
        tensors: all that it holds.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        kept = json.loads(entry)
        meta = dict(kept["meta"])
        # checkpoints from before there was a digest of the metadata have none
        whole = kept.get("meta_sha256", known := _digest_text(json.dumps(meta))) == known
        whole = whole and kept["sha256"] == _digest(tensors)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(_broken(path, "is damaged: its contents do not have the digest that was written with it"))
    return meta


def save_model(path: str | os.PathLike[str], vae: VAE, meta: Mapping[str, Any] | None = None) -> None:
    """Write a VAE's weights, with the settings that rebuild it.

    Args:
        path: the file.
        vae: the model.
        meta: anything else to remember; `load` gives it back under "meta".

    Raises:
        StorageError: as `save`.
    """
    save(path, vae.state_dict(), {"model": vae.config, "meta": dict(meta or {})})


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> VAE:
    """Rebuild a VAE from a file that `save_model` wrote, in evaluation mode.

    Raises:
        CheckpointError: as `load`, or if the file holds something else than a model.
    """
    from vaegap.models import VAE

    tensors, meta = load(path)
    if "model" not in meta:
        raise CheckpointError(f"{path}: holds no model but a checkpoint of something else; give the file that "
                              "`save_model` wrote (model.safetensors in the run's folder)")  # fmt: skip
    try:
        vae = VAE(**meta["model"])
        vae.load_state_dict(tensors)
    except (TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: was written for another version of the model ({str(error).splitlines()[0]}). Check out the "
            "commit named in the run.json beside it, or train it again."
        ) from None
    return vae.to(device).eval()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(path: Path, what: str) -> str:
    command = f"rm {shlex.quote(str(path))}"
    if "_work" in path.parts:  # the scratch folder; elsewhere it may be a model that is published with the records
        return f"{path}: {what}. Delete it ({command}) and run again: the computation then starts from its beginning."
    return (
        f"{path}: {what}. If it is a published one, get it back (git checkout -- {path.name}, in {path.parent}); else "
        f"delete it ({command}) and run again: the computation then starts from its beginning."
    )
