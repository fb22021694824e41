"""The tensors of a model that is being made: first without values, then with those of the file."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..core.checkpoint import Checkpoint
from ..core.facts import FileFacts
from ..core.live import live_tensors, state_of
from ..core.placement import Device
from ..core.tensors import LazyTensor, contiguous_stride
from ..core.tree import ABSENT
from ..errors import OpenError, PartialLoadError
from ..loading import load_into


class Places:
    """Live tensors for the lazy ones of a file, one for each: without values where a state dict will bring them."""

    def __init__(self, ckpt: Checkpoint, device: Device | None) -> None:
        self.device = torch.device("cpu" if device is None else device)
        self._state = {tensor.identity for tensor in ckpt.values()}
        self._memory: dict[tuple[object, ...], torch.Tensor] = {}
        self._made: dict[tuple[object, ...], torch.Tensor] = {}
        self._tied = ckpt.facts.tied if isinstance(ckpt.facts, FileFacts) else {}
        self._lazy: dict[int, LazyTensor] = {}
        self._empty: dict[tuple[object, ...], LazyTensor] = {}

    def tensor(self, lazy: LazyTensor, name: str) -> torch.Tensor:
        """The live tensor; `name` is empty where it is no parameter or buffer."""
        key = (*self._identity(lazy, name), lazy.kind, lazy.requires_grad)
        if key not in self._made:
            self._made[key] = self._make(lazy)
            self._lazy[id(self._made[key])] = lazy
        return self._made[key]

    def _identity(self, lazy: LazyTensor, name: str) -> tuple[object, ...]:
        """What makes a tensor the same as another; where it has no bytes, nothing but its name tells it from others."""
        if name and (lazy.storage is None or not lazy.numel()) and not lazy.parts:
            return ("named", self._tied.get(name, name))
        return lazy.identity

    def move(self, model: nn.Module) -> None:
        """Move what constructors made beyond the file to the device as well."""
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    if tensor is not None and tensor.device.type not in {"meta", self.device.type}:
                        moved = tensor.detach().to(self.device)
                        same = isinstance(tensor, nn.Parameter)
                        held[key] = nn.Parameter(moved, tensor.requires_grad) if same else moved  # type: ignore[assignment]

    def lazy(self, tensor: torch.Tensor) -> LazyTensor | None:
        """What a live tensor was made for."""
        return self._lazy.get(id(tensor))

    def fill(self, but: Collection[LazyTensor]) -> None:
        """Load what has no values yet, apart from some; the modules that it is of are no children of any."""
        brought = {lazy.identity for lazy in but}
        for identity, lazy in self._empty.items():
            if identity not in brought and lazy.device != "meta":
                self._memory[identity].copy_(lazy.load())

    def _make(self, lazy: LazyTensor) -> torch.Tensor:
        if lazy.identity not in self._memory:
            self._memory[lazy.identity] = self._memory_of(lazy)
        made = self._memory[lazy.identity].detach()
        if lazy.kind == "parameter":
            return nn.Parameter(made, requires_grad=lazy.requires_grad)
        return made.requires_grad_() if lazy.requires_grad else made

    def _memory_of(self, lazy: LazyTensor) -> torch.Tensor:
        device = torch.device("meta") if lazy.device == "meta" else self.device
        if lazy.identity in self._state and not lazy.parts:
            self._empty[lazy.identity] = lazy
            return torch.empty_strided(lazy.spec.shape, _dense(lazy), dtype=lazy.spec.dtype, device=device)
        return lazy.load(device)


def load_own(model: nn.Module, ckpt: Checkpoint, places: Places) -> None:
    """Bring the values to the tensors that were made for them, whatever the model calls them.

    What the model has beyond those was filled in, and extra state is among the attributes: both are there.
    """
    tensors, extra = state_of(model)
    known = {name: lazy for name, tensor in tensors.items() if (lazy := places.lazy(tensor)) is not None}
    own = {name: lazy for name, lazy in known.items() if not lazy.parts}  # those with parts were loaded at once
    if places.device.type == "meta" or any(lazy.device == "meta" for lazy in own.values()):
        own = {}  # what has no values is left without
    new = [name for name in (*tensors, *extra) if name not in own]
    if own:
        allow = [re.compile(f"^{re.escape(name)}$") for name in new]
        weights = replace(ckpt, tensors=own, tree=ABSENT, kind="weights")
        try:
            load_into(model, weights, allow=allow or None, rules=["exact"])
        except PartialLoadError as error:  # nobody has the model yet: what counts is why
            raise (error.__cause__ if isinstance(error.__cause__, OpenError) else error) from None
    places.fill(but=own.values())


def fill(model: nn.Module, ckpt: Checkpoint, allow: Any) -> None:
    """Load the values, as far as there are any: a tensor that was on the meta device stays there."""
    if any(tensor.device == "meta" for tensor in ckpt.values()):
        live = live_tensors(model)
        for name, tensor in ckpt.items():
            if tensor.device != "meta" and name in live:
                live[name].detach().copy_(tensor.load())
    elif ckpt or model.state_dict():
        load_into(model, ckpt, allow=allow, freeze=False)


def _dense(lazy: LazyTensor) -> tuple[int, ...]:
    """Its strides, where they are those of some order of its dimensions without gaps; else row by row."""
    expected = 1
    for size, stride in sorted(zip(lazy.spec.shape, lazy.stride, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1 and stride != expected:
            return contiguous_stride(lazy.spec.shape)
        expected *= size
    return tuple(lazy.stride)
