"""From a blueprint to a live module: classes where known, skeletons where not, tensors still without values."""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..core import tree as trees
from ..core.blueprint import Blueprint, ModuleRef, Part
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import RebuildError
from .classes import Classes, torch_layer
from .filling import filled
from .skeleton import Skeleton

_DEPTH = 200
_MODULE_NAMES = frozenset(dir(nn.Module))


class Maker:
    """Makes the modules of a blueprint, each once.

    Attributes:
        inert: places of attributes whose class nobody trusts -> the class; they stay records.
        unknown: paths of the modules that became skeletons -> their class.
    """

    def __init__(
        self, blueprint: Blueprint, classes: Classes, tensor: Callable[[LazyTensor, str], torch.Tensor]
    ) -> None:
        """`tensor` answers the live tensor of a lazy one, under its name: the same one for the same tensor."""
        self.inert: dict[str, str] = {}
        self.unknown: dict[str, str] = {}
        self._blueprint = blueprint
        self._classes = classes
        self._tensor = tensor
        self._made: dict[int, nn.Module] = {}
        self._values: dict[int, Any] = {}
        self._open = 0

    def model(self) -> nn.Module:
        """The whole model.

        Raises:
            RebuildError: a class refuses what the file has for it, or modules are nested beyond reason.
        """
        return self.module(0)

    def module(self, index: int) -> nn.Module:
        """The module of a part, with all below it."""
        if index in self._made:
            return self._made[index]
        if self._open >= _DEPTH:
            raise RebuildError(f"{self._blueprint.file} nests modules deeper than {_DEPTH}")
        part = self._blueprint.parts[index]
        self._open += 1
        try:
            cls = self._class_of(part)
            self._restored(index, part, cls)
        finally:
            self._open -= 1
        return self._made[index]

    def _class_of(self, part: Part) -> type[nn.Module] | None:
        found = self._classes.find_class(part.class_name)
        if found is None:
            self.unknown[part.path] = part.class_name
            return None
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise RebuildError(
                f"{part.path or 'the model'} is a {part.class_name}, and {found!r} is no class of modules",
                classes=(part.class_name,),
                hint=f"pass classes={{{part.class_name!r}: TheClass}}, a class that derives from nn.Module",
            )
        return found

    def _restored(self, index: int, part: Part, cls: type[nn.Module] | None) -> None:
        """As unpickling does it: an instance without a constructor, then its state."""
        if cls is None:
            module: nn.Module = Skeleton(part)
        else:
            module = cls.__new__(cls)
            nn.Module.__init__(module)
        self._made[index] = module  # before what is in it, which may lead back
        held: dict[str, Any] = {
            "_parameters": {key: self._held(part, key, value) for key, value in part.parameters.items()},
            "_buffers": {key: self._held(part, key, value) for key, value in part.buffers.items()},
            "_modules": {key: None if at is None else self.module(at) for key, at in part.children.items()},
            "_non_persistent_buffers_set": set(part.transient),
        }
        if part.training is not None:
            held["training"] = part.training
        state = held | self._attributes(part, module)
        if cls is None:
            module.__dict__.update(state)
            return
        try:
            module.__setstate__(state)
            filled(module, part, torch_layer(part.class_name) is not None)
        except Exception as error:
            raise RebuildError(
                f"{part.path or 'the model'} is a {part.class_name}, and {cls.__module__}.{cls.__qualname__} does not "
                f"take the state that it had: {type(error).__name__}: {error}",
                classes=(part.class_name,),
            ) from error

    def _held(self, part: Part, key: str, lazy: LazyTensor | None) -> torch.Tensor | None:
        return None if lazy is None else self._tensor(lazy, f"{part.path}.{key}" if part.path else key)

    def _attributes(self, part: Part, module: nn.Module) -> dict[str, Any]:
        found = {}
        for key, value in part.attributes.items():
            if isinstance(module, Skeleton) and key in _MODULE_NAMES:
                continue  # a method that was replaced on the instance
            found[key] = self.value(value, f"{part.path}.{key}" if part.path else key)
        return found

    def value(self, node: Any, place: str) -> Any:
        """A plain value, live: modules are those of the model, objects of classes that nobody trusts stay records."""
        if isinstance(node, ModuleRef):
            return self.module(node.index)
        if isinstance(node, LazyTensor):
            return self._tensor(node, "")
        if isinstance(node, Global):
            found = self._classes.find(node.module, node.name)
            if found is None:
                self.inert[place] = node.qualified
            return node if found is None else found
        if not trees.is_container(node):
            return node
        if id(node) not in self._values:
            self._open += 1
            try:
                if self._open > _DEPTH:
                    raise RebuildError(f"{self._blueprint.file}: {place[:100]} is nested deeper than {_DEPTH}")
                self._container(node, place)
            finally:
                self._open -= 1
        return self._values[id(node)]

    def _container(self, node: Any, place: str) -> None:
        if isinstance(node, Record):
            self._values[id(node)] = self._object(node, place)
        elif isinstance(node, (tuple, frozenset)):
            self._values[id(node)] = _like(node, [self.value(item, place) for item in node])
        elif isinstance(node, Mapping):
            made: Any = _empty(node)
            self._values[id(node)] = made
            for key, item in node.items():
                made[self.value(key, place)] = self.value(item, f"{place}.{trees.key_text(key, 0)}")
        else:
            made = self._values[id(node)] = type(node)()
            add = made.append if isinstance(node, list) else made.add
            for item in node:
                add(self.value(item, place))

    def _object(self, record: Record, place: str) -> Any:
        """An object whose class was given or is trusted, made as unpickling would; else the record itself."""
        if record.tensor is not None:
            return self._tensor(record.tensor, "")
        if id(record) in self._blueprint.places:
            return self.module(self._blueprint.places[id(record)])
        cls = self._classes.find(record.cls.module, record.cls.name) if isinstance(record.cls, Global) else None
        if cls is functools.partial:
            return self._partial(record, place)
        if cls is None:
            self.inert[place] = record.class_name
            return record
        args = [self.value(arg, place) for arg in record.args]
        kwargs = {key: self.value(arg, place) for key, arg in record.kwargs.items()}
        made = cls(*args, **kwargs) if record.called else cls.__new__(cls, *args, **kwargs)
        self._values[id(record)] = made
        if record.state is not None:
            _set_state(made, self.value(record.state, place))
        for item in record.items:
            made.append(self.value(item, place))
        for key, item in record.pairs:
            made[self.value(key, place)] = self.value(item, place)
        return made

    def _partial(self, record: Record, place: str) -> Any:
        """What functools.partial pickles: itself called with the function, then (function, args, keywords, ...)."""
        parts = record.state if isinstance(record.state, tuple) and len(record.state) == 4 else None
        function, args, keywords = (parts or (*record.args[:1], record.args[1:], record.kwargs))[:3]
        known = self.value(function, place)
        if not callable(known):
            return record
        filled_in = self.value(dict(keywords or {}), place)
        return functools.partial(known, *self.value(tuple(args), place), **filled_in)


def _set_state(made: Any, state: Any) -> None:
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
    elif isinstance(state, tuple) and len(state) == 2:  # of a class with slots
        made.__dict__.update(state[0] or {})
        for key, value in (state[1] or {}).items():
            setattr(made, key, value)
    else:
        made.__dict__.update(state)


def _like(node: Any, items: list[Any]) -> Any:
    return torch.Size(items) if isinstance(node, torch.Size) else type(node)(items)


def _empty(node: Mapping[Any, Any]) -> Any:
    if isinstance(node, defaultdict):
        return defaultdict(node.default_factory)
    return type(node)() if type(node) in {dict, OrderedDict, Counter} else {}
