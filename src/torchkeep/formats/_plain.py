"""The plain Python values a pickle may really make, each bounded in what making and hashing it can cost."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ..core.limits import Limits
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import CorruptCheckpointError, UnsafeCheckpointError
from . import _numpy

_FREE_KEYS = frozenset({str, bytes, bool, type(None)})
_PLAIN_LEAVES = frozenset({str, bytes, bool, type(None), int, float, complex, torch.dtype, torch.device, Global})
_WIDE = 1 << 60  # integers below hash to themselves, so they collide no more than a dict expects
_KEY_DEPTH = 50  # hashing nested tuples recurses in C without a check of its own
_SAME_HASH = 200  # different keys of one dict with one hash; more is an attack on the dict
_DEVICE = re.compile(r"[a-z]{1,20}(:\d{1,4})?")
_CODECS = frozenset({"latin1", "latin-1", "utf-8", "utf8", "ascii"})


class Meter:
    """Counts the work that single opcodes hide: copies, and the hashing of dictionary keys."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.opcodes
        self._same: dict[tuple[int, int], int] = {}

    def charge(self, amount: int) -> None:
        """Count work; raises UnsafeCheckpointError when there was too much of it."""
        self._left -= amount
        if self._left < 0:
            raise UnsafeCheckpointError(
                f"copies more than {self._limits.opcodes:,} elements (Limits.opcodes)",
                hint="no real checkpoint is known to do this; do not use the file",
            )

    def key(self, key: Any, target: Any) -> None:
        """Check that a key of a dict or a member of a set is plain and cheap to hash."""
        kind = type(key)
        if kind in _FREE_KEYS or (kind is int and -_WIDE < key < _WIDE):
            return
        if isinstance(key, (Record, LazyTensor, Global)):  # hashed by identity, or by two strings
            return
        self._bound(key)
        if key not in target:
            slot = (id(target), hash(key))
            self._same[slot] = count = self._same.get(slot, 0) + 1
            if count > _SAME_HASH:
                raise UnsafeCheckpointError(f"has a dictionary with more than {_SAME_HASH} keys of one hash")

    def _bound(self, key: Any) -> None:
        """Count the leaves of a key with repetition: hashing shared tuples takes exponential time."""
        stack, count = [(key, 0)], 0
        while stack:
            node, depth = stack.pop()
            count += 1
            if isinstance(node, (tuple, frozenset)):
                if count + len(node) > self._limits.key_leaves or depth > _KEY_DEPTH:
                    raise UnsafeCheckpointError(
                        f"has a dictionary key of more than {self._limits.key_leaves:,} leaves or {_KEY_DEPTH} levels",
                        hint="raise Limits.key_leaves if the file is to be trusted",
                    )
                stack.extend((part, depth + 1) for part in node)
            elif type(node) is int:
                count += node.bit_length() >> 9
            elif type(node) not in _PLAIN_LEAVES and not isinstance(node, (Record, LazyTensor, np.number, np.bool_)):
                raise CorruptCheckpointError(f"uses a {type(node).__name__} as a dictionary key")
            if count > self._limits.key_leaves:
                raise UnsafeCheckpointError(f"has a dictionary key of more than {self._limits.key_leaves:,} leaves")
        self.charge(count)


