"""Running somebody's model.py and opening what belongs to it: each failure is one message with its file and line."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_file", "from_code"]


def from_code(model: str | None, checkpoint: Path | None, encoder: Path | None, decoder: Path | None) -> Any:
    """A model from somebody's Python or program file, with weights loaded into it if there are any.

    Args:
        model: "model.py:make_vae", or a TorchScript file.
        checkpoint: weights to load into what make_vae returns.
        encoder, decoder: two program files in place of `model`.

    Raises:
        InputError: nothing to audit, or code that fails; the message names the line.
    """
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
        if checkpoint is not None:
            raise InputError(f"{model} is a program with weights of its own: leave out --checkpoint")
        return read_program(Path(model))
    thing = _make(Path(file), name)
    if checkpoint is not None:
        check_file(checkpoint)
        state, _ = read_weights(checkpoint)
        _load(thing, state, checkpoint)
    return thing


def _make(file: Path, name: str) -> Any:
    """Run file.py and call one of its functions."""
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location("audited_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audited_model"] = module
    sys.path.insert(0, str(file.resolve().parent))  # its own imports; it stays, for encode() may import, too
    _told(lambda: spec.loader.exec_module(module), file, str(file))  # type: ignore[union-attr]
    made = getattr(module, name, None)
    if made is None:
        known = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise InputError(f"{file} has no {name!r}; it has: {known or 'no functions'}")
    if not callable(made) or hasattr(made, "parameters"):
        return made
    _check_no_arguments(made, f"{file}:{name}")
    return _told(made, file, f"{file}:{name}")


def _check_no_arguments(made: Callable[..., Any], name: str) -> None:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # something in C
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise InputError(
            f"{name} needs {', '.join(needed)}; an audit calls it without arguments: write a function that makes the "
            "model with your values and needs none"
        )


def _told(work: Callable[[], Any], file: Path, what: str) -> Any:
    """Run somebody's code; its failure is one message."""
    from vaegap.behind import line_of

    try:
        return work()
    except (Exception, SystemExit) as error:
        where = line_of(error, file)
        said = (str(error).strip().splitlines() or ["no message"])[0]
        if isinstance(error, SyntaxError):
            said = str(error.msg)
        at = f" ({where})" if where else ""
        raise InputError(f"{what} fails{at} with {type(error).__name__}: {said}. Mend it, then audit again") from error


def _load(thing: Any, state: dict[str, Tensor], path: Path) -> None:
    """Load weights into the torch module behind somebody's model."""
    from torch import nn

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


def check_file(path: Path) -> None:
    """Refuse a damaged file by what its first bytes say, before a reader takes it for a pickle.

    Raises:
        InputError: the file is not there, or is not what its ending says.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".npy" and not start.startswith(b"\x93NUMPY"):
        raise InputError(f"{path} cannot be read: it is no array of numpy's, or damaged. Write it with numpy.save")
    if path.suffix == ".npz" and not start.startswith(b"PK"):
        raise InputError(f"{path} cannot be read: it is no archive of numpy's, or damaged. Write it with numpy.savez")
    if path.suffix == ".safetensors":
        size = int.from_bytes(start[:8], "little")  # of the header, JSON that follows at once
        if len(start) < 9 or start[8:9] != b"{" or size > path.stat().st_size - 8:
            raise InputError(
                f"{path} cannot be read: it is no safetensors file, or damaged. Copy it anew, or write it with "
                "safetensors.torch.save_file(model.state_dict(), path)"
            )
