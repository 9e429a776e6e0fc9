"""A pretend accelerator: tensors that say they are elsewhere, and meet tensors of the CPU only where CUDA lets them.

A machine without a GPU never sees the commonest mistake of code for one: a tensor made on the CPU that meets another
on the device. Here tensors of `DEVICE` hold a CPU tensor that computes for them, and where the two kinds are mixed the
error of a real device is raised. "lazy" is a device type that torch knows without hardware and lets autograd run on.

What this does not replace is a run on a real GPU. It knows nothing of kernels, streams, memory, speed, fused
optimizers, lower precision, a device's own global random state, or branches on `device.type == "cuda"`; where CUDA's
rules differ from operation to operation, it is the stricter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "Elsewhere", "pretend_device"]

DEVICE = torch.device("lazy", 0)
_aten = torch.ops.aten
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_NUMBERS = (*_INDEXING, _aten.fill_.Tensor, _aten.masked_fill.Tensor)  # they take a number of the CPU
_CPUGenerator = torch.Generator
_new: Any = Tensor  # torch's stubs do not know how wrappers are made


class Elsewhere(Tensor):
    """A tensor of the pretended device; `held` computes for it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return _new._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Generator(_CPUGenerator):
    """What `torch.Generator` is meanwhile: one of the pretended device, or of the CPU, as it is asked."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls if torch.device(device).type == DEVICE.type else _CPUGenerator, "cpu")

    @property
    def device(self) -> torch.device:
        return DEVICE


class _Factories(TorchDispatchMode):
    """Operations that make a tensor on the device from none there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What torch does around operations: generators are looked at, lists become tensors, tensors lists or arrays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (generator := kwargs.get("generator")) is not None:
            given = (t.device for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
            wanted = torch.device(kwargs.get("device") or next(given, "cpu"))
            if wanted.type != generator.device.type:
                raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{generator.device}'")
        there = bool(args) and isinstance(args[0], Elsewhere)
        if func in (Tensor.numpy, Tensor.__array__) and there:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.tolist and there:
            return args[0].cpu().tolist()
        if func == Tensor.data.__set__ and there:  # Module.to() sets it
            args[0].held = args[1].held
        if func in (torch.tensor, torch.as_tensor) and not there:
            device = kwargs.pop("device", None)
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Make `DEVICE` a device that tensors, modules and generators can be on."""
    with mock.patch.object(torch, "Generator", _Generator), _Factories(), _Calls():
        yield DEVICE


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    own: dict[int, Elsewhere] = {}  # by what they hold: operations in place return the tensor that they got
    here: list[Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, Elsewhere):
            own[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor):
            here.append(value)
        return value

    plain_args, plain_kwargs = _each(unwrap, args), {k: _each(unwrap, v) for k, v in kwargs.items()}
    if own and here:
        _refuse_mixing(func, args, here)
    device = kwargs.get("device") or (DEVICE if own else torch.device("cpu"))
    if "device" in kwargs:
        plain_kwargs["device"] = torch.device("cpu")
    out = func(*plain_args, **plain_kwargs)
    if device.type != DEVICE.type or (func is _aten.copy_.default and not isinstance(args[0], Elsewhere)):
        return out
    return _each(lambda t: own.get(id(t), t) if id(t) in own or not isinstance(t, Tensor) else Elsewhere(t), out)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_each(change, v) for v in value)
    return change(value)


def _refuse_mixing(func: Any, args: Any, here: list[Tensor]) -> None:
    """Raise what a device would where tensors of the CPU take part in an operation with some of its own."""
    if func is _aten.copy_.default:
        return
    if func in _INDEXING:
        if not isinstance(args[0], Elsewhere):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        here = [t for t in args[2:3] if not isinstance(t, Elsewhere)]  # values; indices may be on the CPU
    if any(t.dim() for t in here) or (here and func not in _NUMBERS and torch.Tag.pointwise not in func.tags):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu ({func})")
