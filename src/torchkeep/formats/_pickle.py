"""The inert unpickler, the one trust boundary: it reads pickle streams as data and runs nothing.

One table of opcodes for protocols 0 to 5. A name in the stream becomes a `Global`, which is only a name; what the
stream would call becomes a `Record` of the call, unless the name is one of a short list of builders that this
package wrote itself. The pickle module is not used, nothing is imported, and no attribute is looked up by a name
from the file. Every length is compared with the bytes that are left before anything is read or allocated.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..core.limits import Limits
from ..core.tree import Global, Record
from ..errors import CorruptCheckpointError, OpenError, UnsafeCheckpointError
from ._plain import FINISHED, PLAIN, Meter, add_items, append_items, frozen, set_items

_NAME_BYTES = 1 << 16


class TruncatedStreamError(CorruptCheckpointError):
    """The stream ended before its STOP opcode. A reader that has more bytes goes on; callers never see this class."""


@contextmanager
def truncation_is_corruption() -> Iterator[None]:
    """Turn what is left of TruncatedStreamError into the public error; usable as a decorator."""
    try:
        yield
    except TruncatedStreamError as error:
        public = CorruptCheckpointError(error.message, file=error.file, place=error.place, hint=error.hint)
        public.findings = error.findings
        raise public from None


@dataclass(slots=True)
class Use:
    """Where a name first stands in a stream, and the most that the stream does with it: named, made or called."""

    position: int
    stream: str = ""
    how: str = "named"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a reader knows beyond plain Python values.

    Attributes:
        persistent: turns a persistent id (a tuple, or the text of one) into an object.
        builders: (module, name) -> what stands in for that function; may answer NotImplemented to keep a record.
        constants: (module, name) -> a value that name stands for.
        finishers: (module, name) -> what to do with a record of that class once its state is known.
    """

    persistent: Callable[[Any], Any] | None = None
    builders: Mapping[tuple[str, str], Callable[..., Any]] = field(default_factory=dict)
    constants: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    finishers: Mapping[tuple[str, str], Callable[[Record], None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unpickled:
    """A value read from a stream, where the stream ended, and every name that stood in it."""

    value: Any
    end: int
    globals: dict[Global, Use]


def unpickle(
    data: bytes,
    start: int,
    dialect: Dialect,
    limits: Limits,
    *,
    file: str = "",
    stream: str = "pickle",
    base: int = 0,
    seen: dict[Global, Use] | None = None,
) -> Unpickled:
    """Read one pickle stream without running anything.

    Args:
        data: bytes that hold the stream, and perhaps more.
        start: where in them the stream begins.
        dialect: what is known beyond plain Python values.
        limits: bounds on the work.
        file, stream, base: for error messages; `base` is where `data` begins in the stream's file.
        seen: a dict to collect the names in, which is of use when reading fails.

    Raises:
        TruncatedStreamError: the stream has no end.
        CorruptCheckpointError: it is no valid pickle.
        UnsafeCheckpointError: it exceeds the limits.
    """
    seen = {} if seen is None else seen
    machine = _Machine(data, start, dialect, limits, stream, base, seen)
    try:
        value = machine.run()
    except OpenError as error:
        error.file = error.file or file
        error.place = error.place or f"{stream}, byte {base + machine.at}"
        raise
    return Unpickled(value, machine.pos, seen)


class _Stop(Exception):
    """Ends the loop; it is no error."""


@dataclass(slots=True)
class _Known:
    """A name that was met: how it is used, and what stands in for it."""

    use: Use
    builder: Callable[..., Any] | None


class _Machine:
    """The state of one reading: position, stack, the stacks below the marks, memo."""

    __slots__ = (
        "alive",
        "at",
        "base",
        "below",
        "data",
        "dialect",
        "found",
        "known",
        "limits",
        "memo",
        "meter",
        "pos",
        "replaced",
        "seen",
        "size",
        "stack",
        "stream",
    )

    def __init__(
        self,
        data: bytes,
        start: int,
        dialect: Dialect,
        limits: Limits,
        stream: str,
        base: int,
        seen: dict[Global, Use],
    ) -> None:
        self.data = data
        self.size = len(data)
        self.pos = self.at = start
        self.dialect = dialect
        self.limits = limits
        self.stream = stream
        self.base = base
        self.seen = seen
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.meter = Meter(limits)
        self.found: dict[tuple[str, str], Any] = {}
        self.known: dict[int, _Known] = {}  # by identity, so that a call need not hash
        self.alive: list[Any] = []  # which keeps the identities valid
        self.replaced: dict[int, Any] = {}  # records that the memo still has, and the values that they became

    def run(self) -> Any:
        data, handlers = self.data, _HANDLERS
        try:
            for _ in range(self.limits.opcodes):
                self.at = at = self.pos
                self.pos = at + 1
                handlers[data[at]](self)
        except _Stop:
            return self.stack.pop()
        except OpenError:
            raise
        except IndexError as error:
            if self.pos >= self.size:
                raise self.truncated() from error
            raise CorruptCheckpointError("takes a value from an empty stack") from error
        except KeyError as error:
            raise CorruptCheckpointError(f"refers to value {error} that it never stored") from error
        except MemoryError as error:
            raise UnsafeCheckpointError("needs more memory than there is") from error
        except (ValueError, TypeError, OverflowError, struct.error, RecursionError) as error:
            raise CorruptCheckpointError(f"is no valid pickle: {error}") from error
        raise UnsafeCheckpointError(f"has more than {self.limits.opcodes:,} pickle opcodes (Limits.opcodes)")

    def truncated(self) -> TruncatedStreamError:
        return TruncatedStreamError(
            "is truncated: the pickle has no end", hint="fetch or copy the file again and compare its size"
        )

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self.pos
        end = start + count
        if count < 0:
            raise CorruptCheckpointError(f"declares a length of {count}")
        if end > self.size:
            self.pos = self.size
            raise self.truncated()
        self.pos = end
        return self.data[start:end]

    def line(self, longest: int) -> bytes:
        """The rest of a text line."""
        start = self.pos
        end = self.data.find(b"\n", start, start + longest + 1)
        if end < 0:
            if start + longest >= self.size:
                self.pos = self.size
                raise self.truncated()
            raise UnsafeCheckpointError(f"has a line of more than {longest:,} bytes")
        self.pos = end + 1
        return self.data[start:end]

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        if not self.below:
            raise CorruptCheckpointError("closes a group that it never opened")
        items = self.stack
        self.stack = self.below.pop()
        return items

    def remember(self, index: int) -> None:
        if not 0 <= index <= self.limits.memo:
            raise UnsafeCheckpointError(f"stores value number {index:,}; Limits.memo allows {self.limits.memo:,}")
        self.memo[index] = self.stack[-1]

    def find(self, module: Any, name: Any) -> Any:
        """The Global of a name, or the constant it stands for."""
        found = self.found.get((module, name))
        return self._meet(module, name) if found is None else found

    def _meet(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise CorruptCheckpointError("names a class by something else than two strings")
        key = (module, name)
        named = Global(module, name)
        use = self.seen.setdefault(named, Use(self.base + self.at, self.stream))
        builder = self.dialect.builders.get(key)
        if builder is None and key in PLAIN:
            builder = partial(PLAIN[key], self.meter)
        self.known[id(named)] = _Known(use, builder)
        self.alive.append(named)
        self.found[key] = found = self.dialect.constants.get(key, named)
        return found

    def finish(self, record: Record) -> None:
        """A record got its state: it may become something else, here and wherever it is recalled."""
        key = (record.cls.module, record.cls.name)
        finisher = self.dialect.finishers.get(key)
        if finisher is not None:
            finisher(record)
        elif key in FINISHED:
            value = FINISHED[key](self.meter, record)
            if value is not None:
                self.alive.append(record)
                self.replaced[id(record)] = self.stack[-1] = value

    def make(self, callee: Any, args: Any, how: str, kwargs: dict[Any, Any] | None = None) -> Any:
        """What a call in the stream comes to: the answer of a builder, or a record of the call."""
        if type(args) is not tuple:
            raise CorruptCheckpointError("calls something with arguments that are no tuple")
        known = self.known.get(id(callee))
        if known is not None:
            if known.use.how != "called":
                known.use.how = how
            if known.builder is not None and not kwargs:
                made = known.builder(*args)
                if made is not NotImplemented:
                    return made
        return Record(callee, args, kwargs or {}, called=how == "called")


_Handler = Callable[[_Machine], None]


def _unknown(m: _Machine) -> None:
    raise CorruptCheckpointError(f"has byte {m.data[m.at]:#04x} where a pickle opcode should be")


_HANDLERS: list[_Handler] = [_unknown] * 256


def _op(code: bytes) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        _HANDLERS[code[0]] = handler
        return handler

    return register


def _constant(code: bytes, value: Any) -> None:
    def push(m: _Machine) -> None:
        m.stack.append(value)

    _HANDLERS[code[0]] = push


# Frame and stack


@_op(b"\x80")
def _proto(m: _Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise CorruptCheckpointError(f"is a pickle of protocol {version}; there are 0 to 5")


@_op(b"\x95")
def _frame(m: _Machine) -> None:
    (length,) = struct.unpack("<Q", m.take(8))
    if length > m.size - m.pos:
        raise m.truncated()


@_op(b".")
def _stop(m: _Machine) -> None:
    if not m.stack:
        raise CorruptCheckpointError("ends without a value")
    raise _Stop


@_op(b"(")
def _mark(m: _Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


@_op(b"0")
def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


@_op(b"1")
def _pop_to_mark(m: _Machine) -> None:
    m.pop_mark()


@_op(b"2")
def _dup(m: _Machine) -> None:
    m.stack.append(m.stack[-1])


# Memo


@_op(b"q")
def _binput(m: _Machine) -> None:
    pos = m.pos
    m.memo[m.data[pos]] = m.stack[-1]
    m.pos = pos + 1


@_op(b"r")
def _long_binput(m: _Machine) -> None:
    pos = m.pos
    m.pos = end = pos + 4
    index = int.from_bytes(m.data[pos:end], "little")
    if index > m.limits.memo:
        m.remember(index)
    m.memo[index] = m.stack[-1]


@_op(b"p")
def _put(m: _Machine) -> None:
    m.remember(int(m.line(20)))


@_op(b"\x94")
def _memoize(m: _Machine) -> None:
    m.remember(len(m.memo))


@_op(b"h")
def _binget(m: _Machine) -> None:
    pos = m.pos
    value = m.memo[m.data[pos]]
    m.stack.append(m.replaced.get(id(value), value) if type(value) is Record else value)
    m.pos = pos + 1


@_op(b"j")
def _long_binget(m: _Machine) -> None:
    pos = m.pos
    m.pos = end = pos + 4
    value = m.memo[int.from_bytes(m.data[pos:end], "little")]
    m.stack.append(m.replaced.get(id(value), value) if type(value) is Record else value)


@_op(b"g")
def _get(m: _Machine) -> None:
    value = m.memo[int(m.line(20))]
    m.stack.append(m.replaced.get(id(value), value) if type(value) is Record else value)


# Numbers

_constant(b"N", None)
_constant(b"\x88", True)
_constant(b"\x89", False)


@_op(b"K")
def _binint1(m: _Machine) -> None:
    pos = m.pos
    m.stack.append(m.data[pos])
    m.pos = pos + 1


@_op(b"M")
def _binint2(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(2), "little"))


@_op(b"J")
def _binint(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(4), "little", signed=True))


@_op(b"\x8a")
def _long1(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(m.take(1)[0]), "little", signed=True))


@_op(b"\x8b")
def _long4(m: _Machine) -> None:
    length = int.from_bytes(m.take(4), "little", signed=True)
    if length > m.limits.integer_bytes:
        raise UnsafeCheckpointError(f"has an integer of {length:,} bytes (Limits.integer_bytes)")
    m.stack.append(int.from_bytes(m.take(length), "little", signed=True))


def _integer(text: bytes) -> int:
    if not re.fullmatch(rb"[+-]?\d+L?", text):
        raise CorruptCheckpointError(f"has {text[:40]!r} where an integer should be")
    return int(text.removesuffix(b"L"))


@_op(b"I")
def _int(m: _Machine) -> None:
    text = m.line(m.limits.integer_bytes)
    m.stack.append({b"00": False, b"01": True}[text] if text in {b"00", b"01"} else _integer(text))


@_op(b"L")
def _long(m: _Machine) -> None:
    m.stack.append(_integer(m.line(m.limits.integer_bytes)))


@_op(b"F")
def _float(m: _Machine) -> None:
    m.stack.append(float(m.line(400)))


@_op(b"G")
def _binfloat(m: _Machine) -> None:
    m.stack.append(struct.unpack(">d", m.take(8))[0])


# Text and bytes


def _python2(raw: bytes) -> str | bytes:
    """A Python 2 string is text when it can be, because it was a name far more often than data."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found[1]
    if code[:1] == b"x":
        return bytes([int(code[1:], 16)])
    if code.isdigit():
        return bytes([int(code, 8) & 255])
    return {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}.get(code, code)


@_op(b"S")
def _string(m: _Machine) -> None:
    quoted = m.line(m.size).strip()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in {b"'", b'"'}:
        raise CorruptCheckpointError("has a string without quotes")
    m.stack.append(_python2(re.sub(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", _unescape, quoted[1:-1])))


@_op(b"T")
def _binstring(m: _Machine) -> None:
    m.stack.append(_python2(m.take(int.from_bytes(m.take(4), "little", signed=True))))


@_op(b"U")
def _short_binstring(m: _Machine) -> None:
    m.stack.append(_python2(m.take(m.take(1)[0])))


@_op(b"V")
def _unicode(m: _Machine) -> None:
    m.stack.append(m.line(m.size).decode("raw-unicode-escape"))


@_op(b"\x8c")
def _short_binunicode(m: _Machine) -> None:
    m.stack.append(m.take(m.take(1)[0]).decode("utf-8", "surrogatepass"))


@_op(b"X")
def _binunicode(m: _Machine) -> None:
    m.stack.append(m.take(int.from_bytes(m.take(4), "little")).decode("utf-8", "surrogatepass"))


@_op(b"\x8d")
def _binunicode8(m: _Machine) -> None:
    m.stack.append(m.take(int.from_bytes(m.take(8), "little")).decode("utf-8", "surrogatepass"))


@_op(b"C")
def _short_binbytes(m: _Machine) -> None:
    m.stack.append(m.take(m.take(1)[0]))


@_op(b"B")
def _binbytes(m: _Machine) -> None:
    m.stack.append(m.take(int.from_bytes(m.take(4), "little")))


@_op(b"\x8e")
def _binbytes8(m: _Machine) -> None:
    m.stack.append(m.take(int.from_bytes(m.take(8), "little")))


@_op(b"\x96")
def _bytearray8(m: _Machine) -> None:
    m.stack.append(bytearray(m.take(int.from_bytes(m.take(8), "little"))))


# Containers


@_op(b")")
def _empty_tuple(m: _Machine) -> None:
    m.stack.append(())


@_op(b"t")
def _tuple(m: _Machine) -> None:
    items = tuple(m.pop_mark())
    m.stack.append(items)


@_op(b"\x85")
def _tuple1(m: _Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


@_op(b"\x86")
def _tuple2(m: _Machine) -> None:
    stack = m.stack
    last = stack.pop()
    stack[-1] = (stack[-1], last)


@_op(b"\x87")
def _tuple3(m: _Machine) -> None:
    stack = m.stack
    last, middle = stack.pop(), stack.pop()
    stack[-1] = (stack[-1], middle, last)


@_op(b"]")
def _empty_list(m: _Machine) -> None:
    m.stack.append([])


@_op(b"l")
def _list(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(items)


@_op(b"}")
def _empty_dict(m: _Machine) -> None:
    m.stack.append({})


def _paired(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise CorruptCheckpointError("has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


@_op(b"d")
def _dict(m: _Machine) -> None:
    pairs = _paired(m.pop_mark())
    out: dict[Any, Any] = {}
    set_items(m.meter, out, pairs)
    m.stack.append(out)


@_op(b"\x8f")
def _empty_set(m: _Machine) -> None:
    m.stack.append(set())


@_op(b"\x91")
def _frozenset(m: _Machine) -> None:
    members = m.pop_mark()
    m.stack.append(frozen(m.meter, members))


@_op(b"a")
def _append(m: _Machine) -> None:
    item = m.stack.pop()
    append_items(m.stack[-1], [item])


@_op(b"e")
def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    append_items(m.stack[-1], items)


@_op(b"s")
def _setitem(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    set_items(m.meter, m.stack[-1], [(key, value)])


@_op(b"u")
def _setitems(m: _Machine) -> None:
    pairs = _paired(m.pop_mark())
    set_items(m.meter, m.stack[-1], pairs)


@_op(b"\x90")
def _additems(m: _Machine) -> None:
    members = m.pop_mark()
    add_items(m.meter, m.stack[-1], members)


# Names, calls and state


@_op(b"c")
def _global(m: _Machine) -> None:
    module = m.line(_NAME_BYTES).decode()
    m.stack.append(m.find(module, m.line(_NAME_BYTES).decode()))


@_op(b"\x93")
def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(module) is not str or type(name) is not str:
        raise CorruptCheckpointError("names a class by something else than two strings")
    m.stack.append(m.find(module, name))


@_op(b"R")
def _reduce(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.make(m.stack[-1], args, "called")


@_op(b"\x81")
def _newobj(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.make(m.stack[-1], args, "made")


@_op(b"\x92")
def _newobj_ex(m: _Machine) -> None:
    kwargs, args = m.stack.pop(), m.stack.pop()
    if type(kwargs) is not dict or not all(type(key) is str for key in kwargs):
        raise CorruptCheckpointError("makes an object with keyword arguments that are none")
    m.stack[-1] = m.make(m.stack[-1], args, "made", kwargs)


@_op(b"i")
def _inst(m: _Machine) -> None:
    module = m.line(_NAME_BYTES).decode()
    callee = m.find(module, m.line(_NAME_BYTES).decode())
    args = tuple(m.pop_mark())
    m.stack.append(m.make(callee, args, "called"))


@_op(b"o")
def _obj(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(m.make(items[0], tuple(items[1:]), "called"))


@_op(b"b")
def _build(m: _Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Record:
        target.state = state if target.state is None else (target.state, state)
        if type(target.cls) is Global:
            m.finish(target)
    elif type(target) is OrderedDict:
        if type(state) is dict and isinstance(state.get("_metadata"), dict):
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
    else:
        raise CorruptCheckpointError(f"gives a state to a {type(target).__name__}, which no genuine file does")


@_op(b"P")
def _persid(m: _Machine) -> None:
    m.stack.append(_persistent(m, m.line(_NAME_BYTES).decode()))


@_op(b"Q")
def _binpersid(m: _Machine) -> None:
    m.stack[-1] = _persistent(m, m.stack[-1])


def _persistent(m: _Machine, ident: Any) -> Any:
    if m.dialect.persistent is None:
        raise CorruptCheckpointError("refers to something outside the pickle where nothing can be")
    return m.dialect.persistent(ident)


def _refused(m: _Machine) -> None:
    raise CorruptCheckpointError(f"uses pickle opcode {m.data[m.at]:#04x}, which no checkpoint uses")


for _code in (0x82, 0x83, 0x84, 0x97, 0x98):  # extension registry, out-of-band buffers
    _HANDLERS[_code] = _refused
