"""NumPy's own files: one array (.npy), or a zip of them (.npz), read where they lie.

Layout: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Iterator
from math import prod
from typing import Any

from ..core.checkpoint import Checkpoint, Finding, Provenance
from ..core.limits import Limits
from ..core.source import Probe, Slice, Source, Swapped
from ..core.tensors import DTYPES, LazyTensor, StorageRef, TensorSpec, contiguous_stride
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnsupportedFeatureError
from ._names import findings_of
from ._pickle import Dialect, Use
from ._stream import unpickle_at
from ._zip import is_zip, read_archive

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 1 << 16
_DIMENSIONS = 64
_CODES = {  # NumPy's code without the byte order: torch's name
    "b1": "bool",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}


class Npy:
    """Reads a file of one array; its tensor has the name `array`."""

    name = "npy"

    def sniff(self, probe: Probe) -> bool:
        """Whether it begins as NumPy's files do."""
        return probe.head.startswith(_MAGIC)

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the header, and none of the array.

        Raises:
            CorruptCheckpointError: the header is damaged, or does not fit the file.
            UnsupportedFeatureError: torch has no such dtype.
        """
        tensor, findings = _array(source, limits)
        if tensor is None:
            raise _refused(source.name, findings)
        return Checkpoint(source.name, self.name, {"array": tensor}, kind="tensors", provenance=_PRODUCER)


class Npz:
    """Reads archives of arrays, each under its name in the archive."""

    name = "npz"

    def sniff(self, probe: Probe) -> bool:
        """A zip in which everything is an array."""
        return is_zip(probe.head) and bool(probe.entries) and all(n.endswith(".npy") for n in probe.entries or ())

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the headers, and none of the arrays; what torch has no dtype for is left out and told.

        Raises:
            CorruptCheckpointError: the archive or a header is damaged.
        """
        archive = read_archive(source, limits)
        tensors, findings = {}, list(archive.findings)
        for name in archive.entries:
            if name.endswith("/"):
                continue
            tensor, found = _array(archive.record(name), limits)
            findings += found
            if tensor is not None:
                tensors[name.removesuffix(".npy")] = tensor
        return Checkpoint(
            source.name, self.name, tensors, findings=tuple(findings), kind="weights", provenance=_PRODUCER
        )

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes)."""
        yield from read_archive(source, limits).verify()


_PRODUCER = Provenance("numpy", ("it is a file of NumPy",))


def _refused(file: str, findings: list[Finding]) -> OpenError:
    error = UnsupportedFeatureError(findings[0].message, file=file, hint="load it with numpy if you trust it")
    error.findings = tuple(findings)
    return error


def _array(source: Source, limits: Limits) -> tuple[LazyTensor | None, list[Finding]]:
    """An array as a lazy tensor; None with what is to be said, where torch has no such dtype."""
    header, start = _header(source)
    code, shape, fortran = header["descr"], header["shape"], header["fortran_order"]
    if code == "|O":
        return None, _objects(source, start, limits)
    name = _CODES.get(code[1:]) if isinstance(code, str) else None
    if name is None or name not in DTYPES or code[0] not in "<>|=":
        message = f"holds an array of dtype {str(code)[:60]}, which torch does not have"
        return None, [Finding("no-tensor", "info", message, source.name)]
    dtype = DTYPES[name].torch
    if prod(shape) * dtype.itemsize != source.size - start:
        raise CorruptCheckpointError(
            f"declares shape {list(shape)[:20]} of {name}, and {source.size - start:,} bytes follow",
            file=source.name,
            place="header",
            hint="fetch or copy the file again",
        )
    spec = TensorSpec(dtype, shape)
    stride = tuple(reversed(contiguous_stride(tuple(reversed(shape))))) if fortran else contiguous_stride(shape)
    ref = StorageRef(source.size - start, start)
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    if code[0] == ">" and width > 1:
        ref = StorageRef(ref.nbytes, 0, source=Swapped(Slice(source, start, ref.nbytes), width))
    return LazyTensor(source, ref, spec, stride), []


def _header(source: Source) -> tuple[dict[str, Any], int]:
    """The header of an array, and where its elements begin."""

    def fail(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(what, file=source.name, place="header", hint="fetch or copy the file again")

    head = bytes(source.read(0, min(source.size, 12)))
    if len(head) < 12 or not head.startswith(_MAGIC) or head[6] not in {1, 2, 3}:
        raise fail("is no array of NumPy, or of a version that is not known")
    wide = head[6] > 1
    length, start = (struct.unpack_from("<I", head, 8)[0], 12) if wide else (struct.unpack_from("<H", head, 8)[0], 10)
    if length > _HEADER_BYTES:
        raise fail(f"declares a header of {length:,} bytes")
    text = bytes(source.read(start, length)).decode("utf-8" if head[6] == 3 else "latin1", "replace")
    try:
        header = ast.literal_eval(text.strip())  # literals only: nothing is named and nothing is called
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise fail("has a header that is no literal") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise fail("has a header without descr, fortran_order and shape")
    shape = header["shape"]
    if not isinstance(shape, tuple) or len(shape) > _DIMENSIONS or not isinstance(header["fortran_order"], bool):
        raise fail("has a header with a shape or an order that is none")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise fail(f"has shape {str(shape)[:100]}")
    return header, start + length


def _objects(source: Source, start: int, limits: Limits) -> list[Finding]:
    """An array of objects is a pickle, which numpy.load runs when it is allowed to: its names are read, inertly."""
    seen: dict[Global, Use] = {}
    message = "holds an array of Python objects, which is a pickle and no tensor"
    found = [Finding("no-tensor", "warning", message, source.name)]
    try:
        unpickle_at(source, start, Dialect, limits, stream="array of objects", seen=seen)
    except OpenError as error:
        found.append(Finding("odd-structure", "warning", f"its pickle cannot be read: {error.message}", source.name))
    return [*findings_of(seen), *found]
