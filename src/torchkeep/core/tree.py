"""Saved objects as trees: inert stand-ins for classes, and the road from nested state to dotted names and back.

A tree is made of dicts, lists, tuples, sets, plain values, tensors (lazy or live) and `Record`s. It may share
containers and may contain itself, so every walk here is iterative and bounded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UnsafeCheckpointError
from .limits import Limits
from .names import name_paths
from .tensors import LazyTensor


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""Stands for a saved object that nobody kept: None is one that can be saved."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a file. It is only a name: nothing was imported."""

    module: str
    name: str

    @property
    def qualified(self) -> str:
        """`module.name`, as one would import it."""
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"<name {self.qualified}>"


@dataclass(slots=True, eq=False)
class Record:
    """An object whose class or function was not called: what it was to be made of, kept as data.

    Attributes:
        cls: what was to be called; nearly always a `Global`.
        args, kwargs: what it was to be called with.
        state: what was to be given to `__setstate__` or to `__dict__`, or None.
        items, pairs: what was to be appended, or set by key.
        called: True when it was a function call (REDUCE), False when an instance was to be made without `__init__`.
        tensor: the tensor it turned out to be, for tensors that old files build in several steps.
    """

    cls: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    called: bool = False
    tensor: LazyTensor | None = None

    @property
    def class_name(self) -> str:
        """`module.name` of the class, or a description where the file computed the class itself."""
        name = named(self.cls)
        return "<computed by the file>" if name is None else name.qualified

    @property
    def is_module(self) -> bool:
        """Whether this was a `torch.nn.Module`: it has dicts of parameters, buffers and children."""
        return isinstance(self.state, dict) and all(isinstance(self.state.get(key), dict) for key in _MODULE_DICTS)

    def __repr__(self) -> str:
        """The class, and the first few of its arguments and attributes, one level deep and cut short."""
        shown = [_brief(value) for value in self.args[:4]]
        state = self.state if isinstance(self.state, dict) else {}
        shown += [f"{key_text(key, 0)[:40]}={_brief(value)}" for key, value in list(state.items())[:4]]
        more = len(self.args) + len(state) > len(shown)
        inside = ", ".join([*shown, *(["..."] if more else [])])
        return f"<record {self.class_name}{f': {inside}' if inside else ''}>"


def named(cls: Any) -> Global | None:
    """The name of a class; of one inside of another too, which older pickles say as `getattr(Outer, "Inner")`."""
    inner: list[str] = []
    while isinstance(cls, Record) and len(inner) < _NESTED:
        getting = cls.called and isinstance(cls.cls, Global) and cls.cls.qualified in _GETATTR and len(cls.args) == 2
        if not getting or not isinstance(cls.args[1], str):
            return None
        inner.append(cls.args[1])
        cls = cls.args[0]
    if not isinstance(cls, Global):
        return None
    return Global(cls.module, ".".join((cls.name, *reversed(inner)))) if inner else cls


def _brief(value: Any) -> str:
    """A value in a few characters, without what is inside of it."""
    if isinstance(value, (str, bytes)):
        return repr(value[:30])
    if isinstance(value, int) and value.bit_length() > 100:
        return "<int>"
    if value is None or isinstance(value, (bool, int, float, complex, torch.dtype, torch.device, LazyTensor)):
        return repr(value)[:60]
    if isinstance(value, (Global, Record)):
        return f"<{(value.qualified if isinstance(value, Global) else value.class_name)[:60]}>"
    return f"<{type(value).__name__}>"


_MODULE_DICTS = ("_parameters", "_buffers", "_modules")
_GETATTR, _NESTED = {"builtins.getattr", "__builtin__.getattr"}, 20

