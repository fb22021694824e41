"""Writing what torch.save writes: a zip of a pickle and of storages that are neither compressed nor held in memory.

The records stand in the order, at the alignment and with the headers of torch's own writer, so that readers that
compute where a storage begins find it: a local header without sizes, padding in an extra field `FB`, a descriptor
after the bytes. Layout and signatures follow sections 4.3 and 4.5 of PKWARE's APPNOTE.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..core.pieces import Beside
from ..core.source import Buffer
from ._directory import CENTRAL, END, END64, LOCAL, LOCATOR
from ._tensor_writer import pickled
from ._torch_versions import TODAY, TorchVersion

_ALIGN = 64
_MOST = 0xFFFFFFFF
_UTF8, _DESCRIPTOR = 0x0800, 0x0008
_VERSION64, _MADE_BY = 45, 0x031E
_ID_DIGITS = 40


@dataclass(slots=True)
class Record:
    """One record of an archive: its name, its size, its bytes when their turn comes, and where it lies."""

    name: str
    nbytes: int
    blocks: Callable[[], Iterator[Buffer]]
    header: int = 0
    crc: int = 0

    @property
    def is_large(self) -> bool:
        """Whether its size or place takes more than 32 bits."""
        return self.nbytes >= _MOST or self.header >= _MOST

    @property
    def flags(self) -> int:
        """Bits of both its headers."""
        return _UTF8 | (_DESCRIPTOR if self.nbytes else 0)

    @property
    def extra(self) -> bytes:
        """The numbers that 32 bits cannot say, in the order of the headers."""
        numbers = [self.nbytes, self.nbytes] if self.nbytes >= _MOST else []
        numbers += [self.header] if self.header >= _MOST else []
        return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""

    def local_header(self) -> bytes:
        """What stands before the bytes, padded so that they begin at a multiple of 64."""
        name, extra = self.name.encode(), self.extra
        padding = -(self.header + LOCAL.size + len(name) + len(extra) + 4) % _ALIGN
        extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
        return LOCAL.pack(b"PK\3\4", 0, self.flags, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra

    def central_header(self) -> bytes:
        """What stands in the directory."""
        name, extra = self.name.encode(), self.extra
        size, needed = min(self.nbytes, _MOST), _VERSION64 if extra else 0
        numbers = (len(name), len(extra), 0, 0, 0, 0, min(self.header, _MOST))
        return CENTRAL.pack(b"PK\1\2", 0, needed, self.flags, 0, 0, 0, self.crc, size, size, *numbers) + name + extra

    def descriptor(self) -> bytes:
        """What stands after the bytes; nothing after none."""
        if not self.nbytes:
            return b""
        sizes = struct.pack("<QQ" if self.is_large else "<II", self.nbytes, self.nbytes)
        return b"PK\7\x08" + struct.pack("<I", self.crc) + sizes


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that is about to be written.

    Attributes:
        records: in the order of the file.
        directory: where the directory begins.
        notes: what is not in the file as it was.
    """

    records: tuple[Record, ...]
    directory: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Size of the file in bytes; checksums, which are not known yet, change nothing about it."""
        return self.directory + len(self._end())

    def pieces(self) -> Iterator[Buffer]:
        """The file piece by piece, checksums computed beside."""
        with ThreadPoolExecutor(1) as pool:
            beside = Beside(pool)
            for record in self.records:
                yield record.local_header()
                yield from _body(record, beside)
                yield record.descriptor()
            yield self._end()

    def _end(self) -> bytes:
        headers = b"".join(record.central_header() for record in self.records)
        count, nbytes = len(self.records), len(headers)
        short = min(count, 0xFFFF)
        return b"".join(
            (
                headers,
                END64.pack(b"PK\6\6", 44, _MADE_BY, _VERSION64, 0, 0, count, count, nbytes, self.directory),
                LOCATOR.pack(b"PK\6\7", 0, self.directory + nbytes, 1),
                END.pack(b"PK\5\6", 0, 0, short, short, min(nbytes, _MOST), min(self.directory, _MOST), 0),
            )
        )


def _body(record: Record, beside: Beside) -> Iterator[Buffer]:
    def update(block: Buffer) -> None:
        record.crc = zlib.crc32(block, record.crc)

    record.crc = 0
    for block in record.blocks():
        beside.feed(update, block)
        yield block
    beside.finish()


def lay_out(root: Any, stem: str, other: Callable[[Any], Any], version: TorchVersion = TODAY) -> Archive:
    """Decide every byte of the file but those of the storages.

    Args:
        root: plain values and lazy tensors, as `write_pickle` takes them.
        stem: of the file's name; the records lie in a folder of this name.
        other: what to write in the place of values that such a file cannot have.
        version: of torch, whose records are written.

    Raises:
        UnsavableError: something in `root` cannot be said.
    """
    content = pickled(root, other, version)
    storages = [Record(f"data/{stored.key}", stored.nbytes, stored.blocks) for stored in content.storages]
    if not version.has_format:
        storages.sort(key=lambda record: record.name)  # as text: 0, 1, 10, 11, 2
    records = [_small("data.pkl", content.data)]
    if version.has_format:
        records += [_small(".format_version", b"1"), _small(".storage_alignment", str(_ALIGN).encode())]
    if version.has_byteorder:
        records.append(_small("byteorder", sys.byteorder.encode()))
    records += [*storages, _small("version", b"3\n")]
    if version.exact and version.has_byteorder:
        before = tuple(records)
        records.append(Record(".data/serialization_id", _ID_DIGITS, lambda: iter([_serialization_id(before)])))
    usable = stem.isascii() and stem.isprintable() and "\\" not in stem and stem.strip(".")
    folder = stem if usable and version.names_folder else "archive"
    at = 0
    for record in records:
        record.name = f"{folder}/{record.name}"
        record.header = at
        at += len(record.local_header()) + record.nbytes + len(record.descriptor())
    return Archive(tuple(records), at, content.notes)


def _small(name: str, content: bytes) -> Record:
    return Record(name, len(content), lambda: iter([content]))


def _serialization_id(records: tuple[Record, ...]) -> bytes:
    """Forty digits: half of the names, half of the checksums of all records before; asked for when those are known."""
    names = (zlib.crc32(record.name.encode()) for record in records)
    return f"{_combined(names):020d}{_combined(record.crc for record in records):020d}".encode()


def _combined(numbers: Iterable[int]) -> int:
    """Numbers as one of 64 bits, as torch combines them."""
    seed = 0
    for number in numbers:
        seed = (seed ^ (number + 0x9E3779B9 + (seed << 6) + (seed >> 2))) & ((1 << 64) - 1)
    return seed
