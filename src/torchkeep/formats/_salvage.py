"""What can still be read of a broken file: every tensor is listed, and those that are gone say why.

A zip without its directory is walked from record to record; torch writes the pickle first, so the beginning of a file
tells what was in it. A record whose size stands behind its bytes ends where a descriptor of that very size is found.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..core.checkpoint import Checkpoint, Finding
from ..core.digests import digest_bytes
from ..core.facts import FileFacts
from ..core.limits import Limits
from ..core.memory import tensor_bytes
from ..core.source import Slice, Source, probe_of
from ..core.tensors import LazyTensor, StorageRef, TensorSpec
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, TorchkeepError
from ._assemble import Contents, checkpoint_from
from ._directory import DEFLATED, LOCAL, STORED
from ._dispatch import recognise
from ._inflate import Inflated, raw_deflate
from ._pickle import Use, truncation_is_corruption
from ._stream import unpickle_at
from ._torch import TensorReader
from ._zip import is_zip, read_archive
from .safetensors import Safetensors
from .torch_legacy import MAGIC, salvage_legacy

_CHUNK = 1 << 24
_DESCRIPTOR = 0x0008
_RECORD = re.compile(r"(.*/)?(?:data|tensors)/([^/]+)")
_MOST = 1_000_000


@dataclass(slots=True)
class Piece:
    """A record as it is found: where its bytes are, how many there are, its checksum where there is one."""

    name: str
    method: int
    offset: int
    nbytes: int
    crc: int | None
    whole: bool


@dataclass(slots=True)
class Salvaged:
    """What was recovered.

    Attributes:
        ckpt: every tensor that is known; what is gone has a storage without a place, and its reason.
        unverified: ids of storages that are whole and have no checksum that could be compared.
        notes: what else is to be said.
    """

    ckpt: Checkpoint
    unverified: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def recover(source: Source, limits: Limits) -> Salvaged:
    """All that can be known of a file, however broken.

    Raises:
        OpenError: nothing in it can be recognised.
    """
    head = bytes(source.read(0, min(64, source.size)))
    if is_zip(head):
        return _zip(source, limits)
    if Safetensors().sniff(probe_of(source)) or _cut_safetensors(source, head):
        return _safetensors(source, limits)
    if MAGIC.to_bytes(10, "little") in head or b"L%dL\n" % MAGIC in head:
        return Salvaged(salvage_legacy(source, limits))
    return Salvaged(recognise(source, limits).open(source, limits))


def _cut_safetensors(source: Source, head: bytes) -> bool:
    """Whether the header alone is left of such a file."""
    return source.size > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < Limits().header_bytes


# Zip archives


def _zip(source: Source, limits: Limits) -> Salvaged:
    try:
        archive = read_archive(source, limits)
        part = recognise(source, limits)
        if part.name != "torch_zip":
            return Salvaged(part.open(source, limits))
        pieces = {
            entry.name: Piece(entry.name, entry.method, entry.offset, entry.stored, entry.crc, True)
            for entry in archive.entries.values()
        }
        checksums = archive.checksums
    except OpenError:
        pieces = {piece.name: piece for piece in walk(source)}
        checksums = any(piece.crc for piece in pieces.values())
    if not pieces:
        raise CorruptCheckpointError("has no record that begins within it: nothing can be saved", file=source.name)
    return _Zip(source, limits, pieces, checksums).recovered()


class _Zip:
    """The pieces of one archive, and the storages among them."""

    def __init__(self, source: Source, limits: Limits, pieces: dict[str, Piece], checksums: bool) -> None:
        self.source = source
        self.limits = limits
        self.pieces = pieces
        self.checksums = checksums
        self.by_key = {found[2]: name for name in pieces if (found := _RECORD.fullmatch(name))}
        self.unverified: set[int] = set()

    def recovered(self) -> Salvaged:
        """The object as its pickle tells it; where that is broken, the storages alone."""
        name = next((name for name in self.pieces if name.rpartition("/")[2] == "data.pkl"), None)
        reason = "there is no data.pkl"
        if name is not None:
            try:
                return self._object(self.pieces[name])
            except OpenError as error:
                reason = f"data.pkl cannot be read: {error.message}"
        return self._storages(reason)

    @truncation_is_corruption()
    def _object(self, piece: Piece) -> Salvaged:
        seen: dict[Global, Use] = {}
        reader = TensorReader(self.source, self._place, self.limits)
        inside = self._bytes(piece, self.source.size - piece.offset)
        found = unpickle_at(inside, 0, reader.dialect, self.limits, stream="data.pkl", seen=seen, name=self.source.name)
        contents = Contents(found.value, seen, findings=tuple(reader.findings))
        ckpt = checkpoint_from(self.source.name, "torch_zip", contents, self.limits)
        return Salvaged(ckpt, self.unverified)

    def _bytes(self, piece: Piece, most: int) -> Source:
        """The bytes of a record, stored or inflated as far as they go."""
        if piece.method != DEFLATED:
            return Slice(self.source, piece.offset, most if not piece.whole else piece.nbytes)
        packed = Slice(self.source, piece.offset, piece.nbytes if piece.whole else most)
        return Inflated(packed, raw_deflate, self.limits)

    def _place(self, key: str, nbytes: int) -> StorageRef:
        name = self.by_key.get(key)
        if name is None:
            return StorageRef(nbytes, None, f"lost: the record of storage {key[:100]!r} is not in the file any more")
        piece = self.pieces[name]
        if piece.method not in {STORED, DEFLATED}:
            return StorageRef(nbytes, None, f"lost: record {name[:100]!r} is compressed in an unknown way")
        if piece.method == STORED and piece.nbytes < nbytes:
            return StorageRef(nbytes, None, f"lost: {piece.nbytes:,} of its {nbytes:,} bytes are in the file")
        if piece.method == STORED and piece.whole and piece.nbytes != nbytes:
            return StorageRef(nbytes, None, f"damaged: its record has {piece.nbytes:,} bytes, it needs {nbytes:,}")
        try:
            inside: Source = self._bytes(piece, nbytes)
            if inside.size < nbytes:
                return StorageRef(nbytes, None, f"lost: {inside.size:,} of its {nbytes:,} bytes can be inflated")
            crc = _crc(inside, nbytes) if piece.crc is not None and self.checksums else None
        except TorchkeepError as error:
            return StorageRef(nbytes, None, f"damaged: {error.message}")
        if crc is not None and crc != piece.crc:
            return StorageRef(nbytes, None, "damaged: its checksum is not that of its bytes")
        ref = StorageRef(nbytes, 0, source=inside)
        if crc is None:
            self.unverified.add(id(ref))
        return ref

    def _storages(self, reason: str) -> Salvaged:
        """Nobody knows what the storages are; their bytes are all that can be given back."""
        tensors = {}
        for key, name in self.by_key.items():
            piece = self.pieces[name]
            ref = self._place(key, piece.nbytes)
            spec = TensorSpec(torch.uint8, (ref.nbytes,))
            tensors[f"storage.{key}"] = LazyTensor(self.source, ref, spec, (1,))
        if not tensors:
            raise CorruptCheckpointError(f"holds nothing that can be saved: {reason}", file=self.source.name)
        finding = Finding("odd-structure", "danger", f"{reason}; the storages are given as bytes, without their names")
        ckpt = Checkpoint(self.source.name, "torch_zip", tensors, findings=(finding,))
        return Salvaged(ckpt, self.unverified, [finding.message])


def _crc(source: Source, nbytes: int) -> int:
    crc = 0
    for start in range(0, nbytes, _CHUNK):
        crc = zlib.crc32(source.read(start, min(_CHUNK, nbytes - start)), crc)
    return crc


def walk(source: Source) -> Iterator[Piece]:
    """The records of an archive without a directory, one after another, as their own headers tell them."""
    at = 0
    for _ in range(_MOST):
        found = _header(source, at)
        if found is None:
            at = _find(source, b"PK\3\4", at + 1)
            if at < 0:
                return
            continue
        piece, ahead = found
        yield piece
        if not piece.whole:
            return
        at = ahead


def _header(source: Source, at: int) -> tuple[Piece, int] | None:
    """The record whose header is at a place, and where the next one may begin."""
    if at + LOCAL.size > source.size:
        return None
    magic, _, flags, method, _, _, crc, stored, nbytes, name_len, extra_len = LOCAL.unpack(
        bytes(source.read(at, LOCAL.size))
    )
    start = at + LOCAL.size + name_len + extra_len
    if magic != b"PK\3\4" or start > source.size:
        return None
    name = bytes(source.read(at + LOCAL.size, name_len)).decode("utf-8", "replace")
    left = source.size - start
    if flags & _DESCRIPTOR and not stored:
        return _until_descriptor(source, name, method, start)
    if stored == 2**32 - 1 or nbytes == 2**32 - 1:
        stored = _wide(bytes(source.read(at + LOCAL.size + name_len, extra_len)), stored)
    whole = stored <= left
    return Piece(name, method, start, stored if whole else left, crc, whole), start + stored


def _wide(extra: bytes, stored: int) -> int:
    """The 64-bit size of a record out of its extra field: the size comes first, then the size as stored."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1 and length >= 16:
            return int.from_bytes(extra[at + 12 : at + 20], "little")
        at += 4 + length
    return stored


