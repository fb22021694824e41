"""Live modules and tensors as names: what is in a model, and which of its tensors are one and the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UnsavableError
from .tensors import LazyTensor, TensorSpec

AnyTensor = torch.Tensor | LazyTensor


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def state_of(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Parameters and persistent buffers by name, themselves and not copies; and the modules' extra state."""
    state = unwrapped(model).state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def spec_of(tensor: AnyTensor) -> TensorSpec:
    """dtype and shape; shape () for a parameter that a lazy module has not made yet."""
    if isinstance(tensor, LazyTensor):
        return tensor.spec
    if is_lazy(tensor):
        return TensorSpec(tensor.dtype, ())
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def identity(tensor: AnyTensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same elements in the same order."""
    if isinstance(tensor, LazyTensor):
        return tensor.identity
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return ("object", id(tensor))
    place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())


def tied_names(tensors: Mapping[str, AnyTensor]) -> dict[str, str]:
    """Name -> the first name of the same tensor, for every name but the first."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        canonical = first.setdefault(identity(tensor), name)
        if canonical != name:
            tied[name] = canonical
    return tied


def shared_storages(tensors: Mapping[str, AnyTensor]) -> list[str]:
    """Names whose storage another, different tensor uses too: written apart, they no longer share it."""
    users: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, LazyTensor):
            if tensor.storage is not None and tensor.nbytes:
                users.setdefault(id(tensor.storage), []).append(name)
        elif tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.nbytes:
            users.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return [name for names in users.values() if len(names) > 1 for name in names]


def check_savable(name: str, tensor: AnyTensor) -> None:
    """Refuse a tensor whose bytes alone do not say what it is.

    Raises:
        UnsavableError: a sparse, quantized, nested, distributed or uninitialised tensor, or a subclass.
    """
    if isinstance(tensor, LazyTensor):
        return
    problem = ""
    if is_lazy(tensor):
        problem, hint = "has no shape yet", "run the model once, so that its lazy layers are made"
    elif tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        problem, hint = f"has layout {tensor.layout}", "save tensor.to_dense() or its parts"
        if tensor.is_quantized:
            problem, hint = "is quantized", "save tensor.int_repr() and its scale, or tensor.dequantize()"
    elif type(tensor) not in {torch.Tensor, nn.Parameter, nn.Buffer}:
        problem, hint = f"is a {type(tensor).__name__}", "save the plain tensors it is made of"
    if problem:
        raise UnsavableError(f"the tensor {name!r} {problem} and cannot be written", path=name, hint=hint)
