"""Describing a live model: what `print(model)` leaves out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.live import class_name, identity, named_modules, unwrapped
from .core.modulespec import ModuleEntry, ModuleSpec, TensorEntry
from .core.tensors import dtype_name
from .freezing import freeze_state, is_held


def inspect(model: nn.Module) -> ModuleSpec:
    """Describe a model: modules, dtypes, shapes, devices, what is trainable, frozen or tied.

    >>> print(inspect(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))  # doctest: +ELLIPSIS
    torch.nn.modules.container.Sequential
      modules     3 (Linear, ReLU, Sequential)
      parameters  2 (9 elements), 0 buffers
    ...

    Args:
        model: any module, on any device, `meta` included. It is not run and not changed.
            DataParallel and torch.compile are seen through.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"inspect describes a live model, not a {type(model).__name__}; a file is opened by tk.open")
    model = unwrapped(model)
    modules = list(named_modules(model))
    first: dict[object, str] = {}
    return ModuleSpec(
        class_name=class_name(model),
        modules=tuple(
            ModuleEntry(path, class_name(module), module.training, is_held(module)) for path, module in modules
        ),
        tensors=tuple(entry for path, module in modules for entry in _entries(path, module, first)),
        freeze=freeze_state(model),
    )


def _entries(path: str, module: nn.Module, first: dict[object, str]) -> Iterator[TensorEntry]:
    """The tensors a module owns itself; `first` remembers the first name of every tensor."""
    owned: list[tuple[str, torch.Tensor | None, bool]]
    owned = [(key, tensor, True) for key, tensor in module._parameters.items()]
    owned += [(key, tensor, False) for key, tensor in module._buffers.items()]
    for key, tensor, is_parameter in owned:
        if tensor is None:
            continue
        name = f"{path}.{key}" if path else key
        original = first.setdefault(id(tensor) if is_lazy(tensor) else identity(tensor), name)
        yield TensorEntry(
            name=name,
            dtype=dtype_name(tensor.dtype),
            shape=_shape(tensor),
            device=str(tensor.device),
            kind="parameter" if is_parameter else "buffer",
            persistent=is_parameter or key not in module._non_persistent_buffers_set,
            requires_grad=tensor.requires_grad,
            tied_to=None if original == name else original,
            initialized=not is_lazy(tensor),
        )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.shape)
