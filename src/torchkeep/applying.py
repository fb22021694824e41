"""Carrying out a plan for loading: values into the parameters of a model, or parameters that are views of a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.live import AnyTensor, identity, live_tensors, named_modules, set_extra_state, tied_names, unwrapped
from .core.placement import CPU, Device, Placement, placement_of
from .core.plan import LoadPlan, Move
from .core.table import human_bytes, shorten
from .core.tensors import LazyTensor
from .engines.filling import Job, Place, bytes_of, fill, place_of, same_order
from .engines.local import LocalFile
from .engines.mapped import MappedSource
from .engines.staging import CudaLane, Lane, Sending, send_all
from .errors import PartialLoadError
from .freezing.view import blocks_of

Tensors = Mapping[str, AnyTensor]
Devices = Mapping[str, torch.device]

_LANES: dict[str, Callable[[torch.device], Lane]] = {"cuda": CudaLane}


def value_of(tensor: AnyTensor) -> torch.Tensor:
    """The values of a tensor, wherever it is."""
    return tensor.load() if isinstance(tensor, LazyTensor) else tensor.detach()


def devices_of(model: nn.Module, device: Device | Mapping[Any, Device] | Placement | None) -> dict[str, torch.device]:
    """Where each parameter and buffer of a model is to go, under every name it has.

    Raises:
        SelectorError, LoadError: as `placement_of` and `Placement.resolved` say.
    """
    inner = unwrapped(model)
    live = live_tensors(inner)
    ties = tied_names(live)
    return placement_of(device).resolved(live, ties, blocks_of(inner))


def place(model: nn.Module, device: Device | Mapping[Any, Device] | Placement | None) -> None:
    """Move the parameters and buffers of a model to their devices, in place.

    They stay the same objects, with their gradients and ties, wherever torch allows it: not on the way to the meta
    device. What is on the meta device stays there, for it has no values to move.

    Args:
        model: any module; wrappers are looked through.
        device: as of `placement_of`.

    Raises:
        SelectorError: a selector chooses nothing. The model is untouched.
        LoadError: a device is not here, or a tensor would go to two. The model is untouched.
    """
    _move(unwrapped(model), devices_of(model, device))


def _move(model: nn.Module, devices: Devices) -> None:
    kinds = set(devices.values())
    if len(kinds) == 1 and "meta" not in {device.type for device in kinds}:
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(*kinds))
        return
    values: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}
    made: dict[tuple[object, ...], torch.Tensor] = {}
    for path, module in named_modules(model):
        before = len(values)
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or tensor.is_meta:
                continue
            device, here = devices[f"{path}.{key}" if path else key], identity(tensor)
            if tensor.device == device:
                continue
            if here not in made:
                if here not in values:  # the old memory is held, or another tensor might be given the same place
                    values[here] = (tensor.data, tensor.data.to(device))
                put = _put(tensor, values[here][1])
                if put is tensor:
                    continue
                made[here] = put
            setattr(module, key, made[here])
        if len(values) > before and isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _put(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer with its values on another device: the same object where torch allows, else a new one."""
    gradient = tensor.grad if tensor.is_leaf else None
    if gradient is not None:
        tensor.grad = None
    if torch._has_compatible_shallow_copy_type(tensor, value):
        tensor.data, put = value, tensor
    elif is_lazy(tensor):
        kind: Any = type(tensor)
        put = kind(tensor.requires_grad, value.device, value.dtype)
    else:
        put = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    if gradient is not None:
        put.grad = gradient.to(value.device)
    return put


def apply_plan(
    model: nn.Module,
    plan: LoadPlan,
    tensors: Tensors,
    extra: Mapping[str, Any],
    *,
    devices: Devices | None = None,
    assign: bool = False,
    fresh: Mapping[str, torch.Tensor] | None = None,
) -> tuple[str, ...]:
    """Do what a plan says, and return what to say of it.

    Args:
        model: without wrappers.
        plan: checked.
        tensors, extra: of the source, by name.
        devices: where each parameter and buffer goes first; if None they stay, and those on the meta device that get
            values come to the CPU.
        assign: make parameters of the file instead of copying, where that can be.
        fresh: by first name, values for what is on the meta device and keeps values of the model's own.

    Raises:
        CorruptCheckpointError: a file does not reach as far as it did when it was opened; the model is untouched.
        PartialLoadError: copying failed half way; `.applied` names what was copied.
    """
    places = _places(plan, tensors)
    tensors = _apart(model, plan, tensors)
    if devices is not None:
        _move(model, devices)
    views = _views(model, plan, tensors, places, devices or {}) if assign else {}
    _place(model, plan, devices or {}, views, fresh or {})
    _copy(model, plan, tensors, extra, places, set(views))
    return _about_views(plan, places, views) if assign else ()


