"""What any reader might take for a record of a zip archive, however odd the archive.

`_directory` refuses a file that contradicts itself. A scan has to look into such files above all: wrong checksums,
bits that say encrypted, names that stand twice, sizes that lie, archives behind other data or one after another, a
directory that was cut off. Readers disagree on all of these, so whatever one of them may find is found here.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core.source import Buffer, Slice, Source
from ..errors import UnsafeCheckpointError
from ._directory import CENTRAL, DEFLATED, END, END64, LOCAL, LOCATOR, STORED
from ._inflate import raw_deflate

_TAIL = 65_557  # an end record and the longest comment
_SEARCHED = 1 << 28  # bytes that are searched for records where there is no directory
_FULL = 2**32 - 1
_STEP = 4096


@dataclass(frozen=True, slots=True)
class Loose:
    """A record: its name, how it is compressed, where its bytes begin, and how many there are at most."""

    name: str
    method: int
    offset: int
    stored: int

    def bytes_of(self, source: Source) -> Slice:
        """The bytes as they lie in the file."""
        return Slice(source, self.offset, self.stored, self.name)

    def head(self, source: Source, nbytes: int) -> bytes:
        """The first bytes of the record, inflated as far as they can be."""
        raw = bytes(source.read(self.offset, min(self.stored, nbytes)))
        if self.method == STORED:
            return raw
        return inflated(raw, nbytes, raw_deflate()) if self.method == DEFLATED else b""


def inflated(raw: Buffer, most: int, engine: Any) -> bytes:
    """What a decompressor of the standard library makes of bytes, up to where they are damaged, cut, or too many."""
    out = bytearray()
    try:
        for start in range(0, len(raw), _STEP):  # in small steps, so that damage takes little before it along
            if len(out) >= most or engine.eof:
                break
            out += engine.decompress(raw[start : start + _STEP], most - len(out))
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        pass
    return bytes(out)


def loose_records(source: Source, most: int) -> Iterator[Loose]:
    """Every record of every archive in a source, the last archive first; each place is told once.

    Raises:
        UnsafeCheckpointError: more than `most` records or directories were to be looked at.
    """
    told = set[tuple[int, int, int]]()
    for number, record in enumerate(_every_record(source)):
        if number >= most:
            raise UnsafeCheckpointError(f"has more than {most:,} records", file=source.name)
        if record is not None and (place := (record.offset, record.stored, record.method)) not in told:
            told.add(place)
            yield record


def _every_record(source: Source) -> Iterator[Loose | None]:
    """The records, and None for each directory."""
    end, known = source.size, set[tuple[int, int]]()
    while end >= END.size:
        before = end
        for where in _directories(source, end):
            yield None
            if (where.first, where.ahead) in known:
                continue
            known.add((where.first, where.ahead))
            for record in _listed(source, where):
                yield record
                if where.adjacent:
                    before = min(before, where.ahead)
        if before in {0, end}:
            break
        end = before
    if not known and bytes(source.read(0, min(4, source.size))) == b"PK\3\4":
        yield from _unlisted(source)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a directory may lie, and how many bytes lie ahead of its archive.

    It is adjacent when it was found in front of its end record, and not where that says that it is.
    """

    first: int
    last: int
    ahead: int
    adjacent: bool


def _directories(source: Source, end: int) -> Iterator[_Where]:
    """For each end record in front of `end`, the places where its directory may be."""
    start = end - END.size
    if bytes(source.read(start, 4)) != b"PK\5\6":  # archives of torch carry no comment
        start = max(0, end - _TAIL)
    tail = bytes(source.read(start, end - start))
    at = tail.find(b"PK\5\6")
    while 0 <= at <= len(tail) - END.size:
        _, _, _, _, _, nbytes, offset, _ = END.unpack_from(tail, at)
        yield from _places(start + at, nbytes, offset)
        yield from _places64(source, start + at)
        at = tail.find(b"PK\5\6", at + 1)


def _places(end: int, nbytes: int, offset: int) -> Iterator[_Where]:
    """A directory lies where its end record says, and also right in front of it; readers differ."""
    if end - nbytes >= 0:
        yield _Where(end - nbytes, end, max(0, end - nbytes - offset), True)
    if offset < end and offset != end - nbytes:
        yield _Where(offset, end, 0, False)


def _places64(source: Source, end: int) -> Iterator[_Where]:
    at = end - LOCATOR.size
    if at < END64.size or bytes(source.read(at, 4)) != b"PK\6\7":
        return
    _, _, where, _ = LOCATOR.unpack(bytes(source.read(at, LOCATOR.size)))
    for place in {where, at - END64.size}:
        if place + END64.size <= source.size:
            record = END64.unpack(bytes(source.read(place, END64.size)))
            if record[0] == b"PK\6\6":
                yield from _places(place, record[8], record[9])


def _listed(source: Source, where: _Where) -> Iterator[Loose]:
    """The records of one directory, as far as it is one."""
    at, end = where.first, where.last
    while at + CENTRAL.size <= end:
        row = CENTRAL.unpack(bytes(source.read(at, CENTRAL.size)))
        if row[0] != b"PK\1\2":
            return
        method, stored, nbytes, name_len, extra_len, comment_len, header = row[4], *row[8:13], row[16]
        after = at + CENTRAL.size + name_len + extra_len + comment_len
        if after > end:
            return
        text = bytes(source.read(at + CENTRAL.size, name_len + extra_len))
        stored, header = _wide(text[name_len:], nbytes, stored, header)
        found = _placed(source, text[:name_len], method, header + where.ahead, stored)
        if found is not None:
            yield found
        at = after


def _wide(extra: bytes, nbytes: int, stored: int, header: int) -> tuple[int, int]:
    """Size and place, by the zip64 field where they did not fit."""
    at = 0
    while _FULL in {nbytes, stored, header} and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            _, *rest = [next(numbers, value) if value == _FULL else value for value in (nbytes, stored, header)]
            return rest[0], rest[1]
        at += 4 + length
    return stored, header


def _placed(source: Source, name: bytes, method: int, header: int, stored: int) -> Loose | None:
    """The record whose header lies here, if one does; its size is cut to what the file has."""
    if header + LOCAL.size > source.size:
        return None
    local = LOCAL.unpack(bytes(source.read(header, LOCAL.size)))
    start = header + LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\3\4" or start >= source.size:
        return None
    return Loose(name.decode(errors="replace"), method, start, min(stored, source.size - start))


def _unlisted(source: Source) -> Iterator[Loose]:
    """The records of an archive without a directory: each may go on to the end of the file."""
    data = bytes(source.read(0, min(source.size, _SEARCHED)))
    at = data.find(b"PK\3\4")
    while 0 <= at <= len(data) - LOCAL.size:
        local = LOCAL.unpack_from(data, at)
        name = data[at + LOCAL.size : at + LOCAL.size + local[9]]
        found = _placed(source, name, local[3], at, source.size)
        if found is not None:
            yield found
        at = data.find(b"PK\3\4", at + 1)
