"""The directory of a zip file, read strictly: what it says, what stands before each record, and the file must agree.

Layout and signatures follow section 4.3 of PKWARE's APPNOTE.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NoReturn

from ..core.checkpoint import Finding
from ..core.limits import Limits
from ..core.source import Source
from ..errors import CorruptCheckpointError, UnknownFormatError, UnsafeCheckpointError, UnsupportedFeatureError

END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL = struct.Struct("<4s5H3I2H")

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_DESCRIPTOR = 0x0008
_DESCRIPTOR_BYTES = frozenset({12, 16, 20, 24})
_BAD_NAME = re.compile(r"[\0\\]|^/|(^|/)\.\.(/|$)")
STORED, DEFLATED = 0, 8


@dataclass(slots=True)
class Entry:
    """One record: its name, checksum, size, how it is compressed, and where its header and its bytes begin.

    Not frozen: where the bytes begin is filled in once its local header was read.
    """

    name: str
    crc: int
    nbytes: int
    stored: int
    method: int
    flags: int
    header: int
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Directory:
    """What was read of a directory; it holds no source, so that it can be remembered as long as its source lives."""

    limits: Limits
    entries: dict[str, Entry]
    findings: tuple[Finding, ...]
    end: int


@dataclass(frozen=True, slots=True)
class _Where:
    """Where the directory is, how many records it lists, and how many bytes follow the archive."""

    offset: int
    nbytes: int
    count: int
    trailing: int


class Reader:
    """Reads one archive; a class so that every complaint names the file and the place."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.findings: list[Finding] = []

    def fail(self, what: str, place: str = "zip directory") -> NoReturn:
        raise CorruptCheckpointError(
            what, file=self.source.name, place=place, hint="fetch the file again from a source you trust"
        )

    def find_end(self) -> _Where:
        """The end record, searched backwards because a comment may follow it."""
        size = self.source.size
        start = max(0, size - 65_557)
        tail = bytes(self.source.read(start, size - start))
        at = tail.rfind(b"PK\5\6")
        while at >= 0:
            if at + END.size <= len(tail):
                comment = END.unpack_from(tail, at)[7]
                if at + END.size + comment <= len(tail):
                    return self._end_record(tail, at, start, len(tail) - at - END.size - comment)
            at = tail.rfind(b"PK\5\6", 0, at)
        raise CorruptCheckpointError(
            f"is truncated: it has {size:,} bytes, and the directory that ends every zip file is missing",
            file=self.source.name,
            hint="fetch or copy the file again and compare its size with the original",
        )

    def _end_record(self, tail: bytes, at: int, start: int, trailing: int) -> _Where:
        _, disk, first_disk, here, count, nbytes, offset, _ = END.unpack_from(tail, at)
        end = start + at
        if at >= LOCATOR.size and tail[at - LOCATOR.size : at].startswith(b"PK\6\7"):
            end, count64, nbytes64, offset64 = self._end_record64(tail, at, start)
            for short, long, most in (
                (count, count64, 0xFFFF),
                (nbytes, nbytes64, 2**32 - 1),
                (offset, offset64, 2**32 - 1),
            ):
                if short not in {long, most}:
                    self.fail(f"has two end records that disagree: {short} and {long}")
            count, nbytes, offset = count64, nbytes64, offset64
        elif here != count:
            self.fail("is one part of an archive in several files")
        if disk not in {0, 0xFFFF} or first_disk not in {0, 0xFFFF}:
            self.fail("is one part of an archive in several files")
        self._check_end(offset, nbytes, count, end)
        return _Where(offset, nbytes, count, trailing)

    def _end_record64(self, tail: bytes, at: int, start: int) -> tuple[int, int, int, int]:
        _, _, where, _ = LOCATOR.unpack_from(tail, at - LOCATOR.size)
        actual = start + at - LOCATOR.size - END64.size
        if where > actual:
            self.fail("has a locator that points outside the file")
        if where < actual and tail[max(0, actual - start) :].startswith(b"PK\6\6"):
            self._several(actual - where)
        record = END64.unpack(bytes(self.source.read(where, END64.size)))
        if record[0] != b"PK\6\6" or where + record[1] + 12 != start + at - LOCATOR.size:
            self.fail("has no end record where its locator says")
        if record[6] != record[7]:
            self.fail("is one part of an archive in several files")
        return where, record[7], record[8], record[9]

    def _check_end(self, offset: int, nbytes: int, count: int, end: int) -> None:
        if offset + nbytes < end:
            self._several(end - offset - nbytes)
        if offset + nbytes > end:
            self.fail(f"says that its directory has {nbytes:,} bytes at {offset:,}, which is not in front of the end")
        if count * CENTRAL.size > nbytes:
            self.fail(f"says that its directory of {nbytes:,} bytes lists {count:,} records")
        if nbytes > self.limits.pickle_bytes:
            raise UnsafeCheckpointError(f"has a directory of {nbytes:,} bytes", file=self.source.name)

    def _several(self, ahead: int) -> NoReturn:
        """The archive does not begin where the file does."""
        if bytes(self.source.read(ahead, min(4, self.source.size - ahead))) == b"PK\3\4":
            raise UnsupportedFeatureError(
                "holds several zip archives one after another, as the shards of a distributed checkpoint do",
                file=self.source.name,
                hint="open the folder that it lies in: its .metadata says what the pieces are",
            )
        self.fail(f"has {ahead:,} bytes in front of the archive that belong to no record")

    def central(self, where: _Where) -> dict[str, Entry]:
        """Every record of the directory, by name."""
        data = bytes(self.source.read(where.offset, where.nbytes))
        entries: dict[str, Entry] = {}
        at = 0
        for _ in range(where.count):
            if at + CENTRAL.size > len(data):
                self.fail("has a directory that is shorter than it says")
            entry, at = self._central_entry(data, at, where.offset)
            if entry.name in entries:
                self.fail(f"has two records of the name {entry.name!r}")
            entries[entry.name] = entry
        if at != len(data):
            self.fail(f"has {len(data) - at} bytes in its directory that describe no record")
        return entries

    def _central_entry(self, data: bytes, at: int, limit: int) -> tuple[Entry, int]:
        (
            magic,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            stored,
            nbytes,
            name_len,
            extra_len,
            comment_len,
            disk,
            _,
            _,
            header,
        ) = CENTRAL.unpack_from(data, at)
        start = at + CENTRAL.size
        end = start + name_len + extra_len + comment_len
        if magic != b"PK\1\2" or end > len(data):
            self.fail(f"has no record where its directory should list one, at byte {at}")
        name = self._name(data[start : start + name_len])
        if stored == 2**32 - 1 or nbytes == 2**32 - 1 or header == 2**32 - 1:
            extra = data[start + name_len : start + name_len + extra_len]
            nbytes, stored, header = self._zip64(extra, nbytes, stored, header, name)
        if disk not in {0, 0xFFFF}:
            self.fail("lies in another part of the archive", name)
        if flags & _ENCRYPTED:
            self.fail("is marked as encrypted, which no checkpoint is", name)
        if method == STORED and stored != nbytes:
            self.fail(f"is stored in {stored:,} bytes and declares {nbytes:,}", name)
        if header + LOCAL.size + name_len + stored > limit:
            self.fail(f"declares {stored:,} bytes at {header:,}, which leaves the file", name)
        return Entry(name, crc, nbytes, stored, method, flags, header), end

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"has a record whose name is not UTF-8: {raw[:80]!r}")
        if not name or _BAD_NAME.search(name):
            self.fail(f"has a record named {name[:80]!r}")
        return name

    def _zip64(self, extra: bytes, nbytes: int, stored: int, header: int, name: str) -> tuple[int, int, int]:
        """Replace the numbers that did not fit by those of the zip64 extra field, in the order of the standard."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                field = extra[at + 4 : at + 4 + length]
                numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
                full = [next(numbers, -1) if value == 2**32 - 1 else value for value in (nbytes, stored, header)]
                if -1 not in full:
                    return full[0], full[1], full[2]
            at += 4 + length
        return self.fail("needs 64-bit numbers and has none", name)

    def place(self, entries: dict[str, Entry], limit: int) -> dict[str, Entry]:
        """Find where the bytes of each record begin, and compare its local header with the directory.

        In a remote file the header of a stored record is left until its bytes are wanted.
        """
        placed: dict[str, Entry] = {}
        if getattr(self.source, "remote", False):
            return self._place_from_afar(entries, limit)
        ahead = 0
        for entry in sorted(entries.values(), key=lambda entry: entry.header):
            if entry.header < ahead:
                self.fail("begins inside another record", entry.name)
            self._gap(entry.header - ahead, placed, entry.name)
            entry.offset = self.data_start(entry, limit)
            placed[entry.name] = entry
            ahead = entry.offset + entry.stored
        self._gap(limit - ahead, placed, "the directory")
        return placed

    def _place_from_afar(self, entries: dict[str, Entry], limit: int) -> dict[str, Entry]:
        ordered = sorted(entries.values(), key=lambda entry: entry.header)
        starts = [entry.header for entry in ordered[1:]] + [limit]
        for entry, end in zip(ordered, starts, strict=True):
            if entry.header + LOCAL.size + len(entry.name.encode()) + entry.stored > end:
                self.fail("begins inside another record", entry.name)
            if entry.method != STORED:
                entry.offset = self.data_start(entry, end)
        return {entry.name: entry for entry in ordered}

    def _gap(self, gap: int, before: dict[str, Entry], name: str) -> None:
        if gap == 0:
            return
        last = next(reversed(before.values()), None)
        if last is not None and last.flags & _DESCRIPTOR and gap in _DESCRIPTOR_BYTES:
            return
        if last is None:
            self.fail(f"has {gap:,} bytes before its first record")
        message = f"{gap:,} bytes in front of {name} belong to no record"
        if not any(finding.code == "hidden-data" for finding in self.findings):
            self.findings.append(Finding("hidden-data", "warning", message, last.name))

    def data_start(self, entry: Entry, limit: int) -> int:
        """Where the bytes of a record begin, by the header in front of them, which must agree with the directory."""
        raw_name = entry.name.encode()
        head = bytes(self.source.read(entry.header, LOCAL.size + len(raw_name)))
        magic, _, flags, method, _, _, crc, stored, nbytes, name_len, extra_len = LOCAL.unpack_from(head)
        if magic != b"PK\3\4":
            self.fail("has no header where the directory says", entry.name)
        if name_len != len(raw_name) or head[LOCAL.size :] != raw_name:
            self.fail(f"is called {head[LOCAL.size :][:80]!r} in front of its bytes", entry.name)
        if method != entry.method or (flags ^ entry.flags) & (_ENCRYPTED | _DESCRIPTOR):
            self.fail("is described differently in front of its bytes", entry.name)
        if not flags & _DESCRIPTOR:
            for here, there in ((crc, entry.crc), (stored, entry.stored), (nbytes, entry.nbytes)):
                if here not in {there, 2**32 - 1}:
                    self.fail("has another size or checksum in front of its bytes", entry.name)
        start = entry.header + LOCAL.size + int(name_len) + int(extra_len)
        if start + entry.stored > limit:
            self.fail("ends inside the directory", entry.name)
        return start


def read_directory(source: Source, limits: Limits) -> Directory:
    """The records of a zip file, each checked against the file.

    Raises:
        CorruptCheckpointError: the file is truncated, or contradicts itself.
        UnknownFormatError: it has no records.
    """
    reader = Reader(source, limits)
    where = reader.find_end()
    if not where.count:
        raise UnknownFormatError("is an empty zip archive", file=source.name)
    entries = reader.place(reader.central(where), where.offset)
    if where.trailing:
        message = f"{where.trailing:,} bytes follow the end of the archive"
        reader.findings.append(Finding("trailing-data", "warning", message, f"byte {source.size - where.trailing}"))
    if not any(entry.crc for entry in entries.values()):
        message = "its writer left out the checksums, so damage cannot be seen"
        reader.findings.append(Finding("no-checksums", "info", message))
    return Directory(limits, entries, tuple(reader.findings), where.offset)
