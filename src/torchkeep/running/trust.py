"""Tensors that are frozen and were hashed once, so that a save need not read them again: only for who asks for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..core.digests import digest_tensor
from ..core.live import live_tensors, named_buffers, named_modules, named_parameters
from ..errors import FrozenChangedWarning
from ..freezing import is_held
from .packing import Given
from .tracking import MODULE, of_kind

Marks = Mapping[str, tuple[Any, ...]]
"""Full name -> what is the same as long as nobody has put other memory, or visibly other values, into a tensor."""

_SHARE = 16  # one of so many is hashed again at every save


class Trust:
    """Digests of frozen tensors as this process has read them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, ...], str]] = {}
        self._turn = 0

    def look(self, given: Given, objects: Mapping[str, Any]) -> Marks:
        """Marks of the tensors that are frozen now, and whose memory no other tensor of a tracked module uses."""
        frozen = frozen_names(objects)
        modules = of_kind(objects, MODULE).items()
        moving = {
            tensor.untyped_storage().data_ptr()
            for tracked, module in modules
            for name, tensor in live_tensors(module).items()
            if f"{tracked}/{name}" not in frozen
        }
        found = ((name, given.values[name]) for name in sorted(frozen & given.values.keys()))
        return {
            name: _mark(tensor)
            for name, tensor in found
            if not tensor.is_inference() and tensor.untyped_storage().data_ptr() not in moving
        }

    def known(self, marks: Marks) -> dict[str, str]:
        """The digests of those that were read before and are marked as then."""
        return {name: self._known[name][1] for name, mark in marks.items() if self._known.get(name, ((),))[0] == mark}

    def check(self, given: Given) -> tuple[Given, tuple[str, ...]]:
        """Hash a sample of what is trusted; each has its turn. If one has changed, nothing is trusted in this save.

        Returns:
            The save as it may be relied on, and notes on what changed.
        """
        names = list(given.digests)
        sample = names[self._turn % _SHARE :: _SHARE] or names[:1]
        self._turn += 1
        changed = [name for name in sample if digest_tensor(given.values[name]) != given.digests[name]]
        if not changed:
            return given, ()
        self._known.clear()
        note = (
            f"frozen and changed all the same: {', '.join(changed[:3])}; everything was read for this snapshot, "
            "and earlier snapshots may hold older values of what is frozen"
        )
        warnings.warn(f"trust_frozen: {note}", FrozenChangedWarning, stacklevel=6)
        return replace(given, digests={}), (note,)

    def learn(self, marks: Marks, digests: Mapping[str, str]) -> None:
        """Remember what was saved of tensors that were frozen."""
        self._known = {name: (mark, digests[name]) for name, mark in marks.items()}

    def forget(self) -> None:
        """A save failed, or weights were restored: read everything next time."""
        self._known.clear()


def frozen_names(objects: Mapping[str, Any]) -> set[str]:
    """Full names of the parameters and buffers that `freeze` holds still in the tracked modules."""
    return {f"{tracked}/{name}" for tracked, module in of_kind(objects, MODULE).items() for name in _frozen(module)}


def _frozen(module: nn.Module) -> Iterable[str]:
    held = {path for path, part in named_modules(module) if is_held(part)}
    for name, parameter in named_parameters(module):
        if not parameter.requires_grad and name.rpartition(".")[0] in held:
            yield name
    for name, _ in named_buffers(module):
        if name.rpartition(".")[0] in held:
            yield name


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    # The weak reference keeps no memory, but the address of a storage that is gone is not taken for that of a new one.
    storage = StorageWeakRef(tensor.untyped_storage())
    place = (storage, tensor.data_ptr(), tensor.device)
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor._version)