def _apart(model: nn.Module, plan: LoadPlan, tensors: Tensors) -> Tensors:
    """The tensors of the source, copied where they lie in memory of the model that is written before they are read."""
    live = live_tensors(model)
    owners: dict[int, set[tuple[object, ...]]] = defaultdict(set)
    for move in plan.moves:
        target = live.get(move.target)
        if target is not None and _is_plain(target) and not target.is_meta:
            owners[target.untyped_storage().data_ptr()].add(identity(target))
    copied = {}
    for move in plan.moves:
        value = tensors.get(move.source)
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta:
            written = owners.get(value.untyped_storage().data_ptr())
            if value.numel() and written and not written == {identity(value)} == {identity(live[move.target])}:
                copied[move.source] = value.detach().clone()
    return {**tensors, **copied} if copied else tensors


def _is_plain(tensor: AnyTensor) -> bool:
    """Whether the memory of a tensor is its values and nothing else, and may be written to by hand."""
    return (
        (type(tensor) is nn.Parameter or type(tensor) is torch.Tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_inference() or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _places(plan: LoadPlan, tensors: Tensors) -> dict[str, Place]:
    """By target, where the bytes lie that can be used as they are. The files are checked to have them still."""
    places: dict[str, Place] = {}
    ends: dict[LocalFile, int] = {}
    for move in plan.moves:
        lazy = tensors.get(move.source)
        as_is = not (move.cast_from or move.adapter)
        if isinstance(lazy, LazyTensor) and as_is and (place := place_of(lazy)) is not None:
            places[move.target] = place
            ends[place.source] = max(ends.get(place.source, 0), place.offset + place.nbytes)
    for source, end in ends.items():
        source.check_still(end)
    return places


def _views(
    model: nn.Module, plan: LoadPlan, tensors: Tensors, places: Mapping[str, Place], devices: Devices
) -> dict[str, torch.Tensor]:
    """By first name, tensors that are views of a private mapping of their file, for all that may become one."""
    live = live_tensors(model)
    neighbours: dict[int, set[str]] = defaultdict(set)
    for name, tensor in live.items():
        if _is_plain(tensor) and tensor.device.type == "cpu":
            neighbours[tensor.untyped_storage().data_ptr()].add(plan.tied.get(name, name))
    chosen: dict[str, tuple[Place, LazyTensor]] = {}
    for move in plan.moves:
        name, place = plan.tied.get(move.target, move.target), places.get(move.target)
        if place is None or name in chosen or not isinstance(place.source, MappedSource):
            continue
        tensor, lazy = live[move.target], tensors[move.source]
        assert isinstance(lazy, LazyTensor)
        if not _is_plain(tensor) or not same_order(lazy, tensor) or place.offset % tensor.dtype.itemsize:
            continue
        alone = tensor.device.type == "cpu" and len(neighbours[tensor.untyped_storage().data_ptr()]) == 1
        if (alone and not tensor.is_shared()) or (tensor.is_meta and devices.get(name, CPU) == CPU):
            chosen[name] = (place, lazy)
    return _mapped(chosen)


def _mapped(chosen: Mapping[str, tuple[Place, LazyTensor]]) -> dict[str, torch.Tensor]:
    """Views of mappings that nothing else has, each of bytes that no other view has."""
    again: dict[LocalFile, MappedSource] = {}
    views: dict[str, torch.Tensor] = {}
    end: dict[LocalFile, int] = {}
    for name, (place, lazy) in sorted(chosen.items(), key=lambda item: item[1][0].offset):
        source = place.source
        if place.offset < end.get(source, 0):
            continue  # one tensor in the file, several in the model: what is written to one is not meant for the other
        end[source] = place.offset + place.nbytes
        if source not in again:
            assert isinstance(source, MappedSource)
            again[source] = source.mapped_again()
        flat = torch.frombuffer(again[source].read(place.offset, place.nbytes), dtype=torch.uint8)
        empty = torch.empty(0, dtype=lazy.dtype, device="cpu")
        views[name] = empty.set_(flat.untyped_storage(), 0, lazy.spec.shape, lazy.stride)
    return views


def _place(
    model: nn.Module,
    plan: LoadPlan,
    devices: Devices,
    views: Mapping[str, torch.Tensor],
    fresh: Mapping[str, torch.Tensor],
) -> None:
    """Give what is on the meta device memory, but only where there are values for it; put in what is a view of a file.

    Tensors that have memory stay the objects they are, so that optimizers and ties hold on to them.
    """
    reached = {plan.tied.get(move.target, move.target) for move in plan.moves}
    made: dict[str, torch.Tensor] = {}
    for path, module in named_modules(model):
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{path}.{key}" if path else key
            name = plan.tied.get(name, name)
            device = devices.get(name, CPU)
            if tensor is None or (name not in reached and name not in fresh) or device.type == "meta":
                continue
            if not tensor.is_meta:
                if name in views:
                    tensor.data = views[name]
                    torch.autograd.graph.increment_version(tensor)
                continue
            if name not in made:
                value = views.get(name, fresh.get(name))
                value = torch.empty_like(tensor, device=device) if value is None else value.to(device)
                parameter = isinstance(tensor, nn.Parameter)
                made[name] = nn.Parameter(value, tensor.requires_grad) if parameter else value
            setattr(module, key, made[name])  # not into its dict: recurrent layers keep a list beside


def _about_views(plan: LoadPlan, places: Mapping[str, Place], views: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    targets = dict.fromkeys(plan.tied.get(move.target, move.target) for move in plan.moves)
    copied = [name for name in targets if name not in views and plan.target[name].nbytes]
    said = []
    if views:
        files = shorten(sorted({places[move.target].source.name for move in plan.moves if move.target in places}))
        size = human_bytes(sum(view.nbytes for view in views.values()))
        said.append(f"{len(views)} tensors ({size}) are views of {files}, which must not be overwritten in place")
    if copied:
        said.append(f"{len(copied)} tensors could not become views of the file and were copied: {shorten(copied)}")
    return tuple(said)


def _copy(
    model: nn.Module,
    plan: LoadPlan,
    tensors: Tensors,
    extra: Mapping[str, Any],
    places: Mapping[str, Place],
    done: set[str],
) -> None:
    """Copy what is not done: by several threads from files where bytes can be used as they are, else one by one."""
    live = live_tensors(model)
    first = {move.target: plan.tied.get(move.target, move.target) for move in plan.moves}
    done |= {first[name] for name in first if name in live and live[name].is_meta}  # as asked, without values
    try:
        _read(_straight(plan, live, tensors, places, done), done)
        with torch.no_grad():
            for move in plan.moves:
                if move.source in extra:
                    set_extra_state(model, move.target, extra[move.source])
                elif first[move.target] not in done:  # of tied tensors the first, which was seen to equal the others
                    live[move.target].copy_(_fitted(plan, move, tensors, live[move.target]))
                done.add(first[move.target])
    except Exception as error:
        applied = tuple(move.target for move in plan.moves if first[move.target] in done)
        raise PartialLoadError(
            f"loading stopped after {len(applied)} of {len(plan.moves)} tensors: {error}",
            applied=applied,
            hint="the model holds old and new values: make it anew before going on",
        ) from error


def _fitted(plan: LoadPlan, move: Move, tensors: Tensors, current: torch.Tensor) -> torch.Tensor:
    """The values for a tensor of the model, made to fit where they do not."""
    value = value_of(tensors[move.source])
    if move.target not in plan.adapters:
        return value
    fitted = plan.adapters[move.target].apply(value.to(current.device), current.detach())
    if fitted.shape != current.shape:  # copy_ would repeat a smaller one
        raise ValueError(f"{move.adapter} made {list(fitted.shape)} of {move.source} for {list(current.shape)}")
    return fitted


def _straight(
    plan: LoadPlan, live: Tensors, tensors: Tensors, places: Mapping[str, Place], done: Iterable[str]
) -> dict[str, tuple[torch.Tensor, Place]]:
    """By first name, the tensors of the model whose memory can be read into: the same bytes, and theirs alone."""
    found: dict[str, tuple[torch.Tensor, Place]] = {}
    skipped = set(done)
    for move in plan.moves:
        name, target, lazy = plan.tied.get(move.target, move.target), live.get(move.target), tensors.get(move.source)
        if move.target not in places or name in found or name in skipped:
            continue
        assert isinstance(target, torch.Tensor) and isinstance(lazy, LazyTensor)
        kind = target.device.type
        if (kind == "cpu" or kind in _LANES) and _is_plain(target) and same_order(lazy, target):
            found[name] = (target, places[move.target])
    last, end = "", 0  # memory that two of them share gets its values in the order of the plan
    for start, name in sorted((target.data_ptr(), name) for name, (target, _) in found.items()):
        stop = start + found[name][1].nbytes
        if start < end:
            found.pop(name)
            found.pop(last, None)
        if stop > end:
            last, end = name, stop
    return found


def _read(found: Mapping[str, tuple[torch.Tensor, Place]], done: set[str]) -> None:
    """Read bytes into the memory of tensors; adds the names of those that have all of theirs to `done`."""
    groups: dict[torch.device, list[str]] = defaultdict(list)
    for name, (target, _) in found.items():
        groups[target.device].append(name)
    for device, names in groups.items():
        finished = bytearray(len(names))
        pairs = [found[name] for name in names]
        try:
            if device.type in _LANES:
                sends = [Sending(source, offset, _flat(target)) for target, (source, offset, _) in pairs]
                send_all(sends, _LANES[device.type](device), finished)
            else:
                fill([Job(source, offset, bytes_of(target)) for target, (source, offset, _) in pairs], finished)
        finally:
            done.update(name for name, whole in zip(names, finished, strict=True) if whole)
            torch.autograd.graph.increment_version([target for target, _ in pairs])  # as copy_ does


def _flat(target: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as bytes in a row."""
    flat = torch.empty(0, dtype=torch.uint8, device=target.device)
    return flat.set_(target.untyped_storage(), target.storage_offset() * target.dtype.itemsize, (target.nbytes,), (1,))
