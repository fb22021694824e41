"""The story of rebuilding: open, read the blueprint, make the modules, fill in the values, and say what was done."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..applying import place
from ..core.blueprint import Blueprint
from ..core.checkpoint import EDITED, Checkpoint
from ..core.live import named_modules
from ..core.model_plan import ClassPlan, ModelPlan
from ..core.placement import Device, Placement, placement_of
from ..core.table import printable, shorten
from ..errors import RebuildError, RebuildWarning
from ..exporting.graph import load_graph
from ..freezing import restore_held
from ..freezing.state import attach
from ..pointing import checkpoint_of
from ..recording import changed_methods, code_of
from ..surgery.recording import forget, record
from .classes import Classes
from .hooks import hooks_of, told
from .making import Maker
from .reading import blueprint_of, named_in
from .values import Places, fill, load_own

SCRIPTS = {"torchscript", "torchscript_old"}

Source = str | os.PathLike[str] | Checkpoint


def load_model(
    source: Source,
    *,
    classes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    device: Device | Mapping[Any, Device] | Placement | None = None,
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
        classes: name in the file, e.g. `old.package.Net` -> the class that it is now; or a package that was moved ->
            the package that it is now, `{"old.package.": "new.package."}`, which is then trusted.
        trust: packages and modules whose classes and functions may be imported by their names, and called as the file
            says: `["mypackage."]`.
        device: where to put it; the CPU if None. On `meta` it has no values. Or selectors and the devices of what they
            choose, `{"encoder.*": "cuda:0", "decoder.*": "cuda:1"}`, as `tk.load_into` takes them.
        trust_graph: where the class of the model is not here, run the program that was saved beside it. torch evaluates
            text from that file as Python: only for files whose writer you trust.
        allow: selectors of names that the classes make and the file lacks; they keep what the constructor gave them.

    Returns:
        The model, with the modes, flags, tied tensors and freeze state of the file. A RebuildWarning says what is not
        as it was, and which classes compute something else than when it was saved.

    Raises:
        OpenError: the file cannot be read.
        LoadError: a device is not here.
        RebuildError: it holds no model, or a class does not take what the file has for it.
        IncompatibleCheckpointError: the classes make a model that the weights do not fit.
    """
    opened = checkpoint_of(source)
    ckpt = opened.model
    known = Classes(classes, trust)
    blueprint = _no_script(ckpt)
    known.check_given(named_in(blueprint), blueprint.file)
    placement = placement_of(device)
    if trust_graph and not _is_here(blueprint, known):
        return _from_graph(ckpt, placement)
    one = None if device is None or placement.rows else placement.rest
    places = Places(ckpt, one)
    maker = Maker(blueprint, known, places.tensor)
    with torch.random.fork_rng(devices=[]):  # constructors draw numbers that are then replaced
        model = maker.model()
    if one is not None:
        places.move(model)
    if blueprint.places:
        load_own(model, ckpt, places)
    elif places.device.type != "meta":
        fill(model, ckpt, allow)
    if placement.rows:
        place(model, placement)
    _as_saved(model, ckpt)
    _warn(blueprint, maker, maker.hooked(), _others(opened))
    return model


def _is_here(blueprint: Blueprint, known: Classes) -> bool:
    """Whether the whole model can be made without its graph: by its factory, or of the classes of all its modules."""
    if known.find_factory(blueprint.factory) is not None:
        return True
    return all(known.find_class(name) is not None for name in blueprint.class_names)


def _from_graph(ckpt: Checkpoint, placement: Placement) -> nn.Module:
    if ckpt.format == EDITED:
        raise RebuildError(
            f"{ckpt.file} was edited, and the graph beside it is of what it was",
            hint="give the class; or make the model of the file, and load the edited weights into it",
        )
    if not placement.rows:
        return load_graph(ckpt.file, device=placement.rest)
    model = load_graph(ckpt.file)
    place(model, placement)
    return model


def _as_saved(model: nn.Module, ckpt: Checkpoint) -> None:
    """What torchkeep keeps with a model: which modules it holds in eval mode, its freeze spec, and its surgery."""
    if ckpt.architecture is None:
        return
    restore_held(model, ckpt.frozen.held)
    attach(model, ckpt.frozen.state)
    forget(module for _, module in named_modules(model))
    for operation in ckpt.surgery:
        record(model, operation)


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


def left_out(blueprint: Blueprint, made: Collection[str] = (), hooked: Collection[str] = ()) -> tuple[str, ...]:
    """What of the model is not made again, whatever classes there are.

    Args:
        blueprint: of the model.
        made: places of what constructors made anew.
        hooked: paths of the modules that have the hooks that they had.
    """
    hooks = [text for part in blueprint.parts if part.path not in hooked for text in told(part)]
    lost = [f"{place} {why}" for place, why in blueprint.lost.items() if place not in made]
    notes = [f"{len(hooks)} hooks are left out, for they are not run: {shorten(hooks)}"] if hooks else []
    notes += [f"what the file does not have: {shorten(lost)}"] if lost else []
    return tuple(notes)


def _made_anew(blueprint: Blueprint) -> tuple[str, ...]:
    """The hooks of torch.nn that a model gets again."""
    places = [part.path or "the model" for part in blueprint.parts if hooks_of(part).known]
    return (f"{len(places)} modules compute a weight by torch.nn.utils, as ever: {shorten(places)}",) if places else ()


def _others(ckpt: Checkpoint) -> Iterator[str]:
    """That one of several models was taken."""
    others = [key for key in ckpt.candidates if key != ckpt.model_key]
    if others:
        yield (
            f"{ckpt.model_key!r} was taken; of {shorten(others)}, tk.load_into(model, (source, {others[0]!r})) takes "
            "the weights"
        )


def _warn(blueprint: Blueprint, maker: Maker, hooked: Collection[str], more: Iterable[str]) -> None:
    """Say what is not as it was."""
    notes = [*more, *left_out(blueprint, maker.constructed, hooked), *maker.notes, *_changes(blueprint, maker)]
    if maker.unknown:
        names = sorted(set(maker.unknown.values()))
        given = shorten([f"{name!r}: YourClass" for name in names])
        factory = f", or trust=[...] the package of its factory {blueprint.factory}" if blueprint.factory else ""
        notes.append(
            f"skeletons, which cannot compute, for want of {shorten(names)} "
            f"({len(maker.unknown)} of {len(blueprint.parts)} modules): pass "
            f"classes={{{given}}}, or trust=[...] the package that has {'it' if len(names) == 1 else 'them'}{factory}"
        )
    if maker.inert:
        what = [f"{place} ({name})" for place, name in maker.inert.items()]
        notes.append(f"{len(what)} attributes are left as inert records: {shorten(what)}")
    if maker.hidden:
        what = [f"{place} ({name})" for place, name in maker.hidden.items()]
        notes.append(f"{len(what)} attributes that stood before a method of the class are left out: {shorten(what)}")
    for note in notes:
        warnings.warn(printable(f"{blueprint.file}: {note}"), RebuildWarning, stacklevel=3)


def _changes(blueprint: Blueprint, maker: Maker) -> Iterator[str]:
    """Classes whose code is another than when the file was written."""
    codes = {part.class_name: part.code for part in blueprint.parts if part.code}
    for name, code in codes.items():
        now = maker.live.get(name)
        changed = changed_methods(code, code_of(now)) if now is not None else {}
        if changed:
            what = [f"{method} was {before} and is {after}" for method, (before, after) in changed.items()]
            yield f"the code of {name} is another than when the file was written, and may compute something else: " + (
                shorten(what)
            )