_PLAIN_DICTS = (dict, OrderedDict)
_PLAIN_TENSORS = {torch.Tensor, torch.nn.Parameter}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor in a tree: the keys that lead to it, its dotted name, and how a module held it.

    The role is `parameter`, `buffer`, `transient` (a buffer that is not persistent), or empty outside of modules.
    """

    path: tuple[str, ...]
    name: str
    tensor: Any
    role: str


def key_text(key: Any, position: int) -> str:
    """A dictionary key as one segment of a name; tensors and records used as keys are called by their position."""
    if isinstance(key, str):
        return key
    if isinstance(key, int) and key.bit_length() > 600:  # Python refuses to print integers of many digits
        return hex(key)[:200]
    if isinstance(key, (int, float, complex)) or key is None:
        return repr(key)
    if isinstance(key, bytes):
        return repr(key[:200])[:200]
    if isinstance(key, tuple):  # piece by piece, because its members may be huge
        parts = enumerate(key[:20])
        inside = ", ".join(repr(part[:99]) if isinstance(part, str) else key_text(part, at) for at, part in parts)
        return f"({inside}{',' if len(key) == 1 else ''})"[:200]
    return str(position)


def as_tensor(node: Any) -> Any:
    """The tensor a node is, or None."""
    if isinstance(node, (LazyTensor, torch.Tensor)):
        return node
    return node.tensor if isinstance(node, Record) else None


def children(node: Any) -> Iterator[tuple[str, Any, str]]:
    """What a container holds, as (segment of the name, child, role in a module)."""
    if isinstance(node, Mapping):
        for position, (key, child) in enumerate(node.items()):
            yield key_text(key, position), child, ""
    elif isinstance(node, (list, tuple, set, frozenset)):
        for position, child in enumerate(node):
            yield str(position), child, ""
    elif isinstance(node, Record):
        yield from _record_children(node)
    elif isinstance(node, LazyTensor) and node.attributes is not None:
        yield from _state_children(node.attributes)


def _record_children(node: Record) -> Iterator[tuple[str, Any, str]]:
    if node.is_module:
        passing = node.state.get("_non_persistent_buffers_set")
        for holder, role in zip(_MODULE_DICTS, ("parameter", "buffer", ""), strict=True):
            for key, child, _ in children(node.state[holder]):
                transient = role == "buffer" and isinstance(passing, set) and key in passing
                yield key, child, "transient" if transient else role
        for key, child, _ in children(node.state):
            if key not in _MODULE_DICTS:
                yield key, child, ""
        return
    yield from children(node.args)
    yield from children(node.kwargs)
    yield from children(node.items)
    for position, (key, child) in enumerate(node.pairs):
        yield key_text(key, position), child, ""
    yield from _state_children(node.state)


def _state_children(state: Any) -> Iterator[tuple[str, Any, str]]:
    """What a state holds; a state that is an object is a step of its own, since it may lead back to its owner."""
    if isinstance(state, (Mapping, list, tuple, set, frozenset)):
        yield from children(state)
    else:
        yield "state", state, ""


def is_container(node: Any) -> bool:
    """Whether a node may hold other nodes."""
    return isinstance(node, (Mapping, list, tuple, set, frozenset, Record)) or (
        isinstance(node, LazyTensor) and node.attributes is not None
    )


def _holding_tensors(root: Any, limits: Limits) -> set[int]:
    """Identities of the containers from which a tensor can be reached, so that nothing else is walked by path."""
    parents: dict[int, list[int]] = {}
    direct: list[int] = []
    seen = {id(root)}
    stack = [root]
    while stack:
        node = stack.pop()
        for _, child, _ in children(node):
            if as_tensor(child) is not None:
                direct.append(id(node))
            if is_container(child):
                parents.setdefault(id(child), []).append(id(node))
                if id(child) not in seen:
                    seen.add(id(child))
                    stack.append(child)
        if len(seen) > limits.nodes:
            raise UnsafeCheckpointError(f"more than {limits.nodes:,} containers; raise Limits.nodes to read it anyway")
    holding: set[int] = set()
    while direct:
        ident = direct.pop()
        if ident not in holding:
            holding.add(ident)
            direct.extend(parents.get(ident, ()))
    return holding


def leaves(root: Any, limits: Limits | None = None) -> list[Leaf]:
    """Every tensor of a tree under its dotted name, in the order of the file.

    A tensor that can be reached in two ways has two names. A container that contains itself is entered once a path.

    Raises:
        UnsafeCheckpointError: the tree is deeper or has more paths than the limits allow.
    """
    limits = limits or Limits()
    if as_tensor(root) is not None and not is_container(root):
        return [Leaf((), "", as_tensor(root), "")]
    if _is_flat(root, limits):
        return [Leaf((name,), name, tensor, "") for name, tensor in root.items()]
    holding = _holding_tensors(root, limits)
    found: list[tuple[tuple[str, ...], Any, str]] = []
    if as_tensor(root) is not None:
        found.append(((), as_tensor(root), ""))
    path: list[str] = []
    entered = {id(root)}
    stack: list[tuple[Any, Iterator[tuple[str, Any, str]]]] = [(root, children(root))]
    visited = written = again = 0
    known: set[int] = set()
    while stack:
        node, pending = stack[-1]
        step = next(pending, None)
        if step is None:
            stack.pop()
            entered.discard(id(node))
            if path:
                path.pop()
            continue
        key, child, role = step
        visited += 1
        if visited > limits.nodes:
            raise UnsafeCheckpointError(f"more than {limits.nodes:,} paths lead to tensors (Limits.nodes)")
        tensor = as_tensor(child)
        if tensor is not None:
            found.append(((*path, key), tensor, role))
            written += sum(map(len, path)) + len(path) + len(key)
            if written > limits.name_chars:
                raise UnsafeCheckpointError(f"names of more than {limits.name_chars:,} characters (Limits.name_chars)")
        if id(child) in holding and id(child) not in entered:
            if len(stack) >= limits.depth:
                raise UnsafeCheckpointError(f"tensors nested deeper than {limits.depth:,} containers (Limits.depth)")
            if id(child) in known:
                again += 1
                if again > limits.revisits:
                    raise UnsafeCheckpointError(
                        f"shared containers are reached by more than {limits.revisits:,} other paths (Limits.revisits)"
                    )
            known.add(id(child))
            path.append(key)
            entered.add(id(child))
            stack.append((child, children(child)))
    names = name_paths([item[0] for item in found])
    return [Leaf(path, name, tensor, role) for (path, tensor, role), name in zip(found, names, strict=True)]


def _is_flat(root: Any, limits: Limits) -> bool:
    """Whether it is a dict of names and tensors and nothing else, the usual state dict, which needs no walk."""
    return (
        type(root) in _PLAIN_DICTS
        and len(root) < limits.nodes
        and {*map(type, root.values())} <= _PLAIN_TENSORS
        and {*map(type, root)} <= {str}
        and sum(map(len, root)) <= limits.name_chars
    )


def records(root: Any, limits: Limits) -> Iterator[Record]:
    """Every record of a tree, once, before what is in it: whoever gets it may change it.

    Raises:
        UnsafeCheckpointError: there are more containers than the limits allow.
    """
    stack, seen = [root], {id(root)}
    while stack:
        node = stack.pop()
        if isinstance(node, Record):
            yield node
        for _, child, _ in children(node):
            if is_container(child) and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
        if len(seen) > limits.nodes:
            raise UnsafeCheckpointError(f"more than {limits.nodes:,} containers (Limits.nodes)")


def modules(root: Any, limits: Limits | None = None) -> list[tuple[str, Record]]:
    """Every pickled module of a tree with its dotted path; the root's path is empty."""
    limits = limits or Limits()
    found: list[tuple[str, Record]] = []
    trail: list[tuple[int, str]] = []  # (index of the parent, key) of each container; paths are joined on demand
    stack: list[tuple[int, str, Any]] = [(-1, "", root)]
    seen: set[int] = set()
    while stack:
        parent, key, node = stack.pop()
        if id(node) in seen or not is_container(node):
            continue
        seen.add(id(node))
        here = len(trail)
        trail.append((parent, key))
        if isinstance(node, Record) and node.is_module:
            found.append((_trail_path(trail, here, limits), node))
        below = [(here, key, child) for key, child, _ in children(node) if is_container(child)]
        stack.extend(reversed(below))
        if len(seen) > limits.nodes:
            raise UnsafeCheckpointError(f"more than {limits.nodes:,} containers (Limits.nodes)")
    return found