def set_items(meter: Meter, target: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Put pairs into a dict or beside a record; anything else cannot be assigned to."""
    kind = type(target)
    if kind is Record:
        target.pairs.extend(pairs)
    elif kind in {dict, OrderedDict, defaultdict, Counter}:
        for key, value in pairs:
            meter.key(key, target)
            target[key] = value
    else:
        raise CorruptCheckpointError(f"assigns an item of a {_kind(target)}, which no genuine file does")


def add_items(meter: Meter, target: Any, members: list[Any]) -> None:
    """Put members into a set, or beside a record."""
    if type(target) is Record:
        target.items.extend(members)
    elif type(target) is set:
        for member in members:
            meter.key(member, target)
            target.add(member)
    else:
        raise CorruptCheckpointError(f"adds members to a {_kind(target)}, which no genuine file does")


def append_items(target: Any, items: list[Any]) -> None:
    """Append to a list, or beside a record."""
    if type(target) is list:
        target.extend(items)
    elif type(target) is Record:
        target.items.extend(items)
    else:
        raise CorruptCheckpointError(f"appends to a {_kind(target)}, which no genuine file does")


def _kind(value: Any) -> str:
    return "tensor or storage" if isinstance(value, LazyTensor) else type(value).__name__


def frozen(meter: Meter, members: list[Any]) -> frozenset[Any]:
    """A frozenset of checked members."""
    whole: set[Any] = set()
    add_items(meter, whole, members)
    return frozenset(whole)


def _copied(meter: Meter, values: Any) -> list[Any]:
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise CorruptCheckpointError(f"makes a container of a {_kind(values)}")
    meter.charge(len(values))
    return list(values)


def _pairs(meter: Meter, values: Any) -> list[tuple[Any, Any]]:
    if isinstance(values, dict):
        meter.charge(len(values))
        return list(values.items())
    pairs = _copied(meter, values)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise CorruptCheckpointError("makes a dictionary of something else than pairs")
    return [(pair[0], pair[1]) for pair in pairs]


def _mapping(kind: type[Any]) -> Callable[..., Any]:
    def build(meter: Meter, values: Any = ()) -> Any:
        out = kind()
        if type(values) is tuple and not values:  # the empty dictionary of hooks that comes with every tensor
            return out
        set_items(meter, out, _pairs(meter, values))
        return out

    return build


def _list(meter: Meter, values: Any = ()) -> Any:
    return _copied(meter, values)


def _tuple(meter: Meter, values: Any = ()) -> Any:
    return tuple(_copied(meter, values))


def _set(meter: Meter, values: Any = ()) -> Any:
    out: set[Any] = set()
    add_items(meter, out, _copied(meter, values))
    return out


def _frozenset(meter: Meter, values: Any = ()) -> Any:
    return frozen(meter, _copied(meter, values))


def _bytes(meter: Meter, *args: Any) -> Any:
    return NotImplemented if args else b""


def _bytearray(meter: Meter, value: Any = b"", codec: Any = None) -> Any:
    if isinstance(value, str) and codec in _CODECS:
        value = value.encode(codec)
    if not isinstance(value, (bytes, bytearray)):
        return NotImplemented
    meter.charge(len(value) // 8)
    return bytearray(value)


def _encode(meter: Meter, text: Any, codec: Any = "utf-8") -> Any:
    if not isinstance(text, str) or codec not in _CODECS:
        return NotImplemented
    meter.charge(len(text) // 8)
    return text.encode(codec)


def _complex(meter: Meter, real: Any = 0.0, imag: Any = 0.0) -> Any:
    if not all(type(part) in {int, float} for part in (real, imag)):
        return NotImplemented
    return complex(real, imag)


def _default_dict(meter: Meter, factory: Any = None, *rest: Any) -> Any:
    if factory is None:
        return defaultdict(None)
    known = _FACTORIES.get(factory) if type(factory) is Global else None
    return NotImplemented if known is None or rest else defaultdict(known)


def _size(meter: Meter, values: Any = ()) -> Any:
    sizes = _copied(meter, values)
    if not all(type(size) is int and abs(size) < 1 << 62 for size in sizes):
        return NotImplemented
    return torch.Size(sizes)


def _device(meter: Meter, name: Any = "", index: Any = None) -> Any:
    """A device; one that this torch does not know stays a record."""
    text = f"{name}:{index}" if index is not None else name
    if not isinstance(text, str) or not _DEVICE.fullmatch(text):
        return NotImplemented
    try:
        return torch.device(text)
    except RuntimeError:
        return NotImplemented


def _reconstructor(meter: Meter, cls: Any, base: Any, state: Any) -> Any:
    """What protocols 0 and 1 write for an object of a Python class."""
    return Record(cls, () if base in _OBJECT else (state,))


_OBJECT = {Global("builtins", "object"), Global("__builtin__", "object")}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "bytearray": _bytearray,
    "bytes": _bytes,
    "complex": _complex,
    "dict": _mapping(dict),
    "frozenset": _frozenset,
    "list": _list,
    "set": _set,
    "tuple": _tuple,
}
_FACTORIES: dict[Global, type[Any]] = {
    Global(module, kind.__name__): kind
    for module in ("builtins", "__builtin__")
    for kind in (list, dict, set, tuple, int, float, str, bool)
}

PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, name): build for module in ("builtins", "__builtin__") for name, build in _BUILTINS.items()},
    ("collections", "OrderedDict"): _mapping(OrderedDict),
    ("collections", "Counter"): _mapping(Counter),
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
    **_numpy.BUILDERS,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
"""The names that make plain values; each builder gets the meter first and may answer NotImplemented: keep a record."""

FINISHED = _numpy.FINISHERS
"""Records that are replaced by a value once their state is known; each gets the meter first, None keeps the record."""
