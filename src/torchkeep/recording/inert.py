"""Live values as inert ones: what a pickle would say of them, without running any of their code."""

from __future__ import annotations

import dataclasses
import enum
import functools
import pathlib
import sys
import types
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import tagged
from ..core.blueprint import ModuleRef, ObjectRef
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record, as_tensor, key_text
from ..errors import UnsavableError

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Global})
_DICTS = frozenset({dict, OrderedDict, Counter, defaultdict})
_LISTS = frozenset({list, tuple, set, frozenset})
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_LEAVES = (
    *(torch.Tensor, LazyTensor, nn.Module, type, enum.Enum, np.ndarray, np.generic),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
)
_STATELESS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    slice: lambda value: (value.start, value.stop, value.step),
    range: lambda value: (value.start, value.stop, value.step),
    pathlib.PosixPath: lambda value: (str(value),),
    pathlib.WindowsPath: lambda value: (str(value),),
    pathlib.PurePosixPath: lambda value: (str(value),),
}
_DEPTH = 100
_MOST = 2_000_000  # containers that are looked at
_VALUES = 200_000  # of one attribute: more are data, and no option of a model


class Unsayable(Exception):
    """A value cannot be kept; the text says why, `place` where it is."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(why)
        self.place = place


class Inert:
    """Turns values into inert ones.

    Attributes:
        objects: the values that are kept once for all who hold them, by their numbers, as tagged JSON.
    """

    def __init__(
        self, module: Callable[[nn.Module, str], Any], tensor: Callable[[Any, str], Any], shared: Iterable[int] = ()
    ) -> None:
        """Args:
        module, tensor: what stands for one in tagged JSON, from it and its place; they raise Unsayable.
        shared: identities of values that are kept once.
        """
        self.objects: list[Any] = []
        self._module = module
        self._tensor = tensor
        self._shared: dict[int, int | Unsayable | None] = dict.fromkeys(shared)
        self._leaves: dict[int, Any] = {}
        self._open: set[int] = set()
        self._left = _VALUES

    def said(self, value: Any, place: str) -> Any:
        """The value as tagged JSON.

        Raises:
            Unsayable: some part of it cannot be kept.
        """
        self._left = _VALUES
        return self._encoded(self._of(value, place), place)

    def _encoded(self, inert: Any, place: str) -> Any:
        try:
            return tagged.encode(inert, lambda _, tensor: self._leaves[id(tensor)])
        except UnsavableError as error:
            raise Unsayable(f"{place}.{error.path}" if error.path else place, error.message) from error

    def _of(self, value: Any, place: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Unsayable(place, f"is of more than {_VALUES:,} values; save them beside the model, as tensors")
        kind = type(value)  # and no isinstance, which may run code of the value
        if kind in ATOMS or issubclass(kind, (np.generic, np.ndarray, ObjectRef)):
            return value
        if issubclass(kind, (torch.Tensor, LazyTensor)):
            self._leaves[id(value)] = self._tensor(value, place)
            return value
        if issubclass(kind, nn.Module):
            return ModuleRef(self._module(value, place))
        if id(value) in self._shared:
            return self._once(value, place)
        return self._guarded(value, place)

    def _guarded(self, value: Any, place: str) -> Any:
        if id(value) in self._open:
            raise Unsayable(place, "holds itself")
        if len(self._open) > _DEPTH:
            raise Unsayable(place, "is nested too deeply")
        self._open.add(id(value))
        try:
            return self._container(value, place)
        finally:
            self._open.discard(id(value))

    def _once(self, value: Any, place: str) -> ObjectRef:
        number = self._shared[id(value)]
        if isinstance(number, Unsayable):
            raise number
        if number is None:
            number = self._shared[id(value)] = len(self.objects)
            self.objects.append(None)
            try:
                self.objects[number] = self._encoded(self._guarded(value, place), place)
            except Unsayable as error:
                self._shared[id(value)] = error
                raise
        return ObjectRef(number)

    def _container(self, value: Any, place: str) -> Any:
        kind = type(value)
        if kind in _LISTS:
            return kind(self._of(item, f"{place}.{at}") for at, item in enumerate(value))
        if kind in _DICTS:
            made: Any = defaultdict(value.default_factory) if kind is defaultdict else kind()
            for at, (key, item) in enumerate(value.items()):
                made[self._of(key, place)] = self._of(item, f"{place}.{key_text(key, at)}")
            return made
        if issubclass(kind, (type, *_FUNCTIONS)):
            return _named(value, place)
        if kind is types.MethodType:
            return self._method(value, place)
        if kind is Record:
            return self._record(value, place)
        return self._object(value, place)

    def _method(self, value: Any, place: str) -> Record:
        name = value.__func__.__name__
        if not isinstance(value.__self__, nn.Module):
            raise Unsayable(place, "is a method of an object")
        if getattr(type(value.__self__), name, None) is not value.__func__:
            raise Unsayable(place, "is a method that its class does not have")
        return Record(Global("builtins", "getattr"), (self._of(value.__self__, place), name), called=True)

    def _record(self, value: Record, place: str) -> Any:
        if as_tensor(value) is not None:
            return value.tensor
        if not isinstance(value.cls, Global):
            raise Unsayable(place, "is of a class that its file computed")
        state, args = self._of(value.state, place), self._of(value.args, place)
        kwargs, items = self._of(value.kwargs, place), self._of(value.items, place)
        pairs = [(self._of(key, place), self._of(item, place)) for key, item in value.pairs]
        return Record(value.cls, args, kwargs, state, items, pairs, value.called)

    def _object(self, value: Any, place: str) -> Record:
        kind = type(value)
        cls = Global(kind.__module__, kind.__qualname__)
        if issubclass(kind, types.ModuleType):
            raise Unsayable(place, "is a module of Python")
        if issubclass(kind, enum.Enum):
            return Record(cls, (self._of(value._value_, place),), called=True)
        if kind is functools.partial:
            state = tuple(self._of(one, place) for one in (value.func, value.args, value.keywords))
            return Record(cls, (state[0],), state=(*state, None), called=True)
        if kind in _STATELESS:
            return Record(cls, _STATELESS[kind](value), called=True)
        if kind is deque:
            items = [self._of(item, place) for item in value]
            return Record(cls, (items, value.maxlen), called=True)
        if kind is types.SimpleNamespace or kind is Namespace:
            return Record(cls, state=self._of(dict(vars(value)), place))
        return self._instance(value, cls, place)

    def _instance(self, value: Any, cls: Global, place: str) -> Record:
        """As pickle makes it where a class leaves all to it: an instance without a constructor, then its state."""
        kind = type(value)
        base = _base_of(kind)
        fields = _fields_of(kind)
        if fields is None and _pickles_itself(kind, base):
            raise Unsayable(place, f"is a {cls.qualified}, whose class says by itself how it is pickled")
        if base is object and not hasattr(value, "__dict__") and not _slots(kind):
            raise Unsayable(place, f"is a {cls.qualified}, which no file can hold")
        record = Record(cls)
        if base is dict:
            record.pairs = [(self._of(key, place), self._of(item, f"{place}.{key}")) for key, item in dict.items(value)]
        elif base is list:
            record.items = [self._of(item, place) for item in list.__iter__(value)]
        elif base is tuple:
            items = tuple(self._of(item, place) for item in tuple.__iter__(value))
            record.args = items if hasattr(kind, "_fields") else (items,)
        elif base is not object:
            record.args = (base(value),)
        if fields is not None:
            record.state = [self._of(getattr(value, name), f"{place}.{name}") for name in fields]
            return record
        state = {key: self._of(item, f"{place}.{key}") for key, item in getattr(value, "__dict__", {}).items()}
        slots = {key: self._of(getattr(value, key), f"{place}.{key}") for key in _slots(kind) if hasattr(value, key)}
        if state or base is object:
            record.state = (state or None, slots) if slots else state
        return record


def _base_of(kind: type) -> Any:
    return next((one for one in (dict, list, tuple, str, int, float, bytes) if issubclass(kind, one)), object)


def _fields_of(kind: type) -> list[str] | None:
    """The fields of a frozen dataclass with slots, whose state is a list of their values."""
    own = getattr(kind.__dict__.get("__getstate__"), "__name__", "")
    return [one.name for one in dataclasses.fields(kind)] if own == "_dataclass_getstate" else None


def _pickles_itself(kind: type, base: type) -> bool:
    if base is tuple and hasattr(kind, "_fields"):
        return False
    asked = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    return any(getattr(kind, name, None) is not getattr(base, name, None) for name in asked)


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for one in kind.__mro__:
        slots = one.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in found if name not in {"__dict__", "__weakref__"}]


def _named(value: Any, place: str) -> Global:
    """The name of a class or a function, under which it can be found again."""
    module: Any = getattr(value, "__module__", None)
    name: str = getattr(value, "__qualname__", "")
    short = name.rpartition(".")[2]
    if isinstance(value, type):
        return Global(str(module), name)
    if isinstance(module, str) and _found(module, name) is value:
        return Global(module, name)
    for place_of in (nn.functional, torch._C._nn, torch):
        if vars(place_of).get(short, NotImplemented) is value:
            return Global(place_of.__name__, short)
    what = "a lambda" if short == "<lambda>" else "a function that no module has"
    raise Unsayable(place, f"is {what}")


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for key in name.split("."):
        found = getattr(found, "__dict__", {}).get(key)
    return found


def shared_in(values: Iterable[Any]) -> set[int]:
    """Identities of the lists, dicts, sets and objects that are met more than once in some values."""
    seen: set[int] = set()
    again: set[int] = set()
    stack = list(values)
    while stack and len(seen) < _MOST:
        value = stack.pop()
        kind = type(value)
        if kind in ATOMS or issubclass(kind, _LEAVES):
            continue
        if id(value) in seen:
            if not issubclass(kind, (tuple, frozenset)):
                again.add(id(value))
            continue
        seen.add(id(value))
        stack += _inside(value, kind)
    return again


def _inside(value: Any, kind: type) -> Iterator[Any]:
    if issubclass(kind, dict):
        yield from (one for one in dict.values(value) if type(one) not in ATOMS)
    elif kind in {*_LISTS, deque}:
        yield from (one for one in value if type(one) not in ATOMS)
    elif kind is Record:
        yield from (value.args, value.kwargs, value.state, value.items)
        yield from (item for _, item in value.pairs)
    elif kind is functools.partial:
        yield from (value.func, value.args, value.keywords)
    if kind.__module__ != "builtins" and (_fields_of(kind) is not None or not _pickles_itself(kind, _base_of(kind))):
        yield from getattr(value, "__dict__", {}).values()