def _trail_path(trail: list[tuple[int, str]], at: int, limits: Limits) -> str:
    keys = []
    while trail[at][0] >= 0:
        parent, key = trail[at]
        keys.append(key)
        at = parent
        if len(keys) > limits.depth:
            raise UnsafeCheckpointError(f"modules nested deeper than {limits.depth:,} containers (Limits.depth)")
    return ".".join(reversed(keys))


def rebuild(root: Any, convert: Callable[[Any], Any]) -> Any:
    """A copy of a tree in which every tensor was replaced by `convert(tensor)`; sharing and cycles are kept.

    Mutable containers are made empty first and filled last, so that cycles, which always pass through one of
    them, close by themselves; tuples are built in between, innermost first.
    """
    built: dict[int, Any] = {}
    keep: list[Any] = []  # keeps identities valid while they are used as keys
    order = _reachable(root)
    for node in order:
        tensor = as_tensor(node)
        if tensor is not None:
            built[id(node)] = convert(tensor)
        elif not isinstance(node, (tuple, frozenset)) and is_container(node):
            built[id(node)] = _shell(node)
        keep.append(node)
    for node in order:
        if isinstance(node, (tuple, frozenset)):
            _build_tuple(node, built)
    for node in order:
        if as_tensor(node) is None and not isinstance(node, (tuple, frozenset)):
            _fill(node, built)
    return built.get(id(root), root)


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield key
            yield value
    elif isinstance(node, (list, tuple, set, frozenset)):
        yield from node
    elif isinstance(node, Record):
        yield from (node.cls, node.args, node.kwargs, node.state, node.items)
        for key, value in node.pairs:
            yield key
            yield value


