"""Values for what is on the meta device and comes from no source: those that its module's own initialiser gives."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from ..core.live import live_tensors, named_modules
from ..core.placement import CPU

Place = Callable[[torch.Tensor], torch.device | str]

_INITIALISERS = ("reset_parameters", "_reset_parameters")


def initial_values(
    model: nn.Module, names: Iterable[str], devices: Mapping[str, torch.device]
) -> dict[str, torch.Tensor]:
    """Values for tensors on the meta device, by name; without those that no initialiser gives all their values.

    A module is asked on a twin with memory of its own, the owner of a tensor first and then the modules around it,
    whose twins have memory for what is wanted alone. The model itself is not touched.

    Args:
        model: without wrappers.
        names: first names of tensors on the meta device.
        devices: by name, where the values are made; the CPU where it says nothing.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for name in names:
        wanted[name.rpartition(".")[0]].add(name)
    modules = dict(named_modules(model)) if wanted else {}
    found: dict[str, torch.Tensor] = {}
    for owner, ones in wanted.items():
        for path in _upwards(owner):
            lacking = ones - found.keys()
            if lacking and path in modules:
                device = devices.get(min(lacking), CPU)
                found |= _given_by(modules[path], path, lacking, device, whole=path == owner)
    return found


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _given_by(
    module: nn.Module, path: str, names: set[str], device: torch.device | str, *, whole: bool
) -> dict[str, torch.Tensor]:
    """What the initialiser of one module gives these tensors, on a twin that has NaN in all its floats before."""
    key = next((key for key in _INITIALISERS if callable(getattr(module, key, None))), "")
    if not key:
        return {}
    own = {name: name[len(path) + 1 :] if path else name for name in names}
    live = live_tensors(module)
    wanted = set() if whole else {id(live[inner]) for inner in own.values() if inner in live}
    try:
        twin = _twin(module, lambda tensor: device if whole or id(tensor) in wanted else "meta", {})
        before = {name: (tensor, tensor._version) for name, tensor in live_tensors(twin).items()}
        with torch.no_grad():
            getattr(twin, key)()
        after = live_tensors(twin)
        return {
            name: after[inner].detach()
            for name, inner in own.items()
            if inner in after
            and after[inner].shape == before[inner][0].shape
            and not after[inner].is_meta
            and _is_given(*before[inner], after[inner])
        }
    except Exception:  # the code of others, which may need more than a twin has
        return {}


def _is_given(before: torch.Tensor, version: int, after: torch.Tensor) -> bool:
    """Whether every value was written: no NaN is left of floats; of others torch's counter tells."""
    if after.is_floating_point() or after.is_complex():
        return not bool(after.isnan().any())
    return after is not before or after._version != version


def _twin(module: nn.Module, place: Place, known: dict[int, torch.Tensor]) -> nn.Module:
    """A module with the same attributes and with tensors and modules of its own."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)

    def memory(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in known:
            fill = math.nan if tensor.is_floating_point() or tensor.is_complex() else 0
            value = torch.full_like(tensor, fill, device=place(tensor), requires_grad=False)
            known[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        return known[id(tensor)]

    twin.__dict__["_parameters"] = {key: memory(tensor) for key, tensor in module._parameters.items()}
    twin.__dict__["_buffers"] = {key: memory(tensor) for key, tensor in module._buffers.items()}
    twin.__dict__["_modules"] = {
        key: None if child is None else _twin(child, place, known) for key, child in module._modules.items()
    }
    return twin
