"""From a blueprint to a live module: classes where they are known, skeletons where not, tensors without values."""

from __future__ import annotations

import functools
import inspect
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ..core import tree as trees
from ..core.blueprint import Blueprint, Construction, ModuleRef, ObjectRef, Part
from ..core.live import class_name, class_of, is_parametrized, unwrapped
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import RebuildError
from ..recording import code_of
from .classes import Classes, torch_layer
from .filling import filled, prepared
from .finishing import derived, new_options, parametrized, refresh
from .hooks import hook_again
from .skeleton import PART, Skeleton

_DEPTH = 200
_PATHS = 1_000_000
_NEEDED = {
    *(name for name in dir(nn.Module) if name.startswith("_")),
    *("forward", "train", "state_dict", "load_state_dict"),
    *("named_modules", "named_children", "named_parameters", "named_buffers"),
}
_RESERVED = {PART, "_compiled_call_impl"}


class Maker:
    """Makes the modules of a blueprint, each once.

    Attributes:
        inert: places of attributes whose class nobody trusts -> the class; they stay records.
        hidden: places of attributes that would hide a method of the class, and are left out -> what they are.
        unknown: paths of the modules that became skeletons -> their class.
        notes: what else is not as it was.
        constructed: places of what constructors made anew.
        live: class of a part -> one module that was made of it.
    """

    def __init__(
        self, blueprint: Blueprint, classes: Classes, tensor: Callable[[LazyTensor, str], torch.Tensor]
    ) -> None:
        """`tensor` answers the live tensor of a lazy one, under its name: the same one for the same tensor."""
        self.inert: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.unknown: dict[str, str] = {}
        self.notes: list[str] = []
        self.constructed: set[str] = set()
        self.live: dict[str, nn.Module] = {}
        self._blueprint = blueprint
        self._classes = classes
        self._tensor = tensor
        self._made: dict[int, nn.Module] = {}
        self._values: dict[int, Any] = {}
        self._taken: set[int] = set()
        self._begun: set[int] = set()
        self._open = 0

    def model(self) -> nn.Module:
        """The whole model.

        Raises:
            RebuildError: a class refuses what the file has for it, or modules are nested beyond reason.
        """
        self._check_paths()
        factory = self._classes.find_factory(self._blueprint.factory)
        if factory is None:
            return self.module(0)
        name = self._blueprint.factory
        call = self._call(self._blueprint.construction, name)
        if call is None:
            return self.module(0)
        self._adopt(0, self._module_by(name, factory, call, "the model"))
        return self._made[0]

    def _check_paths(self) -> None:
        """Refuse modules that are among their own children, and shared ones that ever more paths lead to."""
        file, parts = self._blueprint.file, self._blueprint.parts
        paths: dict[int, int] = {}
        stack: list[tuple[int, Iterator[int]]] = [(0, _below(parts[0]))]
        entered = {0}
        while stack:
            index, pending = stack[-1]
            child = next(pending, None)
            if child is None:
                stack.pop()
                entered.discard(index)
                paths[index] = 1 + sum(paths[at] for at in _below(parts[index]))
                if paths[index] > _PATHS:
                    raise RebuildError(f"{file} has more than {_PATHS:,} paths of modules, by shared ones")
            elif child in entered:
                raise RebuildError(f"{file} has a module that is among its own children: {parts[child].path!r:.200}")
            elif child not in paths:
                stack.append((child, _below(parts[child])))
                entered.add(child)

    def module(self, index: int) -> nn.Module:
        """The module of a part, with all below it."""
        if index in self._made:
            return self._made[index]
        part = self._blueprint.parts[index]
        if index in self._begun:
            raise RebuildError(
                f"{part.path or 'the model'} is needed for the arguments of its own constructor",
                classes=(part.class_name,),
                hint=f"pass classes={{{part.class_name!r}: make}}, a function that makes it",
            )
        self._begun.add(index)
        with self._deeper():
            cls = self._class_of(part)
            made = self._constructed(part, cls)
            if made is None:
                self._restored(index, part, cls)
            else:
                self._adopt(index, made)
        return self._made[index]

    def hooked(self) -> set[str]:
        """Paths of the modules that have the hooks that they had, from here or from their constructor; what such a hook
        computes is there, now that their tensors have values."""
        parts = [(self._blueprint.parts[index], module) for index, module in self._made.items()]
        for part, module in parts:
            if part.hooks:
                derived(module)
        return {part.path for part, module in parts if all(module.__dict__.get(kind) for kind in part.hooks)}

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        if self._open >= _DEPTH:
            raise RebuildError(f"{self._blueprint.file} nests modules or values deeper than {_DEPTH}")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def _constructed(self, part: Part, what: Any) -> nn.Module | None:
        """A module by its constructor, where it is known what that was called with, or by a function that was given."""
        call = part.construction
        if not isinstance(what, type) and what is not None:
            call = call or Construction()
        if what is None or call is None or torch_layer(part.class_name) is not None:
            return None
        where = part.path or "the model"
        live = self._call(call, where)
        return None if live is None else self._module_by(part.class_name, what, live, where)

    def _module_by(self, name: str, what: Any, call: Construction, where: str) -> nn.Module:
        """What a constructor or a function makes.

        Raises:
            RebuildError: it refuses the arguments, or what it makes is no module.
        """
        made = self._called(name, what, call, where)
        if not isinstance(made, nn.Module):
            raise RebuildError(f"{name} gave a {type(made).__name__}, and no module", classes=(name,))
        return unwrapped(made)

    def _call(self, call: Construction, where: str) -> Construction | None:
        """Live arguments; None, and a note, where one is of a class that nobody trusts."""
        live = self._live(call, f"{where} (an argument)")
        strange = trees.first_record([*live.args, *live.kwargs.values()])
        if strange is None:
            return live
        name = strange[1].class_name if isinstance(strange[1], Record) else strange[1].qualified
        self.notes.append(f"{where} was made without its constructor, which takes a {name}: pass that in classes= too")
        return None

    def _live(self, call: Construction, place: str) -> Construction:
        """Arguments as far as they can be made; what of them stays inert is nobody's attribute."""
        before = set(self.inert)
        args = tuple(self.value(one, place) for one in call.args)
        kwargs = {key: self.value(one, place) for key, one in call.kwargs.items()}
        for one in self.inert.keys() - before:
            del self.inert[one]
        return Construction(args, kwargs)

    def _called(self, name: str, what: Any, call: Construction, where: str) -> Any:
        try:
            return what(*call.args, **call.kwargs)
        except Exception as error:
            now = f"{getattr(what, '__module__', '')}.{getattr(what, '__qualname__', what)}"
            raise RebuildError(
                f"{where} was made by {name}({_listed(call)}), and {now}{_signature(what)} does not take that: "
                f"{type(error).__name__}: {error}",
                classes=(name,),
                hint=f"pass classes={{{name!r}: make}}, a function that calls it as it is to be called now",
            ) from error

    def _adopt(self, index: int, module: nn.Module) -> None:
        """Let a module that code has made become that of a part: its structure, tensors and values are the file's."""
        part = self._blueprint.parts[index]
        self._made[index] = module
        self._taken.add(id(module))
        self.live.setdefault(part.class_name, module)
        mine = part.path + "." if part.path else ""
        keep = self._is_newer(part, module)
        children = {key: self._child(at, module._modules.get(key)) for key, at in part.children.items()}
        held: dict[str, dict[str, Any]] = {
            "_modules": children,
            "_parameters": {key: self._held(part, key, value) for key, value in part.parameters.items()},
            "_buffers": {key: self._held(part, key, value) for key, value in part.buffers.items()},
        }
        known = {key for one in held.values() for key in one}
        anew = part.parametrized and not is_parametrized(module)
        if anew:
            known |= self._computed(part, children.get("parametrizations"))
        for kind, wanted in held.items():
            own: dict[str, Any] = module.__dict__[kind]
            extra = {key: value for key, value in own.items() if key not in known}
            own.clear()
            own.update(wanted)
            own.update({key: value for key, value in extra.items() if keep or mine + key in self._blueprint.lost})
            self.constructed |= {mine + key for key in extra if key in own}
        if anew:
            parametrized(module)
        module._non_persistent_buffers_set = {
            key
            for key in module._buffers
            if key in (part.transient if key in known else module._non_persistent_buffers_set)
        }
        for key, value in part.attributes.items():
            self._set(module, key, value, mine + key)
        self.constructed |= {mine + key for key in module.__dict__}
        if part.training is not None:
            module.training = part.training
        hook_again(module, part, lambda lazy: self._tensor(lazy, ""))
        refresh(module)

    def _computed(self, part: Part, parametrizations: nn.Module | None) -> set[str]:
        """The names of the tensors that are computed."""
        if parametrizations is None:
            raise RebuildError(
                f"{part.path or 'the model'} is a parametrized {part.class_name}, and has no parametrizations",
                classes=(part.class_name,),
            )
        return {*parametrizations._modules}

    def _is_newer(self, part: Part, module: nn.Module) -> bool:
        """Whether what a constructor made beyond the file may be new in the code, and not taken out of the model."""
        if torch_layer(class_name(module)) is not None:
            return False
        return not part.code or part.code.get("__init__") != code_of(module).get("__init__")

    def _child(self, at: int | None, present: nn.Module | None) -> nn.Module | None:
        """The child that a constructor made where it is of the same kind; else one of what the file says."""
        if at is None or at in self._made:
            return None if at is None else self._made[at]
        if present is None or not self._fits(self._blueprint.parts[at], unwrapped(present)):
            return self.module(at)
        with self._deeper():
            self._adopt(at, unwrapped(present))
        return present

    def _fits(self, part: Part, present: nn.Module) -> bool:
        if part.parametrized != is_parametrized(present) or id(present) in self._taken:
            return False  # what is taken is of another part: code makes one module where the file has two
        cls = class_of(present)
        try:
            wanted = self._classes.find_class(part.class_name)
        except RebuildError:  # its package has it no more; what the constructor made may be what became of it
            wanted = None
        if cls is wanted or f"{cls.__module__}.{cls.__qualname__}" == part.class_name:
            return True
        if wanted is not None or torch_layer(class_name(present)) is not None:
            return False
        names = [*part.children, *part.parameters, *part.buffers]
        return sorted(names) == sorted([*present._modules, *present._parameters, *present._buffers])

    def _set(self, module: nn.Module, key: str, value: Any, place: str) -> None:
        """Set an attribute as it was, unless code has made what the file can only name."""
        if any(key in held for held in (module._parameters, module._buffers, module._modules)):
            return
        before = set(self.inert)
        made = self.value(value, place)
        if key in module.__dict__ and trees.first_record([made]) is not None:
            for one in self.inert.keys() - before:
                del self.inert[one]
            return
        module.__dict__[key] = made

    def _class_of(self, part: Part) -> Any:
        """A class of modules, or a function that the caller gave in its place; None where nobody knows it."""
        found = self._classes.find_class(part.class_name)
        if found is None:
            self.unknown[part.path] = part.class_name
            return None
        if not isinstance(found, type) and self._classes.given.get(part.class_name) is found:
            return found
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
            self._made[index] = module  # before what its constructor took, which may lead back
            module.__dict__[PART] = self._standing(part)
        else:
            module = cls.__new__(cls)
            nn.Module.__init__(module)
        self._taken.add(id(module))
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
            hook_again(module, part, lambda lazy: self._tensor(lazy, ""))
            return
        try:
            getter = next(one for one in cls.__mro__ if "__getstate__" in vars(one))
            theirs = bool(self._blueprint.places) or getter.__module__.startswith("torch.")
            set_state: Any = cls.__setstate__ if theirs else nn.Module.__setstate__  # what its own takes, its own gave
            set_state(module, prepared(cls, state))
            if part.parametrized:
                parametrized(module)
            filled(module)
            hook_again(module, part, lambda lazy: self._tensor(lazy, ""))
        except Exception as error:
            raise RebuildError(
                f"{part.path or 'the model'} is a {part.class_name}, and {cls.__module__}.{cls.__qualname__} does not "
                f"take the state that it had: {type(error).__name__}: {error}",
                classes=(part.class_name,),
            ) from error
        self.live.setdefault(part.class_name, module)
        if torch_layer(part.class_name) is None:
            added = new_options(module)
            if added:
                where, options = (
                    part.path or "the model",
                    ", ".join(f"{key}={value!r:.60}" for key, value in added.items()),
                )
                self.notes.append(f"{where} has options that its file does not know, set to their defaults: {options}")

    def _held(self, part: Part, key: str, lazy: LazyTensor | None) -> torch.Tensor | None:
        return None if lazy is None else self._tensor(lazy, f"{part.path}.{key}" if part.path else key)

    def _attributes(self, part: Part, module: nn.Module) -> dict[str, Any]:
        """All else that it had, but for what would stand before a method and break the module."""
        found = {}
        for key, node in part.attributes.items():
            place = f"{part.path}.{key}" if part.path else key
            if key in _RESERVED:
                continue
            value = self.value(node, place)
            if callable(getattr(type(module), key, None)) and _hides(key, value, module):
                self.hidden[place] = self.inert.pop(place, type(value).__name__)
                continue
            found[key] = value
        return found

    def value(self, node: Any, place: str) -> Any:
        """A plain value, live: modules are those of the model, objects of classes that nobody trusts stay records."""
        if isinstance(node, ModuleRef):
            self._check_number(node.index, self._blueprint.parts, "modules", place)
            return self.module(node.index)
        if isinstance(node, ObjectRef):
            self._check_number(node.index, self._blueprint.objects, "objects", place)
            return self._shared(self._blueprint.objects[node.index], place)
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
            with self._deeper():
                self._collection(node, place)
        return self._values[id(node)]

    def _shared(self, node: Any, place: str) -> Any:
        """A value that several modules hold. Tuples are kept where they stand: to hash shared ones has no end."""
        if isinstance(node, (tuple, frozenset)):
            raise RebuildError(f"{self._blueprint.file}: {place[:100]} shares a {type(node).__name__}, which none does")
        with self._deeper():
            return self.value(node, place)

    def _collection(self, node: Any, place: str) -> None:
        try:
            self._container(node, place)
        except TypeError as error:  # a key that is none
            raise RebuildError(f"{self._blueprint.file}: {place[:100]} makes no sense: {error}") from error

    def _check_number(self, index: int, known: Sequence[Any], what: str, place: str) -> None:
        if not 0 <= index < len(known):
            file = self._blueprint.file
            raise RebuildError(f"{file}: {place[:100]} is number {index} of {what}, and it has {len(known)}")

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
        name = trees.named(record.cls)
        cls = None if name is None else self._classes.find_object(name)
        if record.class_name == "builtins.getattr" and (method := self._method(record, place)) is not None:
            return method
        if cls is None:
            return self._still(record, place)
        try:
            return self._partial(record, place) if cls is functools.partial else self._unpickled(cls, record, place)
        except (RebuildError, RecursionError):
            raise
        except Exception as error:
            raise RebuildError(
                f"{place[:100]} is a {record.class_name}, and that does not take what the file has for it: "
                f"{type(error).__name__}: {error}",
                classes=(record.class_name,),
            ) from error

    def _unpickled(self, cls: Any, record: Record, place: str) -> Any:
        args = [self.value(arg, place) for arg in record.args]
        kwargs = {key: self.value(arg, place) for key, arg in record.kwargs.items()}
        if cls is deque and args and not isinstance(args[0], (list, tuple)):  # a range may have no end
            raise TypeError(f"its items are no list but a {type(args[0]).__name__}")
        made = cls(*args, **kwargs) if record.called else cls.__new__(cls, *args, **kwargs)
        self._values[id(record)] = made
        if record.state is not None:
            _set_state(made, self.value(record.state, place))
        for item in record.items:
            made.append(self.value(item, place))
        for key, item in record.pairs:
            made[self.value(key, place)] = self.value(item, place)
        return made

    def _still(self, record: Record, place: str) -> Record:
        """A record of a class that nobody trusts, with what is in it live: it can be saved again."""
        made = self._values[id(record)] = Record(record.cls, called=record.called)
        made.args = self.value(record.args, place)
        made.kwargs = self.value(record.kwargs, place)
        made.state = self.value(record.state, place)
        made.items = [self.value(item, place) for item in record.items]
        made.pairs = [(self.value(key, place), self.value(item, place)) for key, item in record.pairs]
        self.inert[place] = record.class_name
        return made

    def _method(self, record: Record, place: str) -> Any | None:
        """A method of a module of the model; it is looked up in the class, and nothing is called."""
        if len(record.args) != 2 or not isinstance(record.args[1], str):
            return None
        owner = self.value(record.args[0], place)
        if not isinstance(owner, nn.Module) or isinstance(owner, Skeleton):
            return None
        found = inspect.getattr_static(type(owner), record.args[1], None)
        return MethodType(found, owner) if isinstance(found, FunctionType) else None

    def _standing(self, part: Part) -> Part:
        """A part as a skeleton keeps it: without what it holds itself, and with live modules among the arguments that
        its constructor was called with."""
        part = replace(part, children={}, parameters={}, buffers={}, attributes={})
        call = part.construction
        if call is None:
            return part
        return replace(part, construction=self._live(call, part.path))

    def _partial(self, record: Record, place: str) -> Any:
        """What functools.partial pickles: itself called with the function, then (function, args, keywords, ...)."""
        parts = record.state if isinstance(record.state, tuple) and len(record.state) == 4 else None
        function, args, keywords = (parts or (*record.args[:1], record.args[1:], record.kwargs))[:3]
        known = self.value(function, place)
        if not callable(known):
            return record
        filled_in = {str(key): self.value(one, place) for key, one in dict(keywords or {}).items()}
        return functools.partial(known, *[self.value(one, place) for one in args], **filled_in)


def _hides(key: str, value: Any, module: nn.Module) -> bool:
    """Whether an attribute must not stand before a method: plain values may, as `type`, but where torch needs it."""
    if isinstance(value, (Record, Global)) or (isinstance(module, Skeleton) and key == "forward"):
        return True
    return key in _NEEDED and not (callable(value) and key == "forward")


def _below(part: Part) -> Iterator[int]:
    return (at for at in part.children.values() if at is not None)


def _listed(call: Construction) -> str:
    return ", ".join(
        [*map(trees.brief, call.args), *(f"{key:.40}={trees.brief(one)}" for key, one in call.kwargs.items())]
    )


def _signature(what: Any) -> str:
    try:
        return str(inspect.signature(what))
    except (TypeError, ValueError):
        return "(...)"


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
