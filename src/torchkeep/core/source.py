"""Where bytes come from: the smallest thing a format needs to know about a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview


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


@dataclass(frozen=True, slots=True)
class Probe:
    """What a format may look at to decide whether a file is its own: the first bytes, never the file's name."""

    head: bytes
    size: int


PROBE_BYTES = 4096
