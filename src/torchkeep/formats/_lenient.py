"""The names in one pickle, read on past what the strict reader refuses.

A stream that the reader refuses halfway, because it assigns an item of a tensor or makes a list of a string, may be
one that an ordinary unpickler would go on with. For a scan the reading goes on as well, with a stand-in for the value
that is missing, up to where every unpickler stops: the end, a byte that is no opcode, or a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.checkpoint import Finding
from ..core.limits import Limits
from ..core.tree import Global
from ..errors import OpenError, UnsafeCheckpointError
from ._pickle import _HANDLERS, Dialect, TruncatedStreamError, Use, _Machine, _unknown

OPCODES = frozenset(code for code, handler in enumerate(_HANDLERS) if handler is not _unknown)
_FINAL = frozenset(b".\x80\x82\x83\x84\x97")  # errors of these end any reading; so does what is no opcode
_PUSHES = frozenset(b"IFLSVPXdgohij\x8c\x8d\x91\x93")  # opcodes that leave one value more, when they succeed
_STACK_GLOBAL = 0x93
_ERRORS = 10_000
_LENGTHS = {b"q"[0]: 2, b"h"[0]: 2}  # with operand, of those that may fail before it is read

# What takes a pickle, or a file of torch, as bytes: those are read too.
_SAVE_INSIDE = ("torch.storage", "_load_from_bytes")
_TAKES_BYTES = (
    _SAVE_INSIDE,
    ("io", "BytesIO"),
    ("_io", "BytesIO"),
    *((module, "loads") for module in ("pickle", "_pickle", "cPickle", "dill", "dill._dill", "cloudpickle", "joblib")),
)


@dataclass(slots=True)
class Met:
    """What was met in one stream.

    Attributes:
        seen: every name, and the most that is done with it.
        end: where the reading ended.
        ended: whether the stream came to its STOP.
        cut: whether the bytes ended before the stream.
        problem: the limit that was exceeded.
        findings: names and bytes that the stream itself computes, so that nobody can read them.
        inner: bytes that the stream hands to something that unpickles them, each with what takes them.
    """

    seen: dict[Global, Use] = field(default_factory=dict)
    end: int = 0
    ended: bool = False
    cut: bool = False
    problem: UnsafeCheckpointError | None = None
    findings: list[Finding] = field(default_factory=list)
    inner: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def acts(self) -> bool:
        """Whether something is called, or an object made, before the stream ends."""
        return any(use.how != "named" for use in self.seen.values())


def names_in(data: bytes, limits: Limits, stream: str, base: int = 0) -> Met:
    """Read one pickle for its names; never raises for what is in the stream.

    Args:
        data: bytes that begin with the pickle.
        limits: bounds on the work.
        stream, base: for places; `base` is where `data` begins in the stream.
    """
    met = Met()

    def place() -> str:
        return f"{stream}, byte {base + machine.at}"

    machine = _Machine(data, 0, _dialect(met, place), limits, stream, base, met.seen)
    errors = 0
    while not (met.ended or met.cut):
        try:
            machine.run()
            met.ended = True
        except TruncatedStreamError:
            met.cut = True
        except UnsafeCheckpointError as error:
            error.place = error.place or place()
            met.problem = error
            break
        except OpenError:
            code = data[machine.at]
            errors += 1
            if code in _FINAL or code not in OPCODES:
                break
            if errors > _ERRORS:
                met.problem = UnsafeCheckpointError(f"goes on after {_ERRORS:,} steps that cannot be", place=place())
                break
            if code == _STACK_GLOBAL:
                message = "names a class that the file computes, which can run code"
                met.findings.append(Finding("computed-global", "danger", message, place()))
            machine.pos = max(machine.pos, machine.at + _LENGTHS.get(code, 1))
            if code in _PUSHES:
                machine.stack.append(None)
    met.end = machine.pos
    return met


def _dialect(met: Met, place: Callable[[], str]) -> Dialect:
    """Nothing of torch is built; bytes that would be unpickled are kept."""
    kept: dict[int, Any] = {}  # by identity, and alive, so that bytes that are used again are kept once

    def keep(key: tuple[str, str], args: tuple[Any, ...]) -> Any:
        value = args[0] if args else b""
        raw = value.encode("latin1", "replace") if isinstance(value, str) else value
        if isinstance(raw, (bytes, bytearray)):
            if id(value) not in kept:
                kept[id(value)] = value
                met.inner.append((".".join(key), bytes(raw)))
        elif key == _SAVE_INSIDE:  # the others are dangerous by their names
            message = f"calls {'.'.join(key)}, which can run code, on bytes that the file computes"
            met.findings.append(Finding("dangerous-global", "danger", message, place()))
        return NotImplemented

    builders = {key: lambda *args, key=key: keep(key, args) for key in _TAKES_BYTES}
    return Dialect(persistent=lambda ident: None, builders=builders)
