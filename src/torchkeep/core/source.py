"""Where bytes come from: the smallest thing a format needs to know about a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import CorruptCheckpointError

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Head:
    """The first bytes of a file, which are only known when all others were written.

    Attributes:
        nbytes: how many they are, a multiple of 4096.
        make: makes them.
    """

    nbytes: int
    make: Callable[[], bytes]


class Source(Protocol):
    """Something with a name and a size from which ranges of bytes can be read.

    `read` returns exactly `nbytes` bytes, or raises CorruptCheckpointError when the range leaves the file. The
    buffer may be a view of a private mapping: writable, never written back, and shared with other reads of the range.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> Buffer: ...

    def sibling(self, name: str) -> Source: ...


def read_all(source: Source) -> bytes:
    """Every byte of a source, for small files."""
    return bytes(source.read(0, source.size))


class Slice:
    """A stretch of another source as a source of its own: a record of an archive, a chunk of a shard."""

    def __init__(self, source: Source, offset: int, nbytes: int, name: str = "") -> None:
        """Raises CorruptCheckpointError when the stretch leaves the source."""
        check_range(source, offset, nbytes, place=name)
        self.name = f"{source.name}: {name}" if name else source.name
        self.size = nbytes
        self._source = source
        self._offset = offset

    def read(self, offset: int, nbytes: int) -> Buffer:
        """Bytes of the stretch."""
        check_range(self, offset, nbytes)
        return self._source.read(self._offset + offset, nbytes)

    def sibling(self, name: str) -> Source:
        """A neighbour of the whole file."""
        return self._source.sibling(name)


class Held:
    """Bytes in memory as a source."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.size = len(data)
        self._data = bytearray(data)

    def read(self, offset: int, nbytes: int) -> Buffer:
        """A writable view of the bytes."""
        check_range(self, offset, nbytes)
        return memoryview(self._data)[offset : offset + nbytes]

    def sibling(self, name: str) -> Source:
        """There is none."""
        raise CorruptCheckpointError(f"refers to {name!r}, and stands alone", file=self.name)


class Swapped:
    """A source whose elements have their bytes in the other order, as big-endian machines wrote them.

    Ranges begin and end at whole elements, counted from the start of the source.
    """

    def __init__(self, source: Source, itemsize: int) -> None:
        self.name = source.name
        self.size = source.size
        self._source = source
        self._itemsize = itemsize

    def read(self, offset: int, nbytes: int) -> Buffer:
        """A copy of the range with each element turned round."""
        data = np.frombuffer(self._source.read(offset, nbytes), dtype=np.uint8)
        if self._itemsize < 2:
            return bytearray(data)
        return bytearray(data.reshape(-1, self._itemsize)[:, ::-1].tobytes())

    def sibling(self, name: str) -> Source:
        """A neighbour of the file."""
        return self._source.sibling(name)


def check_range(source: Source, offset: int, nbytes: int, *, place: str = "") -> None:
    """Raises CorruptCheckpointError when a range is not inside a source."""
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        raise CorruptCheckpointError(
            f"is truncated: bytes {offset:,} to {offset + nbytes:,} are needed, it has {source.size:,}",
            file=source.name,
            place=place,
            hint="fetch or copy the file again and compare its size with the original",
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """What a format may look at to decide whether a file is its own: the first bytes, never the file's name.

    `entries` are the names of the files in a folder, which has no bytes of its own, or of the records in an archive.
    """

    head: bytes
    size: int
    entries: frozenset[str] | None = None

    def has(self, name: str) -> bool:
        """Whether a file or record of this name is in it."""
        return self.entries is not None and name in self.entries


PROBE_BYTES = 4096


def probe_of(source: Source) -> Probe:
    """The first bytes of a source, or what a folder holds."""
    entries: frozenset[str] | None = getattr(source, "entries", None)
    return Probe(bytes(source.read(0, min(source.size, PROBE_BYTES))), source.size, entries)
