"""Where values come from: files, runs, checkpoints, state dicts and modules, one of them or one for each module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..core import tree as trees
from ..core.checkpoint import Checkpoint
from ..core.freezespec import Frozen
from ..core.live import AnyTensor, is_extra_state, named_modules, spec_of, state_of, unwrapped
from ..core.names import is_under, nearest, with_parents
from ..core.snapshot import Snapshot
from ..core.table import shorten
from ..core.tensors import LazyTensor, TensorSpec
from ..edit.flat import extra_state_of
from ..errors import LoadError, SelectorError
from ..pointing import checkpoint_of
from ..running import Run

# Stands in a plan for what is no tensor: the extra state of a module, which has a name and no elements.
EXTRA = TensorSpec(torch.uint8, (0,))


@dataclass(frozen=True)
class Part:
    """One source, and the module of the model that it is for.

    Attributes:
        title: what to call it.
        tensors, extra: tensors and extra state by name.
        frozen: how the model in it was frozen.
        path: of the module; empty for the whole model.
        prefix: what was taken off the names in the file, with a dot at the end.
        checkpoint: the opened file.
        notes: what the caller should know of the choice.
    """

    title: str
    tensors: Mapping[str, AnyTensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    frozen: Frozen = field(default_factory=Frozen)
    path: str = ""
    prefix: str = ""
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """dtype and shape of all of it, by its own names."""
        return {name: spec_of(tensor) for name, tensor in self.tensors.items()} | dict.fromkeys(self.extra, EXTRA)

    def known_digest(self, name: str) -> str:
        """The digest that the file has for a tensor, or an empty text."""
        facts = None if self.checkpoint is None else self.checkpoint.facts
        if facts is None:
            return ""
        stored = self.prefix + name
        return str(facts.digests.get(facts.tied.get(stored, stored), ""))


@dataclass(frozen=True)
class Weights:
    """All that values come from. Names are as the model would have them: below the module that a part is for."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def title(self) -> str:
        """What to call the whole."""
        if len(self.parts) == 1 and not self.parts[0].path:
            return self.parts[0].title
        return ", ".join(f"{part.path or 'the model'} from {part.title}" for part in self.parts)

    @cached_property
    def tensors(self) -> dict[str, AnyTensor]:
        """Every tensor."""
        return {joined(part.path, name): tensor for part in self.parts for name, tensor in part.tensors.items()}

    @cached_property
    def extra(self) -> dict[str, Any]:
        """All extra state."""
        return {joined(part.path, name): value for part in self.parts for name, value in part.extra.items()}

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """dtype and shape of all of it."""
        return {joined(part.path, name): spec for part in self.parts for name, spec in part.specs.items()}

    @property
    def frozen(self) -> Frozen:
        """How the whole model was frozen, where it comes from one source."""
        return self.parts[0].frozen if len(self.parts) == 1 and not self.parts[0].path else Frozen()

    def part_of(self, name: str) -> tuple[Part, str]:
        """The part that has a name, and the name there."""
        for part in self.parts:
            own = name[len(part.path) + 1 :] if part.path else name
            if is_under(name, part.path) and (own in part.tensors or own in part.extra):
                return part, own
        raise KeyError(name)


def joined(path: str, name: str) -> str:
    """A name below a path."""
    return f"{path}.{name}" if path else name


def weights_of(source: Any, model: nn.Module) -> Weights:
    """Open whatever a caller gives.

    Raises:
        LoadError: there are no weights in it.
        SelectorError: the model has no module of that path.
    """
    paths = [path for path, _ in named_modules(model)]
    if _is_combination(source, paths):
        return _combined(source, paths)
    part = _part_of(source)
    return Weights((part,), part.notes)


def _is_combination(source: Any, paths: Iterable[str]) -> bool:
    """Whether a dict says where each module comes from; one of tensors is a state dict."""
    if not isinstance(source, Mapping) or isinstance(source, Checkpoint) or not source:
        return False
    if any(not isinstance(key, str) or is_extra_state(key) for key in source):
        return False
    if any(isinstance(value, (torch.Tensor, LazyTensor)) for value in source.values()):
        return False
    if all(isinstance(value, Mapping) and not isinstance(value, Checkpoint) for value in source.values()):
        return set(source) <= set(paths)
    kinds = (str, os.PathLike, Mapping, nn.Module, Run, Snapshot, tuple)
    return all(isinstance(value, kinds) for value in source.values())


def _combined(source: Mapping[str, Any], paths: list[str]) -> Weights:
    for path in source:
        if path not in paths:
            close = nearest(path, paths)
            hint = f"the nearest are {', '.join(map(repr, close))}" if close else "the keys are paths of modules"
            raise SelectorError(f"the model has no module {path!r} to load into", hint=hint)
    opened: dict[str, Checkpoint] = {}
    parts, notes = [], []
    for path, given in source.items():
        part = replace(_part_of(_opened_once(given, opened)), path=path)
        inner = [one for one in source if one != path and is_under(one, path)]
        below = {name for name in part.specs if any(is_under(joined(path, name), one) for one in inner)}
        if below:
            notes.append(
                f"{len(below)} tensors of {part.title} are not taken: {shorten(inner)} has a source of its own"
            )
            part = replace(
                part,
                tensors={name: tensor for name, tensor in part.tensors.items() if name not in below},
                extra={name: value for name, value in part.extra.items() if name not in below},
            )
        parts.append(part)
    return Weights(tuple(parts), (*notes, *dict.fromkeys(note for part in parts for note in part.notes)))


