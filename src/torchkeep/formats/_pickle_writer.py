"""Plain values as a pickle, in those opcodes of protocol 2 alone that torch.load(weights_only=True) reads.

Nothing recurses, so values may be nested as deeply as a file can nest them.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ..core.tensors import LazyTensor
from ..core.tree import Record
from ..errors import UnsavableError
from ._torch_versions import TODAY, TorchVersion

_PROTO, _STOP, _MARK = b"\x80\x02", b".", b"("
_NONE, _TRUE, _FALSE = b"N", b"\x88", b"\x89"
_REDUCE, _BUILD, _PERSISTENT = b"R", b"b", b"Q"
_EMPTY_TUPLE, _TUPLE, _SHORT_TUPLES = b")", b"t", (b"\x85", b"\x86", b"\x87")
_EMPTY_LIST, _APPEND, _APPENDS, _EMPTY_DICT, _SETITEM, _SETITEMS = b"]", b"a", b"e", b"}", b"s", b"u"
_BATCH = 1000
_LONG_BYTES = 255
_TEXT_BYTES = (1 << 32) - 1

_Emission = Generator[Any, None, None]


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the reader looks up: `torch float32`."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the reader makes; of equal ones that give one object, such as a layout, `once` makes one."""

    function: Name
    args: tuple[Any, ...]
    once: bool = False


@dataclass(frozen=True, slots=True)
class Persistent:
    """Something that lies outside of the pickle, by what the reader is told to find it."""

    ident: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unhashable:
    """A key whose parts have stand-ins that could be no keys: a frozenset, an object."""

    value: Any


_ORDERED, _COUNTER = Name("collections", "OrderedDict"), Name("collections", "Counter")
_SET, _COMPLEX, _BYTEARRAY = Name("builtins", "set"), Name("builtins", "complex"), Name("builtins", "bytearray")
_ENCODE = Name("_codecs", "encode")


def write_pickle(
    root: Any,
    tensor: Callable[[LazyTensor], tuple[object, Call]],
    other: Callable[[Any], Any],
    version: TorchVersion = TODAY,
) -> bytes:
    """Plain values and tensors as a pickle; what was shared stays shared, cycles stay cycles.

    Args:
        root: None, bool, int, float, complex, str, bytes, bytearray, dtype, device, Size, list, tuple, set, dict,
            OrderedDict (with its `_metadata`), Counter, lazy tensors, and the names and calls of this module.
        tensor: from a lazy tensor to a key, equal for tensors that are one, and the call that makes it.
        other: what to write in the place of any other value, or of a tuple inside of itself: one of these, or another
            such value. For one value it answers the same object each time.
        version: of torch, for whose unpickler this is; dtypes that it does not have are other values.

    Raises:
        UnsavableError: a value is none of these, or larger than a pickle of this kind can say.
    """
    writer = _Writer(tensor, other, version)
    stack: list[Iterator[Any]] = [writer.emit(root)]
    while stack:
        for child in stack[-1]:
            if not writer.scalar(child):
                stack.append(writer.emit(child))
                break
        else:
            stack.pop()
    return bytes(_PROTO + writer.out + _STOP)


