"""From a live model to what its file says of it: kinds of modules, what they hold, and what cannot be kept."""

from __future__ import annotations

import base64
import marshal
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import torch
from blake3 import blake3
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..core import tagged
from ..core.architecture import Architecture, ClassEntry, HeldTensor, Kind
from ..core.live import (
    STANDS_FOR,
    check_savable,
    class_name,
    class_of,
    identity,
    is_parametrized,
    unwrapped,
)
from ..core.memory import tensor_bytes
from ..core.table import human_bytes, shorten
from ..core.tensors import LazyTensor, dtype_name
from ..core.tree import Global, Record
from ..errors import UnsavableError
from ..freezing import is_held
from .code import code_of
from .constructing import CONSTRUCTION
from .factories import Factory
from .inert import Inert, Unsayable, shared_in

# What every module has, and torch's own way of keeping what else it holds.
_BOOKS = frozenset({*nn.Module().__dict__, "_is_full_backward_hook", "_compiled_call_impl"})
_OURS = "_torchkeep_"
_GRAPHS = "torch.export._unlift"
"""Where the modules of torch are that a graph made; their forward is part of the graph."""
_DERIVED = frozenset({"_flat_weights", "_flat_weight_refs"})  # of recurrent layers, made from their parameters
_ROOM = 1 << 20  # bytes of all tensors outside of the state dict, compressed
_PROBE = 1 << 16  # bytes that tell how well the others can be compressed
_LONG = 4096  # members of a plain value that is told at a glance
_WORDS = 1 << 22  # bytes of all other plain values as JSON
_MOST = 1 << 26  # bytes of one such tensor before it is compressed
_NORMS = (WeightNorm, SpectralNorm)
_NORMING = frozenset(f"torch.nn.utils.{name}" for name in ("weight_norm", "spectral_norm", "parametrizations"))
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes})
_SAME = frozenset({type(None), bool})  # as JSON
_TEXTS = frozenset({str, bytes})
_NUMBERS = _SIMPLE - _TEXTS
_ROWS = frozenset({tuple, list})
_SIMPLE_ROWS = _SIMPLE | _ROWS

Json = Any


@dataclass(frozen=True)
class Recorded:
    """What a file says of a model beside its tensors, and what is to be reported of it."""

    architecture: Architecture
    notes: tuple[str, ...]


def architecture_of(model: nn.Module, state: Mapping[str, torch.Tensor], factory: Factory | None = None) -> Recorded:
    """What it takes to make a model again.

    Nothing of the model is called. What a file cannot hold, such as lambdas and open files, is left out and noted.

    Args:
        model: any module; wrappers are looked through.
        state: the tensors that are kept beside, by name.
        factory: makes the model.
    """
    return _Architect(unwrapped(model), state).recorded(factory)


