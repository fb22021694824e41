"""Live modules and tensors as names: what is in a model, and which of its tensors are one and the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UnsavableError
from .tensors import DTYPES, LazyTensor, TensorSpec, dtype_name

AnyTensor = torch.Tensor | LazyTensor

EXTRA_STATE = "_extra_state"


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_extra_state(name: str) -> bool:
    """Whether a name of a state dict is what a module's `get_extra_state` gave, and no parameter or buffer."""
    return name.rpartition(".")[2] == EXTRA_STATE


def state_of(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the state dict of a model names: its parameters and buffers, themselves, and the modules' extra state.

    A hook may make a state dict say other tensors than the model has. What a parameter or buffer of that name holds is
    what counts: it is what training changes, and what loading has to reach.
    """
    inner = unwrapped(model)
    live = live_tensors(inner)
    tensors, extra = {}, {}
    for name, value in inner.state_dict(keep_vars=True).items():
        if is_extra_state(name) or not isinstance(value, torch.Tensor):
            extra[name] = value
        else:
            tensors[name] = live.get(name, value)
    return tensors, extra


def live_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name it has."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def set_extra_state(model: nn.Module, name: str, value: Any) -> None:
    """Give a module the extra state that stood under a name of a state dict."""
    unwrapped(model).get_submodule(name.rpartition(".")[0]).set_extra_state(value)


def spec_of(tensor: AnyTensor) -> TensorSpec:
    """dtype and shape; shape () for a parameter that a lazy module has not made yet."""
    if isinstance(tensor, LazyTensor):
        return tensor.spec
    return TensorSpec(tensor.dtype, () if is_lazy(tensor) else tuple(tensor.shape))


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
        UnsavableError: a sparse, quantized, nested, distributed or uninitialised tensor, a subclass, or one of a
            dtype that torchkeep does not know.
    """
    if isinstance(tensor, LazyTensor):
        return
    problem, hint = "", ""
    if is_lazy(tensor):
        problem, hint = "has no shape yet", "run the model once, so that its lazy layers are made"
    elif tensor.is_quantized:
        problem, hint = "is quantized", "save tensor.int_repr() and its scale, or tensor.dequantize()"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        problem, hint = f"has layout {tensor.layout}", "save tensor.to_dense() or its parts"
    elif type(tensor) not in {torch.Tensor, nn.Parameter, nn.Buffer}:
        problem, hint = f"is a {type(tensor).__name__}", "save the plain tensors it is made of"
    elif dtype_name(tensor.dtype) not in DTYPES:
        problem, hint = f"has dtype {tensor.dtype}", "save it as another dtype: tensor.view(torch.uint8)"
    if problem:
        raise UnsavableError(f"the tensor {name!r} {problem} and cannot be written", path=name, hint=hint)
