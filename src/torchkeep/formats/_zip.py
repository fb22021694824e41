"""Zip archives as named sources: what is stored is read where it lies, what is deflated is inflated when asked for."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

from ..core.limits import Limits
from ..core.source import Buffer, Slice, Source, check_range
from ..core.tensors import StorageRef
from ..errors import CorruptCheckpointError, UnknownFormatError, UnsafeCheckpointError, UnsupportedFeatureError
from ._directory import DEFLATED, STORED, Directory, Entry, Reader, read_directory
from ._inflate import Inflated, raw_deflate

_CHUNK = 1 << 24
_TEXT_BYTES = 1 << 20  # records that are read whole may compress well up to this size

_Placer = Callable[[Entry], int]


class Archive:
    """A directory that agrees with its file.

    Attributes:
        source: the file.
        entries: the records by name, in the order of the file.
        findings: what is odd about the archive.
        checksums: False where the writer left them out.
    """

    def __init__(self, source: Source, limits: Limits, found: Directory, place: _Placer) -> None:
        self.source = source
        self.limits = limits
        self.entries = found.entries
        self.findings = found.findings
        self.checksums = any(entry.crc for entry in found.entries.values())
        self._place = place
        self._opened: dict[str, Source] = {}

    def record(self, name: str) -> Source:
        """The bytes of a record as a source of its own; the same source each time.

        Raises:
            UnsupportedFeatureError: it is compressed by a method other than deflate.
        """
        if name not in self._opened:
            self._opened[name] = self._open(self.entries[name])
        return self._opened[name]

    def _open(self, entry: Entry) -> Source:
        if entry.method not in {STORED, DEFLATED}:
            raise UnsupportedFeatureError(
                f"is compressed by method {entry.method} of zip; only stored and deflated records are read",
                file=self.source.name,
                place=entry.name,
                hint="unpack it and pack it again: zip -0 -r new.pth folder",
            )
        if entry.offset < 0:
            return _Distant(self.source, entry, self._place)
        if entry.method == STORED:
            return Slice(self.source, entry.offset, entry.nbytes, entry.name)
        packed = Slice(self.source, entry.offset, entry.stored, entry.name)
        return Inflated(packed, raw_deflate, self.limits, nbytes=entry.nbytes)

    def storage(self, name: str) -> StorageRef:
        """The bytes of a record as the storage of a tensor: in the file itself where they simply lie there."""
        entry = self.entries[name]
        if entry.method == STORED and entry.offset >= 0:
            return StorageRef(entry.nbytes, entry.offset)
        return StorageRef(entry.nbytes, 0, source=self.record(name))

    def read(self, name: str, most: int) -> bytes:
        """A small record whole, with its checksum checked.

        Raises:
            UnsafeCheckpointError: it has more than `most` bytes.
            CorruptCheckpointError: its checksum is wrong.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise UnknownFormatError(f"has no record {name!r}, and is no checkpoint without it", file=self.source.name)
        if entry.nbytes > most:
            raise UnsafeCheckpointError(
                f"has {entry.nbytes:,} bytes, more than the {most:,} allowed", file=self.source.name, place=name
            )
        if entry.nbytes > _TEXT_BYTES and entry.nbytes > self.limits.inflated_ratio * entry.stored:
            raise UnsafeCheckpointError(
                f"inflates from {entry.stored:,} to {entry.nbytes:,} bytes, more than Limits.inflated_ratio allows",
                file=self.source.name,
                place=name,
                hint="pickles and source text do not compress like this; do not use the file",
            )
        data = self._whole(entry)
        if self.checksums and zlib.crc32(data) != entry.crc:
            raise CorruptCheckpointError(
                "is damaged: its checksum is wrong", file=self.source.name, place=name, hint="fetch the file again"
            )
        return data

    def _whole(self, entry: Entry) -> bytes:
        if entry.method != DEFLATED or entry.nbytes > _TEXT_BYTES:
            return bytes(self.record(entry.name).read(0, entry.nbytes))
        engine = raw_deflate()  # small ones need no temporary file
        try:
            data: bytes = engine.decompress(self.source.read(entry.offset, entry.stored), entry.nbytes + 1)
        except zlib.error as error:
            raise CorruptCheckpointError(
                f"cannot be inflated: {error}", file=self.source.name, place=entry.name
            ) from error
        if len(data) != entry.nbytes or not engine.eof:
            raise CorruptCheckpointError(
                f"does not inflate to the {entry.nbytes:,} bytes it declares", file=self.source.name, place=entry.name
            )
        return data

    def verify(self) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes); nothing without checksums."""
        for name, entry in self.entries.items() if self.checksums else ():
            crc = total = 0
            for piece in self._pieces(entry):
                crc, total = zlib.crc32(piece, crc), total + len(piece)
            yield name, crc == entry.crc and total == entry.nbytes, entry.nbytes

    def _pieces(self, entry: Entry) -> Iterator[Buffer]:
        """The bytes of a record one after another, inflated on the way and kept nowhere."""
        engine = raw_deflate() if entry.method == DEFLATED else None
        source = self.record(entry.name) if engine is None else Slice(self.source, entry.offset, entry.stored)
        total = 0
        for start in range(0, source.size, _CHUNK):
            piece = source.read(start, min(_CHUNK, source.size - start))
            if engine is None:
                yield piece
                continue
            while piece and total <= entry.nbytes:
                try:
                    out = engine.decompress(piece, _CHUNK)
                except zlib.error:
                    return
                total += len(out)
                yield out
                piece = engine.unconsumed_tail


class _Distant:
    """A stored record of a remote file: what stands in front of it is read and checked when its bytes are wanted."""

    def __init__(self, source: Source, entry: Entry, place: _Placer) -> None:
        self.name = f"{source.name}: {entry.name}"
        self.size = entry.nbytes
        self._source = source
        self._entry = entry
        self._place = place

    def read(self, offset: int, nbytes: int) -> Buffer:
        check_range(self, offset, nbytes)
        if self._entry.offset < 0:
            self._entry.offset = self._place(self._entry)
        return self._source.read(self._entry.offset + offset, nbytes)

    def sibling(self, name: str) -> Source:
        return self._source.sibling(name)


def find_record(archive: Archive, pattern: re.Pattern[str], what: str) -> re.Match[str]:
    """The first record whose whole name matches.

    Raises:
        UnknownFormatError: there is none, so this is not `what` it was taken for.
    """
    found = next(filter(None, map(pattern.fullmatch, archive.entries)), None)
    if found is None:
        raise UnknownFormatError(f"is no {what}: it has no such record", file=archive.source.name)
    return found


def is_zip(head: bytes) -> bool:
    """Whether a file begins as zip archives do, empty ones too."""
    return head[:4] in {b"PK\3\4", b"PK\5\6"}


_READ: WeakKeyDictionary[Source, Directory] = WeakKeyDictionary()


def read_archive(source: Source, limits: Limits) -> Archive:
    """The records of a zip file, each checked against the file. The directory is read once for each source and limits.

    Raises:
        CorruptCheckpointError: the file is truncated, or contradicts itself.
        UnknownFormatError: it has no records.
    """
    try:
        found = _READ.get(source)
        if found is None or found.limits != limits:
            found = _READ[source] = read_directory(source, limits)
    except TypeError:  # a source of the caller's own that cannot be remembered
        found = read_directory(source, limits)
    end = found.end
    return Archive(source, limits, found, lambda entry: Reader(source, limits).data_start(entry, end))