class _Architect:
    def __init__(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state
        self._first: list[tuple[str, nn.Module]] = []
        self._numbers: dict[int, int] = {}
        self._lost: dict[str, str] = {}
        self._order: list[int | None] = []  # None for a module that is met for the first time
        self._walk(model, "")
        self._attributes = [_attributes(module) for _, module in self._first]
        odd = [[value for value in one.values() if not _is_plain(value)] for one in self._attributes]
        self._odd = [bool(values) for values in odd]
        self._values = _Values(state)
        self._inert = Inert(self._number, self._values.leaf, shared_in(value for values in odd for value in values))
        self._classes: dict[tuple[type, str], int] = {}
        self._entries: list[ClassEntry] = []
        self._known: dict[object, int] = {}
        self._firsts: dict[int, Kind] = {}
        self._kinds: list[Kind] = []
        self._held: dict[str, int] = {}
        self._hooked: list[str] = []
        self._words = _WORDS

    def _walk(self, model: nn.Module, path: str) -> None:
        module = unwrapped(model)
        number = self._numbers.setdefault(id(module), len(self._first))
        if number < len(self._first):
            self._order.append(-1 - number)
            return
        self._first.append((path, module))
        self._order.append(None)
        if isinstance(module, torch.jit.ScriptModule) and not self._lost:
            self._lost[path or "the model"] = "is scripted; torch.jit.save keeps what it computes"
        for key, child in module._modules.items():
            if child is not None:
                self._walk(child, f"{path}.{key}" if path else key)

    def recorded(self, factory: Factory | None) -> Recorded:
        kinds = iter([self._kind(at, *one) for at, one in enumerate(self._first)])
        architecture = Architecture(
            classes=self._entries,
            kinds=self._kinds,
            modules=[next(kinds) if one is None else one for one in self._order],
            eval=_runs(at for at, (_, module) in enumerate(self._first) if not module.training),
            objects=self._inert.objects,
            tensors=self._values.tensors,
            held=self._held,
            bytes=base64.b64encode(b"".join(self._values.pieces)).decode(),
            lost=self._lost,
            factory=factory.name if factory else "",
            call=factory.call if factory else None,
            libraries=_libraries({entry.name.partition(".")[0] for entry in self._entries}),
        )
        return Recorded(architecture, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        if self._lost:
            what = [f"{place or 'the model'} {why}" for place, why in self._lost.items()]
            yield (
                "what the file does not have, and only a recorded constructor or a factory brings back: "
                f"{shorten(what)}"
            )
        if self._hooked:
            yield f"{len(self._hooked)} modules have hooks, which are not kept: {shorten(self._hooked)}"

    def _number(self, module: nn.Module, place: str) -> int:
        number = self._numbers.get(id(unwrapped(module)))
        if number is None:
            raise Unsayable(place, f"is a module that is none of the model's, a {type(module).__name__}")
        return number

    def _kind(self, number: int, path: str, module: nn.Module) -> int:
        """The number of the kind of a module; most are of one that was seen, which is quickly told."""
        attributes = self._attributes[number]
        self._hold(path, module)
        hooks, call = _hooks(module), self._call(path, module)
        holders = (module._modules, module._parameters, module._buffers)
        children, parameters, buffers = ([name for name, _ in held.items()] for held in holders)
        shape = (
            children,
            parameters,
            buffers,
            [name for held in holders for name, one in held.items() if one is None],
            sorted(module._non_persistent_buffers_set),
        )
        key: object = None
        if not (hooks or call or self._odd[number] or STANDS_FOR in module.__dict__):
            key = (type(module), marshal.dumps((attributes, shape), 2))
            if key in self._known:
                return self._known[key]
        said = {}
        for name, value in attributes.items():
            if not self._odd[number]:
                said[name] = value if type(value) in _SAME else tagged.encode(value)
                continue
            place = f"{path}.{name}" if path else name
            try:
                said[name] = self._within(self._inert.said(value, place), place)
            except Unsayable as error:
                inside = "" if error.place == place else f"holds {error.place}, which "
                self._lost[place] = f"{inside}{error}"
        made = self._distinct(Kind(self._class(module), said, [], *shape, call=call, hooks=hooks))
        if hooks and not all(type(hook) in _NORMS for _, hook in _live_hooks(module)):
            self._hooked.append(path or "the model")
        if key is not None:
            self._known[key] = made
        return made

    def _within(self, said: Json, place: str) -> Json:
        """The same, if there is room for it: the header of a file has an end."""
        if isinstance(said, (dict, list, str)):
            size = len(msgspec.json.encode(said))
            if size > self._words:
                raise Unsayable(place, f"takes {human_bytes(size)} as text; save it beside the model, as tensors")
            self._words -= size if size > _LONG else 0
        return said

    def _distinct(self, kind: Kind) -> int:
        """The number of a kind, of which only what its class's first kind has not is kept."""
        first = self._firsts.setdefault(kind.of, kind)
        if first is not kind:
            lists = {key: getattr(kind, key) for key in ("children", "parameters", "buffers")}
            kind = msgspec.structs.replace(
                kind,
                attributes={
                    name: value
                    for name, value in kind.attributes.items()
                    if name not in first.attributes or not _same(first.attributes[name], value)
                },
                without=[name for name in first.attributes if name not in kind.attributes],
                **{key: None if held == getattr(first, key) else held for key, held in lists.items()},
            )
        text = msgspec.json.encode(kind)
        if text not in self._known:
            self._known[text] = len(self._kinds)
            self._kinds.append(kind)
        return self._known[text]

    def _class(self, module: nn.Module) -> int:
        key = (type(module), class_name(module))
        if key not in self._classes:
            parametrized = is_parametrized(module)
            cls = class_of(module)
            name = f"{cls.__module__}.{cls.__qualname__}" if parametrized else key[1]
            entry = ClassEntry(name, code_of(module), parametrized)
            if entry not in self._entries:
                self._entries.append(entry)
            self._classes[key] = self._entries.index(entry)
        return self._classes[key]

    def _hold(self, path: str, module: nn.Module) -> None:
        """Keep the parameters and buffers of a module that the state dict has not."""
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                name = f"{path}.{key}" if path else key
                if tensor is not None and name not in self._state:
                    try:
                        self._held[name] = self._values.number(tensor, name)
                    except Unsayable as error:
                        self._lost[error.place] = str(error)

    def _call(self, path: str, module: nn.Module) -> Json:
        """What the module was constructed with, if that was recorded and can be kept."""
        part = module.__dict__.get(STANDS_FOR)
        taken = module.__dict__.get(CONSTRUCTION)
        place = f"{path or 'the model'} (its constructor)"
        try:
            if part is not None and part.construction is not None:
                return self._inert.said([list(part.construction.args), dict(part.construction.kwargs)], place)
            if taken is not None and "lost" in taken:
                raise Unsayable(place, taken["lost"])
            return None if taken is None else self._settled(taken["call"], place)
        except Unsayable as error:
            self._lost[place] = str(error)
            return None

    def _settled(self, node: Json, place: str) -> Json:
        """Tagged JSON with names and numbers in the place of tensors and modules."""
        if isinstance(node, list):
            return [self._settled(one, place) for one in node]
        if not isinstance(node, dict):
            return node
        if node.get("$") == "module":
            return {"$": "module", "v": self._number(node["v"], place)}
        if node.get("$") == "tensor":
            return {"$": "tensor", "v": self._values.leaf(node["v"], place)}
        return {key: self._settled(one, place) for key, one in node.items()}


class _Values:
    """The tensors that are not in the state dict, as far as there is room for them.

    Attributes:
        tensors: what each is.
        pieces: their bytes, compressed.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.tensors: list[HeldTensor] = []
        self.pieces: list[bytes] = []
        self._state = state
        self._names = {id(tensor): name for name, tensor in reversed([*state.items()])}
        self._identities: dict[object, str] | None = None
        self._numbers: dict[int, int] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        self._room = _ROOM
        self._alive: list[Any] = []  # so that no other tensor gets the identity of one

    def leaf(self, tensor: Any, place: str) -> str | int:
        """The name of a tensor of the state dict, or the number of one that is kept here.

        Raises:
            Unsayable: there is no room for it.
        """
        known = self._names.get(id(tensor))
        if known is None and isinstance(tensor, torch.Tensor):
            if self._identities is None:
                self._identities = {identity(one): name for name, one in reversed([*self._state.items()])}
            known = self._identities.get(identity(tensor)) if type(tensor) in {torch.Tensor, nn.Parameter} else None
        return self.number(tensor, place) if known is None else known

    def number(self, tensor: Any, place: str) -> int:
        """The number of a tensor that is kept here."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = self._kept(tensor, place)
            self._alive.append(tensor)
        return self._numbers[id(tensor)]

    def _kept(self, tensor: Any, place: str) -> int:
        if isinstance(tensor, LazyTensor):
            kind, grad, tensor = tensor.kind == "parameter", tensor.requires_grad, tensor.load()
        else:
            kind, grad = isinstance(tensor, nn.Parameter), tensor.requires_grad and tensor.is_leaf
            try:
                check_savable(place, tensor)
            except UnsavableError as error:
                raise Unsayable(place, error.message) from error
        start, size = (-1, 0) if tensor.is_meta else self._packed(tensor.detach(), place)
        self.tensors.append(HeldTensor(dtype_name(tensor.dtype), tuple(tensor.shape), start, size, kind, grad))
        return len(self.tensors) - 1

    def _packed(self, tensor: torch.Tensor, place: str) -> tuple[int, int]:
        """Where the bytes of a tensor are, once for all tensors of the same bytes."""
        if tensor.nbytes > _MOST:
            raise self._too_large(tensor, place)
        data = bytes(tensor_bytes(tensor))
        if len(data) > 4 * _PROBE:
            share = len(zlib.compress(data[:_PROBE], 1)) / _PROBE
            if share * len(data) > 2 * self._room:
                raise self._too_large(tensor, place)
        digest = blake3(data).digest()
        if digest not in self._places:
            packed = zlib.compress(data)
            if len(packed) > self._room:
                raise self._too_large(tensor, place)
            self._places[digest] = (_ROOM - self._room, len(packed))
            self._room -= len(packed)
            self.pieces.append(packed)
        return self._places[digest]

    def _too_large(self, tensor: torch.Tensor, place: str) -> Unsayable:
        size = human_bytes(tensor.nbytes)
        return Unsayable(place, f"has {size} outside of the state dict; @tk.recorded or factory= make it anew")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside its tensors and modules, and beside what torch and torchkeep keep with it."""
    left = (
        {hook.name for _, hook in _live_hooks(module) if type(hook) in _NORMS} if module._forward_pre_hooks else set()
    )
    if is_held(module):
        left.add("train")
    if isinstance(module, nn.RNNBase):
        left |= _DERIVED
    if type(module).__module__ == _GRAPHS:
        left.add("forward")
    return {
        key: value
        for key, value in module.__dict__.items()
        if key not in _BOOKS and key not in left and not key.startswith(_OURS)
    }


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether a value is made of what JSON and marshal both know; deeper ones take the longer way."""
    if type(value) in _SIMPLE:
        return type(value) not in _TEXTS or len(value) <= _LONG
    if type(value) not in _ROWS or not depth or len(value) > _LONG:
        return False
    kinds = {*map(type, value)}
    return kinds <= _NUMBERS or (kinds <= _SIMPLE_ROWS and all(_is_plain(one, depth - 1) for one in value))


def _same(a: Json, b: Json) -> bool:
    return msgspec.json.encode(a) == msgspec.json.encode(b)


_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _live_hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(kind, hook), without those that torch itself adds to norms and parametrizations."""
    if not any(map(module.__dict__.get, _HOOKS)):  # by far the most
        return
    for kind in _HOOKS:
        for hook in module.__dict__.get(kind, {}).values():
            found = getattr(hook, "hook", hook)
            if type(found) in _NORMS or getattr(found, "__module__", "") not in _NORMING:
                yield kind, found


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    """The names of what is hooked into a module; of torch's weight and spectral norm, their options too."""
    part = module.__dict__.get(STANDS_FOR)
    if part is not None:
        return {kind: [tagged.encode(_name_of(hook)) for hook in held] for kind, held in part.hooks.items()}
    found: dict[str, list[Any]] = {}
    for kind, hook in _live_hooks(module):
        said = Record(_name_of(hook), state=dict(vars(hook))) if type(hook) in _NORMS else _name_of(hook)
        found.setdefault(kind, []).append(tagged.encode(said))
    return found


def _name_of(hook: Any) -> Global:
    if isinstance(hook, Global):
        return hook
    if isinstance(hook, Record):
        return hook.cls if isinstance(hook.cls, Global) else Global("", hook.class_name)
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return Global(str(named.__module__), str(named.__qualname__))


def _runs(numbers: Iterable[int]) -> list[int]:
    """[first, count, first, count ...] of ascending numbers."""
    runs: list[int] = []
    for number in numbers:
        if not runs or number != runs[-2] + runs[-1]:
            runs += (number, 0)
        runs[-1] += 1
    return runs


def _libraries(packages: Iterable[str]) -> dict[str, str]:
    found = {name: _version(name) for name in sorted(packages) if name not in {"torch", "torchkeep", "__main__"}}
    return {name: number for name, number in found.items() if number}


@lru_cache(maxsize=256)
def _version(package: str) -> str:
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        number = getattr(sys.modules.get(package), "__version__", "")
        return number if isinstance(number, str) else ""
