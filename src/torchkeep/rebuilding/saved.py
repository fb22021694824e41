"""From what a file says of the model that torchkeep saved to the blueprint of it."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..core import tagged
from ..core.architecture import Architecture, HeldTensor, Kind
from ..core.blueprint import Blueprint, Construction, Part
from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.source import Held
from ..core.tensors import LazyTensor, StorageRef, TensorSpec, contiguous_stride, torch_dtype
from ..errors import CorruptCheckpointError, UnsafeCheckpointError

_PLACE = "the architecture"
_DEPTH = 200
_BOOKS = frozenset(nn.Module().__dict__)  # what torch keeps there is said in other words, hooks are not said at all
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, binascii.Error, zlib.error)

Json = Any


def of_saved(ckpt: Checkpoint, architecture: Architecture) -> Blueprint:
    """The blueprint of a model that torchkeep saved.

    Raises:
        CorruptCheckpointError: what the file says of it makes no sense.
        UnsafeCheckpointError: its modules are reached in more ways than the limits allow.
    """
    try:
        return _Reader(ckpt, architecture).blueprint()
    except CorruptCheckpointError as error:
        error.file, error.place = ckpt.file, error.place or _PLACE
        raise
    except _UNREADABLE as error:
        raise CorruptCheckpointError(f"makes no sense: {error}"[:200], file=ckpt.file, place=_PLACE) from error


class _Reader:
    def __init__(self, ckpt: Checkpoint, architecture: Architecture) -> None:
        self._ckpt = ckpt
        self._said = architecture
        self._firsts: dict[int, Kind] = {}
        for kind in architecture.kinds:
            self._firsts.setdefault(kind.of, kind)
        self._tensors = list(_tensors(architecture, ckpt.file))
        self._parts: list[Part | None] = []
        self._ways: list[int] = []  # how many paths lead to the modules below each, itself included
        self._chars = 0
        self._eval = set(_chosen(architecture.eval, len(architecture.modules)))

    def blueprint(self) -> Blueprint:
        said = self._said
        steps = iter(said.modules)
        self._read(steps, "", 0)
        if next(steps, None) is not None:
            raise ValueError("modules that none of the others holds")
        return Blueprint(
            self._ckpt.file,
            tuple(part for part in self._parts if part is not None),
            factory=said.factory,
            construction=self._construction(said.call) or Construction(),
            libraries=said.libraries,
            lost=said.lost,
            objects=tuple(self._value(one) for one in said.objects),
        )

    def _read(self, steps: Iterator[int], path: str, depth: int) -> int:
        """Read the next module with all below it; answers its number."""
        step = next(steps, None)
        if step is None:
            raise ValueError(f"no module for {path[:100]!r}")
        if step < 0:
            if self._parts[-1 - step] is None:
                raise ValueError(f"the module at {path[:100]!r} holds itself")
            return -1 - step
        if depth > _DEPTH:
            raise UnsafeCheckpointError(f"{self._ckpt.file} nests modules deeper than {_DEPTH}")
        self._chars += len(path)
        if self._chars > Limits().name_chars:
            raise UnsafeCheckpointError(f"{self._ckpt.file} has paths of modules longer than Limits.name_chars")
        kind = self._said.kinds[step]
        first = self._firsts[kind.of]
        number = len(self._parts)
        self._parts.append(None)
        self._ways.append(1)
        absent = set(kind.absent)
        children: dict[str, int | None] = {}
        for key in _of(kind.children, first.children):
            children[key] = None if key in absent else self._read(steps, f"{path}.{key}" if path else key, depth + 1)
            self._ways[number] += 0 if key in absent else self._ways[children[key] or 0]
        if self._ways[number] > len(self._said.modules) + Limits().revisits:
            raise UnsafeCheckpointError(f"{self._ckpt.file} reaches its modules by too many paths (Limits.revisits)")
        self._parts[number] = self._part(number, kind, first, path, children)
        return number

    def _part(self, number: int, kind: Kind, first: Kind, path: str, children: dict[str, int | None]) -> Part:
        entry = self._said.classes[kind.of]
        attributes = {key: value for key, value in first.attributes.items() if key not in kind.without}
        for key in kind.attributes:
            if key in _BOOKS or key.startswith("_torchkeep_"):
                raise ValueError(f"an attribute that is called {key[:100]!r}")
        return Part(
            path,
            entry.name,
            training=number not in self._eval,
            children=children,
            parameters=self._owned(path, _of(kind.parameters, first.parameters), kind),
            buffers=self._owned(path, _of(kind.buffers, first.buffers), kind),
            transient=frozenset(kind.transient),
            attributes={key: self._value(value) for key, value in (attributes | kind.attributes).items()},
            construction=self._construction(kind.call),
            hooks={key: tuple(self._value(one) for one in held) for key, held in kind.hooks.items()},
            code=entry.code,
            parametrized=entry.parametrized,
        )

    def _owned(self, path: str, names: list[str], kind: Kind) -> dict[str, LazyTensor | None]:
        """Tensors by their names in the module; those that could not be kept are left out."""
        found: dict[str, LazyTensor | None] = {}
        for key in names:
            name = f"{path}.{key}" if path else key
            if key in kind.absent:
                found[key] = None
            elif name in self._said.held:
                found[key] = self._tensors[self._said.held[name]]
            elif name in self._ckpt.tensors:
                found[key] = self._ckpt.tensors[name]
        return found

    def _construction(self, call: Json) -> Construction | None:
        if call is None:
            return None
        args, kwargs = call
        return Construction(tuple(map(self._value, args)), {key: self._value(one) for key, one in kwargs.items()})

    def _value(self, node: Json) -> Any:
        return node if type(node) in _ATOMS else tagged.decode(node, self._tensor)

    def _tensor(self, name: Any) -> LazyTensor:
        return self._tensors[name] if isinstance(name, int) else self._ckpt.tensors[name]


_ATOMS = frozenset({type(None), bool, int, float, str})


def _of(own: list[str] | None, first: list[str] | None) -> list[str]:
    return (first or []) if own is None else own


def _tensors(said: Architecture, file: str) -> Iterator[LazyTensor]:
    """The tensors outside of the state dict."""
    data = base64.b64decode(said.bytes, validate=True)
    left = Limits().expanded_bytes
    whole: dict[tuple[int, int, int], bytes] = {}
    for held in said.tensors:
        spec = TensorSpec(torch_dtype(held.dtype, file=file, place=_PLACE), tuple(held.shape))
        if any(type(size) is not int or not 0 <= size < 1 << 62 for size in spec.shape):
            raise ValueError(f"a tensor of shape {held.shape}")
        key = (held.start, held.size, spec.nbytes)
        if held.start >= 0 and key not in whole:
            left -= spec.nbytes
            if left < 0:
                raise UnsafeCheckpointError(f"{file} has tensors in its metadata of more than Limits.expanded_bytes")
            whole[key] = _expanded(data[held.start : held.start + held.size], spec.nbytes)
        yield _lazy(held, spec, whole.get(key), file)


def _lazy(held: HeldTensor, spec: TensorSpec, data: bytes | None, file: str) -> LazyTensor:
    source = Held(data or b"", file)
    return LazyTensor(
        source,
        None if data is None else StorageRef(len(data), 0),
        spec,
        contiguous_stride(spec.shape),
        device="meta" if data is None else "cpu",
        requires_grad=held.requires_grad,
        kind="parameter" if held.parameter else "tensor",
    )


def _expanded(packed: bytes, nbytes: int) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(packed, nbytes + 1)
    if len(data) != nbytes or not unpacking.eof:
        raise ValueError(f"a tensor of {nbytes:,} bytes has others")
    return data


def _chosen(runs: list[int], most: int) -> Iterator[int]:
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        if first < 0 or count < 1 or first + count > most:
            raise ValueError(f"a run of {count:,} modules from {first:,} on")
        yield from range(first, first + count)