def _reachable(root: Any) -> list[Any]:
    order, stack, seen = [], [root], set()
    while stack:
        node = stack.pop()
        if id(node) in seen or not (is_container(node) or as_tensor(node) is not None):
            continue
        seen.add(id(node))
        order.append(node)
        if as_tensor(node) is None:
            stack.extend(_parts(node))
    return order


def _shell(node: Any) -> Any:
    if isinstance(node, defaultdict):
        return defaultdict(node.default_factory)
    if isinstance(node, Record):
        return Record(node.cls, called=node.called)
    shell = type(node)() if type(node) in {dict, OrderedDict, Counter, list, set} else {}
    metadata = getattr(node, "_metadata", None)
    if metadata is not None and isinstance(shell, OrderedDict):
        shell._metadata = metadata  # type: ignore[attr-defined]
    return shell


def _build_tuple(node: Any, built: dict[int, Any]) -> None:
    stack = [node]
    while stack:
        top = stack[-1]
        if id(top) in built:
            stack.pop()
            continue
        waiting = [part for part in top if isinstance(part, (tuple, frozenset)) and id(part) not in built]
        if waiting:
            stack.extend(waiting)
            continue
        parts = [built.get(id(part), part) for part in top]
        built[id(top)] = top if all(a is b for a, b in zip(parts, top, strict=True)) else type(top)(parts)
        stack.pop()


def _fill(node: Any, built: dict[int, Any]) -> None:
    def get(part: Any) -> Any:
        return built.get(id(part), part)

    target: Any = built.get(id(node))
    if isinstance(node, Mapping):
        for key, value in node.items():
            target[get(key)] = get(value)
    elif isinstance(node, list):
        target.extend(get(part) for part in node)
    elif isinstance(node, set):
        target.update(get(part) for part in node)
    elif isinstance(node, Record):
        target.args, target.kwargs = get(node.args), get(node.kwargs)
        target.state, target.items = get(node.state), get(node.items)
        target.pairs = [(get(key), get(value)) for key, value in node.pairs]


def first_record(root: Any) -> tuple[str, Record | Global] | None:
    """The first object of a tree that is no plain value but a record or a bare name, and its dotted path."""
    trail: list[tuple[int, str]] = []
    stack: list[tuple[int, str, Any]] = [(-1, "", root)]
    seen: set[int] = set()
    while stack:
        parent, key, node = stack.pop()
        here = len(trail)
        trail.append((parent, key))
        if isinstance(node, (Record, Global)) and as_tensor(node) is None:
            return _trail_path(trail, here, Limits()), node
        if id(node) in seen or not is_container(node) or as_tensor(node) is not None:
            continue
        seen.add(id(node))
        stack.extend(reversed([(here, key, child) for key, child, _ in children(node)]))
    return None
