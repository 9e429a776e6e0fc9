"""Opening other people's files without running what is hidden in them: weights, images, programs.

A pickle runs code when it is opened. Weights come from safetensors or `torch.load(weights_only=True)`, images from
`numpy.load(allow_pickle=False)`; whatever would need more is refused. TorchScript and torch.export files are programs
by intent: like model.py, run those of people whose code you would run; pickles inside them are refused all the same.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vaegap.errors import InputError
from vaegap.lab.checkpoints import verified_meta

__all__ = ["read_images", "read_program", "read_weights"]

# Symbolic sizes, which torch has sympy evaluate, such as Symbol('s77', positive=True, integer=True) or 2*s0 + 1
_PLAIN = re.compile(r"(?:[\w\s+\-*/%(),<>=&|~]|'\w*')*")
_CALL = re.compile(r"(\w+)\s*\(")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a checkpoint by name, on the CPU, and the settings of the model where vaegap wrote the file.

    Args:
        path: safetensors, or a state dict written by torch.save; nested under "state_dict", "model_state_dict" or
            "model" is fine.

    Raises:
        InputError: the file is not there, is no checkpoint, or would have to be unpickled.
    """
    _there(path)
    if _is_safetensors(path):
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("vaegap")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = verified_meta(path, header, state) if header else {}
        return state, meta.get("config") or meta.get("model") or {}
    members = _members(path)
    if any("/code/" in name for name in members):
        raise InputError(f"{path} is a TorchScript program, not weights: give it as MODEL, without --checkpoint")
    if any(name.endswith("archive_format") for name in members):
        raise InputError(f"{path} is a torch.export program, not weights: give it with --encoder and --decoder")
    if path.suffix == ".safetensors":
        raise InputError(
            f"{path} cannot be read: it is no safetensors file, or damaged. Copy it anew, or write it with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        )
    found = _load_tensors(path.read_bytes(), str(path))
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    state = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise InputError(
            f"{path} holds no state dict; write it with torch.save(model.state_dict(), ...) or safetensors"
        )
    return state, {}


def read_program(path: Path) -> nn.Module:
    """A TorchScript or torch.export program.

    Raises:
        InputError: neither of them, or one with pickled parts.
    """
    _there(path)
    members = _members(path)
    try:
        if any("/code/" in name for name in members):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch deprecates TorchScript; files remain
                return torch.jit.load(path, map_location="cpu")
        if any(name.endswith("archive_format") for name in members):
            _vet_export(path)
            return torch.export.load(path).module()
    except InputError:
        raise
    except Exception as error:  # whatever torch makes of damaged bytes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} cannot be opened ({reason}): it may be damaged, export it anew") from None
    raise InputError(
        f"{path} is neither a TorchScript file nor one of torch.export. Weights go with --checkpoint; a pickled model "
        "is not opened, for it could run any code: save its state_dict() instead"
    )


def read_images(path: Path) -> Tensor:
    """Images (N, ...) from .npy, .npz (its only or first array), .safetensors or .pt.

    Raises:
        InputError: the file is not there, cannot be read, or would have to be unpickled.
    """
    _there(path)
    if path.suffix in (".npy", ".npz"):
        try:
            found = np.load(path, allow_pickle=False)
            array = found if isinstance(found, np.ndarray) else found[found.files[0]]
        except (ValueError, OSError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} cannot be read as an array of numbers ({error}); write it with numpy.save(path, array)"
            ) from None
        if array.dtype.kind not in "biuf":
            raise InputError(f"{path} holds values of type {array.dtype}; images are numbers")
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)  # torch has no longer ones
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    if path.suffix == ".pt" and not _is_safetensors(path):
        loaded = _load_tensors(path.read_bytes(), str(path))
        if isinstance(loaded, Tensor):
            return loaded
        raise InputError(f"{path} holds a {type(loaded).__name__}; images come as one tensor (N, ...)")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        held = read_weights(path)[0]
        if len(held) == 1:
            return next(iter(held.values()))
        names = ", ".join(sorted(held)[:5])
        raise InputError(f"{path} holds {len(held)} tensors ({names or 'none'}); images come as one tensor (N, ...)")
    raise InputError(f"{path}: images come as .npy, .npz, .safetensors or .pt")


def _there(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}")


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except zipfile.BadZipFile:
        return []


def _load_tensors(data: bytes, what: str) -> Any:
    """torch.load that never runs what it reads."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise InputError(
            f"{what} is a pickle that holds more than tensors, and opening it could run any code, so it stays shut "
            f"({reason}). Ask for the weights as safetensors, or write them where you trust the file: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{what} cannot be read as weights ({str(error).splitlines()[0][:200]})") from None


def _vet_export(path: Path) -> None:
    """Refuse what torch.export.load would unpickle or evaluate."""
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            data = file.read(name)
            if name.endswith(".pt"):
                _load_tensors(data, f"{path}: its part {name}")
            elif name.endswith(".json"):
                try:
                    values = json.loads(data)
                except ValueError:
                    raise InputError(f"{path}: its part {name} is damaged") from None
                _vet_json(values, path, name)


def _vet_json(value: Any, path: Path, name: str) -> None:
    if isinstance(value, list):
        for item in value:
            _vet_json(item, path, name)
    elif isinstance(value, dict):
        if value.get("use_pickle"):
            raise InputError(f"{path}: its part {name} points to pickled values, which stay shut: export it anew")
        text = value.get("expr_str")
        if isinstance(text, str) and not _plain(text):
            raise InputError(f"{path}: a size in {name} is no plain expression ({text[:80]!r}): export it anew")
        for item in value.values():
            _vet_json(item, path, name)


def _plain(text: str) -> bool:
    """Whether an expression is arithmetic on names and sympy's classes: no attribute, no function in small letters."""
    return bool(_PLAIN.fullmatch(text)) and "__" not in text and all(c[0].isupper() for c in _CALL.findall(text))