class _Writer:
    def __init__(
        self,
        tensor: Callable[[LazyTensor], tuple[object, Call]],
        other: Callable[[Any], Any],
        version: TorchVersion,
    ) -> None:
        self.out = bytearray()
        self._version = version
        self._tensor = tensor
        self._other = other
        self._memo: dict[object, int] = {}
        self._open: set[object] = set()
        self._keep: list[Any] = []  # keeps identities valid while they are keys of the memo
        self._containers: dict[type[Any], Callable[[Any], _Emission]] = {
            list: self._list,
            tuple: self._tuple,
            dict: self._dict,
            OrderedDict: self._ordered,
            Counter: self._counter,
            set: self._set,
            bytearray: lambda value: self._call(Call(_BYTEARRAY, (bytes(value),))),
            Call: self._call,
        }

    def emit(self, value: Any) -> _Emission:
        """Write a value; each child is written, by whoever runs this, before it goes on."""
        if self.scalar(value):
            return
        if isinstance(value, LazyTensor):
            key, call = self._tensor(value)
            yield from self._once(("tensor", key), value, self._call(call))
            return
        if type(value) is Persistent:
            yield from self._bare(value.ident)
            self.out += _PERSISTENT
            return
        made = self._containers.get(type(value))
        if made is None:
            yield from self.emit(self._other(value))  # known by itself from now on, so that cycles close
            return
        if type(value) is Call and not value.once:
            yield from self._call(value)
            self._number()
        elif type(value) is Call:
            yield from self._once(value, value, self._call(value))
        else:
            yield from self._once(id(value), value, made(value))

    def scalar(self, value: Any) -> bool:
        """Write a value that holds no others; False where it is no such value."""
        kind = type(value)
        if value is None or kind is bool:
            self.out += _NONE if value is None else _TRUE if value else _FALSE
        elif kind is int:
            return self._int(value)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", value)
        elif kind is str:
            self._text(value)
        elif kind is bytes:
            self._whole(Call(_ENCODE, (value.decode("latin1"), "latin1")))
        elif kind is complex:
            self._whole(Call(_COMPLEX, (value.real, value.imag)))
        elif kind is torch.dtype:
            if not self._version.has_dtype(value):
                return False
            self._name(Name("torch", str(value).removeprefix("torch.")))
        elif kind is torch.device:
            self._whole(Call(Name("torch", "device"), (str(value),)))
        elif kind is torch.Size:
            self._whole(Call(Name("torch", "Size"), (tuple(value),)))
        elif kind is Name:
            self._name(value)
        else:
            return False
        return True

    def _int(self, value: int) -> bool:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            nbytes = value.bit_length() // 8 + 1
            if nbytes > _LONG_BYTES:
                return False
            self.out += b"\x8a" + bytes([nbytes]) + value.to_bytes(nbytes, "little", signed=True)
        return True

    def _text(self, value: str) -> None:
        if self._known(value):
            return
        data = value.encode("utf-8", "surrogatepass")
        if len(data) > _TEXT_BYTES:
            raise UnsavableError(f"a text of {len(data):,} bytes cannot be written for torch.load")
        self.out += b"X" + struct.pack("<I", len(data)) + data
        if len(data) < 200 or self._version.exact:
            self._remember(value)

    def _name(self, name: Name) -> None:
        if not self._known(name):
            module = self._version.builtins if name.module == "builtins" else name.module
            self.out += f"c{module}\n{name.name}\n".encode()
            self._remember(name)

    def _whole(self, call: Call) -> None:
        """A call whose arguments are scalars, or a tuple of them."""
        self._name(call.function)
        for arg in call.args:
            if type(arg) is tuple:
                self.out += _MARK
                for part in arg:
                    self.scalar(part)
                self.out += _TUPLE
            else:
                self.scalar(arg)
        self._close_tuple(len(call.args))
        self._number()
        self.out += _REDUCE
        self._number()

    def _close_tuple(self, count: int) -> None:
        self.out += _SHORT_TUPLES[count - 1] if 1 <= count <= 3 else _TUPLE

    def _known(self, key: object) -> bool:
        index = self._memo.get(key)
        if index is not None:
            self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        return index is not None

    def _remember(self, key: object) -> None:
        index = self._memo[key] = len(self._memo)
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def _number(self) -> None:
        """Count an object that nobody refers to again, as the pickler of Python does."""
        if self._version.exact:
            self._remember(object())

    def _once(self, key: object, value: Any, emission: _Emission) -> _Emission:
        if not self._known(key):
            if key in self._open:
                yield from self.emit(self._other(value))
                return
            self._keep.append(value)
            self._open.add(key)
            yield from emission
            self._open.discard(key)
            if key not in self._memo:
                self._remember(key)

    def _call(self, call: Call) -> _Emission:
        self._name(call.function)
        yield from self._bare(call.args)
        self.out += _REDUCE

    def _bare(self, values: tuple[Any, ...]) -> _Emission:
        """A tuple that nobody refers to again; arguments may be tuples of numbers, which stay bare as well."""
        if not values:
            self.out += _EMPTY_TUPLE
            return
        if len(values) > 3:
            self.out += _MARK
        for value in values:
            if type(value) is tuple:
                yield from self._bare(value)
            else:
                yield value
        self._close_tuple(len(values))
        self._number()

    def _tuple(self, value: tuple[Any, ...]) -> _Emission:
        if not value:
            self.out += _EMPTY_TUPLE
            return
        if len(value) > 3:
            self.out += _MARK
        yield from value
        self._close_tuple(len(value))

    def _list(self, value: list[Any]) -> _Emission:
        self.out += _EMPTY_LIST
        self._remember(id(value))
        yield from self._appended(value)

    def _appended(self, values: Iterable[Any]) -> _Emission:
        source = iter(values)
        while batch := list(islice(source, _BATCH)):
            self.out += _MARK if len(batch) > 1 else b""
            yield from batch
            self.out += _APPENDS if len(batch) > 1 else _APPEND

    def _dict(self, value: dict[Any, Any]) -> _Emission:
        self.out += _EMPTY_DICT
        self._remember(id(value))
        yield from self._items(value)

    def _ordered(self, value: OrderedDict[Any, Any]) -> _Emission:
        self._name(_ORDERED)
        self.out += _EMPTY_TUPLE + _REDUCE
        self._remember(id(value))
        yield from self._items(value)
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:
            yield {"_metadata": metadata}
            self.out += _BUILD

    def _counter(self, value: Counter[Any]) -> _Emission:
        self._name(_COUNTER)
        self.out += _EMPTY_TUPLE + _REDUCE
        self._remember(id(value))
        yield from self._items(value)

    def _items(self, value: dict[Any, Any]) -> _Emission:
        source = iter(value.items())
        while batch := list(islice(source, _BATCH)):
            self.out += _MARK if len(batch) > 1 else b""
            for key, child in batch:
                yield self._key(key)
                yield child
            self.out += _SETITEMS if len(batch) > 1 else _SETITEM

    def _set(self, value: set[Any]) -> _Emission:
        self._name(_SET)
        self.out += _EMPTY_LIST
        self._number()
        yield from self._appended(map(self._key, value))
        self._close_tuple(1)
        self._number()
        self.out += _REDUCE

    def _key(self, value: Any) -> Any:
        """A key of a dict, or a member of a set, that can be one again where it is read."""
        stack = [value]
        while stack:
            node = stack.pop()
            if type(node) is tuple:
                stack.extend(node)
            elif isinstance(node, frozenset) or (isinstance(node, Record) and node.tensor is None):
                return self._other(Unhashable(value))
        return value