def _until_descriptor(source: Source, name: str, method: int, start: int) -> tuple[Piece, int]:
    """A record whose size stands behind it: the descriptor that gives the very size at which it is found."""
    at = start
    while True:
        at = _find(source, b"PK\7\x08", at)
        if at < 0 or at + 16 > source.size:
            return Piece(name, method, start, source.size - start, None, False), source.size
        fields = bytes(source.read(at, min(24, source.size - at)))
        crc, size = int.from_bytes(fields[4:8], "little"), at - start
        if int.from_bytes(fields[8:12], "little") == size and not _is_wide(fields, size):
            return Piece(name, method, start, size, crc, True), at + 16
        if _is_wide(fields, size):
            return Piece(name, method, start, size, crc, True), at + 24
        at += 1


def _is_wide(fields: bytes, size: int) -> bool:
    """Whether a descriptor has 64-bit numbers."""
    return len(fields) == 24 and int.from_bytes(fields[8:16], "little") == size and fields[16:24] == fields[8:16]


def _find(source: Source, what: bytes, start: int) -> int:
    """Where some bytes are next, or -1."""
    for at in range(start, source.size, _CHUNK):
        data = bytes(source.read(at, min(_CHUNK + len(what) - 1, source.size - at)))
        found = data.find(what)
        if found >= 0:
            return at + found
    return -1


# safetensors


def _safetensors(source: Source, limits: Limits) -> Salvaged:
    """The header says all; what lies within the file is there, and digests tell whether it is as it was."""
    ckpt = Safetensors().open(source, limits, whole=False)
    facts = ckpt.facts if ckpt.facts is not None and ckpt.facts.header else FileFacts()
    unverified: set[int] = set()
    for name, tensor in ckpt.items():
        stored = facts.tied.get(name, name)
        names = facts.composites[stored].parts if stored in facts.composites else {}
        for key, part in [(names[key], part) for key, part in tensor.parts.items()] or [(stored, tensor)]:
            _compare(part, facts.digests.get(key), unverified)
    return Salvaged(ckpt, unverified)


def _compare(tensor: LazyTensor, digest: str | None, unverified: set[int]) -> None:
    """Hold what lies in the file against its digest; a storage that fails loses its place."""
    storage = tensor.storage
    if storage is None or storage.offset is None:
        return
    if digest is None:
        unverified.add(id(storage))
    elif digest_bytes(tensor_bytes(tensor.load())) != digest:
        storage.offset, storage.problem = None, "damaged: its digest is not that of its bytes"
