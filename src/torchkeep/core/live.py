"""Live modules and tensors as names: what is in a model, and which of its tensors are one and the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UnsavableError
from .tensors import DTYPES, LazyTensor, TensorSpec, dtype_name

AnyTensor = torch.Tensor | LazyTensor

EXTRA_STATE = "_extra_state"
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # compile, checkpointing, FSDP


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel, torch.compile and the like."""
    while (inner := _inside(model)) is not None:
        model = inner[1]
    return model


def _inside(model: nn.Module) -> tuple[str, nn.Module] | None:
    """What a wrapper wraps, and under which key; None for any other module."""
    if not model._modules:  # most are leaves, and this is asked of every module again and again
        return None
    for key in _WRAPPED:
        if key in model._modules and model._modules[key] is not None:  # a ScriptModule's dict has no get
            return key, model._modules[key]  # type: ignore[return-value]
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module", model.module
    return None


def named_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module under every path it has, parents first; wrappers do not show, wherever in the model they stand.

    >>> inner = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
    >>> [path for path, _ in named_modules(nn.ModuleDict({"encoder": inner}))]
    ['', 'encoder', 'encoder.0']
    """
    found: list[tuple[str, nn.Module]] = []
    _walk(model, path, found)
    return iter(found)


def _walk(model: nn.Module, path: str, found: list[tuple[str, nn.Module]]) -> None:
    module = unwrapped(model)
    found.append((path, module))
    for key, child in module._modules.items():
        if child is not None:
            _walk(child, f"{path}.{key}" if path else key, found)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under every name it has; wrappers do not show."""
    for path, module in named_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{key}" if path else key, parameter


def named_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every buffer under every name it has, those that are not saved too; wrappers do not show."""
    for path, module in named_modules(model):
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{path}.{key}" if path else key, buffer


STANDS_FOR = "_torchkeep_part"
"""Under this key of its `__dict__` a skeleton has the part that it stands for."""


def class_name(module: nn.Module) -> str:
    """`module.name` of the class of a module; of a skeleton, that of the class it stands for."""
    part = module.__dict__.get(STANDS_FOR)
    return part.class_name if part is not None else f"{type(module).__module__}.{type(module).__qualname__}"


def is_parametrized(module: nn.Module) -> bool:
    """Whether `torch.nn.utils.parametrize` has put a class of its own before that of the module."""
    kind = type(module)
    return kind.__module__ == "torch.nn.utils.parametrize" and kind.__name__.startswith("Parametrized")


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was written: what `torch.nn.utils.parametrize` put before it is left out."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module of a path as `named_modules` gives it.

    Raises:
        AttributeError: there is none.
    """
    module = unwrapped(model)
    for key in path.split(".") if path else ():
        module = unwrapped(module.get_submodule(key))
    return module


def _wrapped_steps(model: nn.Module, path: str = "") -> Iterator[str]:
    """The paths, as a state dict has them, at which one steps from a wrapper into what it wraps."""
    while (inner := _inside(model)) is not None:
        path = f"{path}.{inner[0]}" if path else inner[0]
        yield path
        model = inner[1]
    for key, child in model._modules.items():
        if child is not None:
            yield from _wrapped_steps(child, f"{path}.{key}" if path else key)


def _without(name: str, steps: set[str]) -> str:
    """A name of a state dict without the steps into wrappers."""
    kept, path = [], ""
    for key in name.split("."):
        path = f"{path}.{key}" if path else key
        if path not in steps:
            kept.append(key)
    return ".".join(kept)


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
    steps = set(_wrapped_steps(inner))
    tensors, extra = {}, {}
    for key, value in inner.state_dict(keep_vars=True).items():
        name = _without(key, steps) if steps else key
        if is_extra_state(name) or not isinstance(value, torch.Tensor):
            extra[name] = value
        else:
            tensors[name] = live.get(name, value)
    return tensors, extra


def live_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name it has."""
    return {**dict(named_parameters(model)), **dict(named_buffers(model))}


def set_extra_state(model: nn.Module, name: str, value: Any) -> None:
    """Give a module the extra state that stood under a name of a state dict."""
    module_at(model, name.rpartition(".")[0]).set_extra_state(value)


def spec_of(tensor: AnyTensor) -> TensorSpec:
    """dtype and shape; shape () for a parameter that a lazy module has not made yet."""
    if isinstance(tensor, LazyTensor):
        return tensor.spec
    if type(tensor) is not torch.Tensor and type(tensor) is not nn.Parameter and is_lazy(tensor):
        return TensorSpec(tensor.dtype, ())
    return _spec(tensor.dtype, tensor.shape)


@lru_cache(maxsize=1024)
def _spec(dtype: torch.dtype, shape: torch.Size) -> TensorSpec:
    """Many tensors are of few kinds, and looking up is quicker than making."""
    return TensorSpec(dtype, tuple(shape))


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
    starts = {name: _start(tensor) for name, tensor in tensors.items()}
    often = Counter(starts.values())
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if (start := starts[name]) is not None and often[start] == 1:
            continue  # nothing else begins there, which is much cheaper to see than the identity
        canonical = first.setdefault(identity(tensor), name)
        if canonical != name:
            tied[name] = canonical
    return tied


def _start(tensor: AnyTensor) -> int | None:
    """The address of the first element, where a tensor has one."""
    plain = type(tensor) is nn.Parameter or type(tensor) is torch.Tensor
    return tensor.data_ptr() if plain and tensor.layout is torch.strided and not tensor.is_meta else None


def shared_storages(tensors: Mapping[str, AnyTensor]) -> list[str]:
    """Names whose storage another, different tensor uses too: written apart, they no longer share it."""
    first: dict[int, str] = {}
    shared: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            if tensor.layout is not torch.strided or not tensor.numel():
                continue
            storage = tensor.untyped_storage().data_ptr()  # 0 on the meta device
        else:
            storage = id(tensor.storage) if tensor.storage is not None and tensor.nbytes else 0
        if first.setdefault(storage, name) is not name and storage:
            shared.setdefault(storage, [first[storage]]).append(name)
    return [name for names in shared.values() for name in names]


_PLAIN = frozenset({torch.Tensor, nn.Parameter, nn.Buffer})
_SAVABLE = frozenset(row.torch for row in DTYPES.values())


def check_savable(name: str, tensor: AnyTensor) -> None:
    """Refuse a tensor whose bytes alone do not say what it is.

    Raises:
        UnsavableError: a sparse, quantized, nested, distributed or uninitialised tensor, a subclass, or one of a
            dtype that torchkeep does not know.
    """
    if isinstance(tensor, LazyTensor):
        return
    plain = type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_quantized
    if plain and tensor.dtype in _SAVABLE and not tensor.is_nested:
        return
    problem, hint = "", ""
    if is_lazy(tensor):
        problem, hint = "has no shape yet", "run the model once, so that its lazy layers are made"
    elif tensor.is_quantized:
        problem, hint = "is quantized", "save tensor.int_repr() and its scale, or tensor.dequantize()"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        problem, hint = f"has layout {tensor.layout}", "save tensor.to_dense() or its parts"
    elif type(tensor) not in _PLAIN:
        problem, hint = f"is a {type(tensor).__name__}", "save the plain tensors it is made of"
    elif dtype_name(tensor.dtype) not in DTYPES:
        problem, hint = f"has dtype {tensor.dtype}", "save it as another dtype: tensor.view(torch.uint8)"
    if problem:
        raise UnsavableError(f"the tensor {name!r} {problem} and cannot be written", path=name, hint=hint)