def _opened_once(given: Any, opened: dict[str, Checkpoint]) -> Any:
    """The source with its file opened, each file once."""
    pair = isinstance(given, tuple) and len(given) == 2
    inner = given[0] if pair else given
    if isinstance(inner, (str, os.PathLike)):
        key = str(os.fspath(inner))
        if key not in opened:
            opened[key] = checkpoint_of(inner)
        inner = opened[key]
    return (inner, given[1]) if pair else inner


def _part_of(source: Any) -> Part:
    if isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[1], str):
            raise LoadError(
                f"{source!r} is no pair of a source and the prefix in it", hint="write ('b.pth', 'decoder')"
            )
        return _below(_part_of(source[0]), source[1].rstrip("."))
    if isinstance(source, (str, os.PathLike, Run, Snapshot)):
        source = checkpoint_of(source)
    if isinstance(source, Checkpoint):
        part = _of_checkpoint(source)
    elif isinstance(source, nn.Module):
        part = Part(f"a {type(unwrapped(source)).__name__}", *state_of(source))
    elif isinstance(source, Mapping):
        part = _of_state_dict(source)
    else:
        raise LoadError(
            f"weights cannot be taken from a {type(source).__name__}",
            hint="pass a path, a Checkpoint, a state dict or a module",
        )
    if not part.tensors and not part.extra:
        raise LoadError(f"there are no weights in {part.title}", hint="print(tk.open(path)) shows what is in a file")
    _check_values(part)
    return part


def _check_values(part: Part) -> None:
    for name, tensor in part.tensors.items():
        plain = isinstance(tensor, LazyTensor) or (tensor.layout is torch.strided and not tensor.is_quantized)
        if not plain or str(tensor.device) == "meta":
            what = "is on the meta device and has no values" if plain else "is sparse or quantized"
            raise LoadError(f"{name!r} of {part.title} {what}", hint="load it where it has dense values")


def _below(part: Part, prefix: str) -> Part:
    """The part of a source below a name."""
    lead = f"{prefix}."
    ckpt = part.checkpoint
    if ckpt is not None and not any(name.startswith(lead) for name in part.specs):  # it lies beside the model
        part = replace(part, tensors=dict(ckpt), extra={}, prefix="")
    tensors = {name.removeprefix(lead): tensor for name, tensor in part.tensors.items() if name.startswith(lead)}
    extra = {name.removeprefix(lead): value for name, value in part.extra.items() if name.startswith(lead)}
    if not tensors and not extra:
        close = nearest(prefix, with_parents(name.rpartition(".")[0] for name in part.specs))
        hint = f"the nearest are {', '.join(map(repr, close))}" if close else "print(tk.open(path)) shows its names"
        raise SelectorError(f"{part.title} has nothing below {prefix!r}", hint=hint)
    title = f"{part.title}, {prefix}"
    below = replace(
        part, title=title, tensors=tensors, extra=extra, prefix=part.prefix + lead, frozen=Frozen(), notes=()
    )
    _check_values(below)
    return below


def _of_checkpoint(ckpt: Checkpoint) -> Part:
    """The model's weights, and its extra state: beside them in a state dict, or in the facts of a saved model."""
    model = ckpt.model
    tensors: dict[str, AnyTensor] = {name: lazy for name, lazy in model.items() if not is_extra_state(name)}
    extra = {name: _own(value) for name, value in extra_state_of(model).items()}
    inside = tuple(f"{name}." for name in extra)
    tensors = {name: lazy for name, lazy in tensors.items() if not (inside and name.startswith(inside))}
    prefix = f"{ckpt.model_key}." if ckpt.model_key else ""
    others = [key for key in ckpt.candidates if key != ckpt.model_key]
    notes = (
        (f"{ckpt.model_key!r} of {ckpt.file} was taken; (source, {others[0]!r}) takes {shorten(others)}",)
        if others
        else ()
    )
    return Part(str(ckpt.file), tensors, extra, model.frozen, prefix=prefix, checkpoint=ckpt, notes=notes)


def _own(value: Any) -> Any:
    """A value of a checkpoint with tensors of its own in it."""
    return trees.rebuild(value, lambda lazy: lazy.load().clone())


def _of_state_dict(state: Mapping[Any, Any]) -> Part:
    extra = {name: value for name, value in state.items() if isinstance(name, str) and is_extra_state(name)}
    tensors = {name: value for name, value in state.items() if name not in extra}
    odd = [str(key) for key, value in tensors.items() if not isinstance(value, (torch.Tensor, LazyTensor))]
    if odd:
        raise LoadError(
            f"the dict holds values that are no tensors: {shorten(odd, 4)}",
            hint="pass the state dict inside it, such as checkpoint['state_dict'], or its path: tk.load_into finds it",
        )
    return Part("a state dict", tensors, extra)
