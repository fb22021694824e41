"""The story of rebuilding: open, read the blueprint, make the modules, fill in the values, and say what was done."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.blueprint import Blueprint
from ..core.checkpoint import Checkpoint
from ..core.facts import FileFacts
from ..core.live import live_tensors
from ..core.model_plan import ClassPlan, ModelPlan
from ..core.table import shorten
from ..core.tensors import LazyTensor, contiguous_stride
from ..errors import RebuildWarning
from ..freezing import restore_held
from ..freezing.state import attach
from ..loading import load_into
from ..pointing import checkpoint_of
from ..recording import changed_methods, code_of
from ..surgery.recording import forget, record
from .classes import Classes
from .making import Maker
from .reading import blueprint_of, named_in

Source = str | os.PathLike[str] | Checkpoint


def load_model(
    source: Source,
    *,
    classes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    device: torch.device | str | None = None,
    trust_graph: bool = False,
    allow: Any = None,
) -> nn.Module:
    """Make the whole model that a file holds: from what `tk.save(model, path)` wrote, or from a pickle of any torch.

    >>> model = tk.load_model("flowers.safetensors", classes={"train.Net": Net})    # doctest: +SKIP

    Layers of torch.nn need nothing. A class is looked up only where the caller names it or trusts its package: it is
    constructed as it was where that was recorded (`tk.recorded`, `tk.save(..., factory=)`), else made as unpickling
    makes it. Modules of any other class become skeletons, with the right children, parameters, flags and state, whose
    forward says which class is missing. Nothing else that the file names is imported or called; hooks are left out and
    reported.

    Args:
        source: a file, or an opened Checkpoint; of a training checkpoint, the model in it.
        classes: name in the file, e.g. `old.package.Net` -> the class that it is now.
        trust: packages and modules whose classes and functions may be imported by their names, and called as the file
            says: `["mypackage."]`.
        device: where to put it; the CPU if None. On `meta` it has no values.
        trust_graph: where the class of the model is not here, run the program that was saved beside it.
        allow: selectors of names that the classes make and the file lacks; they keep what the constructor gave them.

    Returns:
        The model, with the modes, flags, tied tensors and freeze state of the file. A RebuildWarning says what is not
        as it was, and which classes compute something else than when it was saved.

    Raises:
        OpenError: the file cannot be read.
        RebuildError: it holds no model, or a class does not take what the file has for it.
        IncompatibleCheckpointError: the classes make a model that the weights do not fit.
    """
    ckpt = checkpoint_of(source).model
    known = Classes(classes, trust)
    blueprint = blueprint_of(ckpt)
    known.check_given(named_in(blueprint), blueprint.file)
    places = _Places(ckpt, device)
    maker = Maker(blueprint, known, places.tensor)
    with torch.random.fork_rng(devices=[]):  # constructors draw numbers that are then replaced
        model = maker.model()
    if device is not None:
        places.move(model)
    if device is None or torch.device(device).type != "meta":
        _fill(model, ckpt, allow)
    _as_saved(model, ckpt)
    _warn(blueprint, maker, maker.normed())
    return model


def _fill(model: nn.Module, ckpt: Checkpoint, allow: Any) -> None:
    """Load the values, as far as there are any: a tensor that was on the meta device stays there."""
    if any(tensor.device == "meta" for tensor in ckpt.values()):
        live = live_tensors(model)
        for name, tensor in ckpt.items():
            if tensor.device != "meta" and name in live:
                live[name].detach().copy_(tensor.load())
    elif ckpt or model.state_dict():
        load_into(model, ckpt, allow=allow, freeze=False)


def _as_saved(model: nn.Module, ckpt: Checkpoint) -> None:
    """What torchkeep keeps with a model: which modules it holds in eval mode, its freeze spec, and its surgery."""
    if ckpt.architecture is None:
        return
    restore_held(model, ckpt.frozen.held)
    attach(model, ckpt.frozen.state)
    forget(model.modules())
    for operation in ckpt.surgery:
        record(model, operation)


def plan_model(source: Source, *, classes: Mapping[str, Any] | None = None, trust: Sequence[str] = ()) -> ModelPlan:
    """What `load_model` would make of each class, without making anything: `print(tk.plan_model("old.pth"))`.

    Args and errors are those of `load_model`.
    """
    blueprint = blueprint_of(checkpoint_of(source).model)
    known = Classes(classes, trust)
    known.check_given(named_in(blueprint), blueprint.file)
    counts = Counter(part.class_name for part in blueprint.parts)
    sources = {part.class_name: part.source for part in blueprint.parts}
    rows = [ClassPlan(name, count, known.how(name), sources[name]) for name, count in counts.items()]
    return ModelPlan(blueprint.file, tuple(rows), _left_out(blueprint))


class _Places:
    """Live tensors for the lazy ones of a file, one for each: without values where a state dict will bring them."""

    def __init__(self, ckpt: Checkpoint, device: torch.device | str | None) -> None:
        self._device = torch.device("cpu" if device is None else device)
        self._state = {tensor.identity for tensor in ckpt.values()}
        self._made: dict[tuple[object, ...], torch.Tensor] = {}
        self._tied = ckpt.facts.tied if isinstance(ckpt.facts, FileFacts) else {}

    def tensor(self, lazy: LazyTensor, name: str) -> torch.Tensor:
        """The live tensor; `name` is empty where it is no parameter or buffer."""
        key = (*lazy.identity, lazy.kind)
        if name and (lazy.storage is None or not lazy.numel()):  # nothing but its name tells it from others
            key = (self._tied.get(name, name), lazy.kind)
        if key not in self._made:
            self._made[key] = self._make(lazy)
        return self._made[key]

    def move(self, model: nn.Module) -> None:
        """Move what constructors made beyond the file to the device as well."""
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    if tensor is not None and tensor.device.type not in {"meta", self._device.type}:
                        moved = tensor.detach().to(self._device)
                        same = isinstance(tensor, nn.Parameter)
                        held[key] = nn.Parameter(moved, tensor.requires_grad) if same else moved  # type: ignore[assignment]

    def _make(self, lazy: LazyTensor) -> torch.Tensor:
        device = torch.device("meta") if lazy.device == "meta" else self._device
        if lazy.identity in self._state and not lazy.parts:
            made = torch.empty_strided(lazy.spec.shape, _dense(lazy), dtype=lazy.spec.dtype, device=device)
        else:
            made = lazy.load(device)
        if lazy.kind == "parameter":
            return nn.Parameter(made, requires_grad=lazy.requires_grad)
        return made.requires_grad_() if lazy.requires_grad else made


def _dense(lazy: LazyTensor) -> tuple[int, ...]:
    """Its strides, where they are those of some order of its dimensions without gaps; else row by row."""
    expected = 1
    for size, stride in sorted(zip(lazy.spec.shape, lazy.stride, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1 and stride != expected:
            return contiguous_stride(lazy.spec.shape)
        expected *= size
    return tuple(lazy.stride)


def _left_out(blueprint: Blueprint, made: Collection[str] = (), hooked: Collection[str] = ()) -> tuple[str, ...]:
    """What of the model is not made again, whatever classes there are.

    Args:
        blueprint: of the model.
        made: places of what constructors made anew.
        hooked: paths of the modules that have the hooks that they had.
    """
    without = [part for part in blueprint.parts if part.path not in hooked]
    hooks = [f"{part.path or 'the model'}: {kind}" for part in without for kind in part.hooks]
    lost = [f"{place} {why}" for place, why in blueprint.lost.items() if place not in made]
    notes = [f"{len(hooks)} modules had hooks, which are not run: {shorten(hooks)}"] if hooks else []
    notes += [f"{len(lost)} things of the model were not kept when it was saved: {shorten(lost)}"] if lost else []
    return tuple(notes)


def _warn(blueprint: Blueprint, maker: Maker, hooked: Collection[str]) -> None:
    """Say what is not as it was."""
    notes = [*_left_out(blueprint, maker.constructed, hooked), *maker.notes, *_changes(blueprint, maker)]
    if maker.unknown:
        names = sorted(set(maker.unknown.values()))
        factory = f", or trust=[...] the package of its factory {blueprint.factory}" if blueprint.factory else ""
        notes.append(
            f"{len(maker.unknown)} modules are skeletons, which cannot compute, for want of {shorten(names)}: pass "
            f"classes={{{names[0]!r}: YourClass}}, or trust=[...] the package that has it{factory}"
        )
    if maker.inert:
        what = [f"{place} ({name})" for place, name in maker.inert.items()]
        notes.append(f"{len(what)} attributes are left as inert records: {shorten(what)}")
    for note in notes:
        warnings.warn(f"{blueprint.file}: {note}", RebuildWarning, stacklevel=3)


def _changes(blueprint: Blueprint, maker: Maker) -> Iterator[str]:
    """Classes whose code is another than when the file was written."""
    codes = {part.class_name: part.code for part in blueprint.parts if part.code}
    for name, code in codes.items():
        now = maker.live.get(name)
        changed = changed_methods(code, code_of(now)) if now is not None else {}
        if changed:
            what = [f"{method} was {before} and is {after}" for method, (before, after) in changed.items()]
            yield f"{name} computes something else than when the file was written: {shorten(what)}"
