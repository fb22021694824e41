"""The story of rebuilding: open, read the blueprint, make the modules, fill in the values, and say what was done."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..core.blueprint import Blueprint
from ..core.checkpoint import Checkpoint
from ..core.live import state_of
from ..core.model_plan import ClassPlan, ModelPlan
from ..core.table import shorten
from ..core.tensors import LazyTensor, contiguous_stride
from ..core.tree import ABSENT
from ..errors import OpenError, PartialLoadError, RebuildError, RebuildWarning
from ..loading import load_into
from ..pointing import checkpoint_of
from .classes import Classes
from .hooks import hooks_of, told
from .making import Maker
from .reading import blueprint_of, named_in

SCRIPTS = {"torchscript", "torchscript_old"}

Source = str | os.PathLike[str] | Checkpoint


def load_model(
    source: Source,
    *,
    classes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    device: torch.device | str | None = None,
    trust_graph: bool = False,
) -> nn.Module:
    """Make the whole model that a file holds: from what `tk.save(model, path)` wrote, or from a pickle of any torch.

    >>> model = tk.load_model("flowers.safetensors", classes={"train.Net": Net})    # doctest: +SKIP

    Layers of torch.nn need nothing. A class is looked up only where the caller names it or trusts its package; modules
    of any other become skeletons, with the right children, parameters, flags and state, whose forward says which class
    is missing. Nothing else that the file names is imported or called; hooks are left out and reported.

    Args:
        source: a file, or an opened Checkpoint; of a training checkpoint, the model in it.
        classes: name in the file, e.g. `old.package.Net` -> the class that it is now.
        trust: packages and modules whose classes and functions may be imported by their names: `["mypackage."]`.
        device: where to put it; the CPU if None.
        trust_graph: where the class of the model is not here, run the program that was saved beside it.

    Returns:
        The model, with the modes, flags and tied tensors of the file.

    Raises:
        OpenError: the file cannot be read.
        RebuildError: it holds no model, or a class does not take what the file has for it.
        IncompatibleCheckpointError: the classes make a model that the weights do not fit.
    """
    ckpt = checkpoint_of(source).model
    known = Classes(classes, trust)
    blueprint = _no_script(ckpt)
    known.check_given(named_in(blueprint), blueprint.file)
    places = _Places(ckpt, device)
    maker = Maker(blueprint, known, places.tensor)
    model = maker.model()
    if blueprint.places:
        _load_own(model, ckpt, places)
    else:
        load_into(model, ckpt)
    _warn(blueprint, maker)
    return model


def plan_model(source: Source, *, classes: Mapping[str, Any] | None = None, trust: Sequence[str] = ()) -> ModelPlan:
    """What `load_model` would make of each class, without making anything: `print(tk.plan_model("old.pth"))`.

    Args and errors are those of `load_model`.
    """
    blueprint = _no_script(checkpoint_of(source).model)
    known = Classes(classes, trust)
    known.check_given(named_in(blueprint), blueprint.file)
    counts = Counter(part.class_name for part in blueprint.parts)
    sources = {part.class_name: part.source for part in blueprint.parts}
    rows = [ClassPlan(name, count, known.how(name), sources[name]) for name, count in counts.items()]
    return ModelPlan(blueprint.file, tuple(rows), (*_made_anew(blueprint), *left_out(blueprint)))


def _no_script(ckpt: Checkpoint) -> Blueprint:
    """The blueprint of a checkpoint, where that is no program."""
    if ckpt.format in SCRIPTS:
        raise RebuildError(
            f"{ckpt.file} is a TorchScript program, whose modules have no classes to make them of",
            hint="torch.jit.load runs it; tk.load_into(model, path) puts its weights into your own model, and "
            "torchkeep rescue writes them out, with the text of the program",
        )
    return blueprint_of(ckpt)


class _Places:
    """Live tensors for the lazy ones of a file, one for each: without values where a state dict will bring them."""

    def __init__(self, ckpt: Checkpoint, device: torch.device | str | None) -> None:
        self.device = torch.device("cpu" if device is None else device)
        self._state = {tensor.identity for tensor in ckpt.values()}
        self._memory: dict[tuple[object, ...], torch.Tensor] = {}
        self._made: dict[tuple[object, ...], torch.Tensor] = {}
        self._lazy: dict[int, LazyTensor] = {}
        self._empty: dict[tuple[object, ...], LazyTensor] = {}

    def tensor(self, lazy: LazyTensor, name: str) -> torch.Tensor:
        """The live tensor; `name` is empty where it is no parameter or buffer."""
        key = (*lazy.identity, lazy.kind, lazy.requires_grad)
        if key not in self._made:
            self._made[key] = self._make(lazy)
            self._lazy[id(self._made[key])] = lazy
        return self._made[key]

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


def _load_own(model: nn.Module, ckpt: Checkpoint, places: _Places) -> None:
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


def _dense(lazy: LazyTensor) -> tuple[int, ...]:
    """Its strides, where they are those of some order of its dimensions without gaps; else row by row."""
    expected = 1
    for size, stride in sorted(zip(lazy.spec.shape, lazy.stride, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1 and stride != expected:
            return contiguous_stride(lazy.spec.shape)
        expected *= size
    return tuple(lazy.stride)


def left_out(blueprint: Blueprint) -> tuple[str, ...]:
    """What of the model is not made again, whatever classes there are."""
    hooks = [text for part in blueprint.parts for text in told(part)]
    notes = [f"{len(hooks)} hooks are left out, for they are not run: {shorten(hooks)}"] if hooks else []
    return (*notes, *blueprint.lost)


def _made_anew(blueprint: Blueprint) -> tuple[str, ...]:
    """The hooks of torch.nn that a model gets again."""
    places = [part.path or "the model" for part in blueprint.parts if hooks_of(part).known]
    return (f"{len(places)} modules compute a weight by torch.nn.utils, as ever: {shorten(places)}",) if places else ()


def _warn(blueprint: Blueprint, maker: Maker) -> None:
    """Say what is not as it was."""
    notes = list(left_out(blueprint))
    if maker.unknown:
        names = sorted(set(maker.unknown.values()))
        notes.append(
            f"{len(maker.unknown)} modules are skeletons, which cannot compute, for want of {shorten(names)}: pass "
            f"classes={{{names[0]!r}: YourClass}}, or trust=[...] the package that has it"
        )
    if maker.inert:
        what = [f"{place} ({name})" for place, name in maker.inert.items()]
        notes.append(f"{len(what)} attributes are left as inert records: {shorten(what)}")
    if maker.hidden:
        what = [f"{place} ({name})" for place, name in maker.hidden.items()]
        notes.append(f"{len(what)} attributes that stood before a method of the class are left out: {shorten(what)}")
    for note in notes:
        warnings.warn(f"{blueprint.file}: {note}", RebuildWarning, stacklevel=3)
