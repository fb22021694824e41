"""The folders that torch.distributed.checkpoint writes: a pickled `.metadata`, and files of chunks, each a small save.

The metadata is read as data. A chunk is opened when a tensor that it belongs to is loaded, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.checkpoint import Checkpoint, Finding
from ..core.composite import Chunked, Composite, check_tiling
from ..core.limits import Limits
from ..core.memory import tensor_bytes
from ..core.source import Buffer, Probe, Slice, Source, check_range
from ..core.tensors import LazyTensor, StorageRef, TensorSpec, contiguous_stride
from ..core.tree import Global, Record, as_tensor
from ..errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFeatureError
from ._assemble import Contents, Hint, checkpoint_from
from ._composites import check_sizes
from ._dispatch import open_inner
from ._pause import collector_paused
from ._pickle import Use, truncation_is_corruption, unpickle
from ._torch import TensorReader, with_dangers
from ._zip import read_archive

METADATA = ".metadata"
_MODULES = ("torch.distributed.checkpoint", "torch.distributed._shard.checkpoint")
_DIMENSIONS = 64
_PIECES = 1_000_000


class Dcp:
    """Reads checkpoints of torch.distributed.checkpoint, of any number of processes."""

    name = "dcp"

    def sniff(self, probe: Probe) -> bool:
        """A folder with a `.metadata`, or that file itself."""
        if probe.size == 0 and probe.has(METADATA):
            return True
        return probe.head[:1] == b"\x80" and any(
            f"{module}.metadata".encode() in probe.head[:200] for module in _MODULES
        )

    @collector_paused()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the metadata and the values that are no tensors; the tensors stay in their chunks.

        Raises:
            CorruptCheckpointError: chunks do not tile their tensor, or lie outside of their file or folder.
        """
        seen: dict[Global, Use] = {}
        tree, findings = _metadata(source, limits, seen)
        if not isinstance(tree, Record) or not tree.class_name.endswith("metadata.Metadata"):
            message = "its .metadata is not what torch.distributed.checkpoint writes"
            odd = Finding("odd-structure", "warning", message, METADATA)
            return checkpoint_from(source.name, self.name, Contents(tree, seen, findings=(odd,)), limits)
        reading = _Reading(source, limits)
        whole = reading.tree(tree)
        hints = (Hint("it is a folder of torch.distributed.checkpoint", (1, 13)),)
        contents = Contents(whole, seen, hints=hints, findings=(*findings, *reading.findings))
        return checkpoint_from(source.name, self.name, contents, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Compare the checksums in every chunk: (chunk, whether they hold, bytes)."""
        tree, _ = _metadata(source, limits, {})
        reading = _Reading(source, limits)
        for piece in reading.pieces(tree).values():
            chunk = reading.slice(piece)
            held = all(ok for _, ok, _ in read_archive(chunk, limits).verify())
            yield f"{piece.file}, byte {piece.offset}", held, piece.length


@truncation_is_corruption()
def _metadata(source: Source, limits: Limits, seen: dict[Global, Use]) -> tuple[Any, list[Finding]]:
    """What `.metadata` holds, and what was found in saves inside of it."""
    index = source.sibling(METADATA) if source.size == 0 else source
    if index.size > limits.pickle_bytes:
        raise UnsafeCheckpointError(f"has metadata of {index.size:,} bytes (Limits.pickle_bytes)", file=source.name)
    reader = TensorReader(index, _nowhere, limits)
    data = bytes(index.read(0, index.size))
    try:
        found = unpickle(data, 0, reader.dialect(), limits, file=source.name, stream=METADATA, seen=seen)
    except CorruptCheckpointError as error:
        raise with_dangers(error, seen)  # noqa: B904 - it is the same error
    return found.value, reader.findings


def _nowhere(key: str, nbytes: int) -> StorageRef:
    return StorageRef(nbytes, None, "the metadata of a distributed checkpoint holds no tensors")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where a chunk or a value lies."""

    file: str
    offset: int
    length: int


def _field(record: Any, name: str, position: int) -> Any:
    """A field of a pickled dataclass, whose state is a dict or, where it has a method for that, a tuple."""
    if not isinstance(record, Record):
        return None
    if isinstance(record.state, dict):
        return record.state.get(name)
    for values in (record.state, record.args):
        if isinstance(values, tuple) and position < len(values):
            return values[position]
    return None


def _sizes(value: Any, place: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > _DIMENSIONS:
        raise CorruptCheckpointError("has sizes or offsets that are none", place=place)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in value):
        raise CorruptCheckpointError(f"has sizes or offsets {str(tuple(value))[:100]}", place=place)
    return tuple(value)


class _Reading:
    """One reading of a folder; each file of chunks is opened once."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.findings: list[Finding] = []
        self._files: dict[str, Source] = {}

    def tree(self, metadata: Record) -> Any:
        """The saved object: nested as the planner's paths say, or flat where there are none."""
        entries = _field(metadata, "state_dict_metadata", 0)
        if not isinstance(entries, dict) or len(entries) > _PIECES:
            raise CorruptCheckpointError("has metadata without a table of its entries", file=self.source.name)
        pieces = self.pieces(metadata)
        values = {}
        for name, described in entries.items():
            if not isinstance(name, str) or not isinstance(described, Record):
                raise CorruptCheckpointError("has an entry that torch never wrote", file=self.source.name)
            try:
                values[name] = self._value(name, described, pieces)
            except CorruptCheckpointError as error:
                error.file, error.place = error.file or self.source.name, error.place or f"entry {name[:100]!r}"
                raise
        paths = _field(metadata, "planner_data", 1)
        return _nested(values, paths) if isinstance(paths, dict) else values

    def pieces(self, metadata: Any) -> dict[tuple[str, tuple[int, ...]], _Piece]:
        """Where each chunk lies: (entry, offset in the tensor) -> piece."""
        table = _field(metadata, "storage_data", 2)
        if not isinstance(table, dict) or len(table) > _PIECES:
            raise CorruptCheckpointError("has metadata that does not say where its chunks are", file=self.source.name)
        found = {}
        for index, info in table.items():
            name, offset = _field(index, "fqn", 0), _field(index, "offset", 1)
            file, start, length = (
                _field(info, key, at) for at, key in enumerate(("relative_path", "offset", "length"))
            )
            if (
                not isinstance(name, str)
                or not isinstance(file, str)
                or type(start) is not int
                or type(length) is not int
            ):
                raise CorruptCheckpointError(
                    "has a chunk that torch never wrote", file=self.source.name, place=METADATA
                )
            if _field(info, "transform_descriptors", 3):
                raise UnsupportedFeatureError(
                    "has chunks that were transformed, as by compression, when they were saved",
                    file=self.source.name,
                    place=f"entry {name[:100]!r}",
                    hint="load it with torch.distributed.checkpoint and save it without extensions",
                )
            where = () if offset is None else _sizes(offset, f"entry {name[:100]!r}")
            found[name, where] = _Piece(file, start, length)
        return found

    def slice(self, piece: _Piece) -> Slice:
        """The bytes of a chunk; its file must lie in the folder, and the chunk in the file."""
        if piece.file not in self._files:
            self._files[piece.file] = self.source.sibling(piece.file)
        return Slice(self._files[piece.file], piece.offset, piece.length, f"byte {piece.offset}")

    def _value(self, name: str, described: Record, pieces: dict[tuple[str, tuple[int, ...]], _Piece]) -> Any:
        if described.class_name.endswith("BytesStorageMetadata"):
            return self._plain(name, pieces)
        if not described.class_name.endswith("TensorStorageMetadata"):
            raise UnsupportedFeatureError(
                f"holds a {described.class_name[:200]}", file=self.source.name, place=name[:100]
            )
        properties = _field(described, "properties", 0)
        dtype = _field(properties, "dtype", 0)
        if not isinstance(dtype, torch.dtype):
            raise UnsupportedFeatureError(
                "has a dtype that this torch does not know", file=self.source.name, place=name
            )
        spec = TensorSpec(dtype, _sizes(_field(described, "size", 1), name[:100]))
        check_sizes(spec)
        chunks = self._chunks(name, spec, _field(described, "chunks", 2), pieces)
        grad = _field(properties, "requires_grad", 2) is True
        if len(chunks) == 1 and chunks[0][1].spec.shape == spec.shape:
            return chunks[0][1].replace(requires_grad=grad)
        parts = {f"chunk {number}": tensor for number, (_, tensor) in enumerate(chunks)}
        how = Chunked(tuple(offset for offset, _ in chunks))
        return Composite(how, parts, self.source, spec, requires_grad=grad)

    def _chunks(
        self, name: str, spec: TensorSpec, listed: Any, pieces: dict[tuple[str, tuple[int, ...]], _Piece]
    ) -> list[tuple[tuple[int, ...], LazyTensor]]:
        if not isinstance(listed, list):
            raise CorruptCheckpointError("has a tensor without a list of its chunks")
        boxes = [(_sizes(_field(one, "offsets", 0), name), _sizes(_field(one, "sizes", 1), name)) for one in listed]
        wrong = check_tiling(spec.shape, boxes)
        if wrong:
            raise CorruptCheckpointError(wrong, hint="the checkpoint is not whole; do not use it")
        found = []
        for offset, size in boxes:
            piece = pieces.get((name, offset)) or pieces.get((name, ()))
            if piece is None:
                raise CorruptCheckpointError(f"does not say where the chunk at {list(offset)} is")
            part = TensorSpec(spec.dtype, size)
            chunk = _Chunk(self.slice(piece), part, self.limits)
            storage = StorageRef(part.nbytes, 0, source=chunk)
            found.append((offset, LazyTensor(self.source, storage, part, contiguous_stride(size))))
        return found

    def _plain(self, name: str, pieces: dict[tuple[str, tuple[int, ...]], _Piece]) -> Any:
        """A value that is no tensor is a save of its own, and small."""
        piece = pieces.get((name, ()))
        if piece is None:
            raise CorruptCheckpointError("does not say where this value is")
        inside = open_inner(self.slice(piece), self.limits)
        self.findings += [finding for finding in inside.findings if finding.severity != "info"]
        return inside.tree


class _Chunk:
    """The elements of one chunk, row by row; the save that they lie in is opened when they are first read."""

    def __init__(self, slice_: Slice, spec: TensorSpec, limits: Limits) -> None:
        self.name = slice_.name
        self.size = spec.nbytes
        self._slice = slice_
        self._spec = spec
        self._limits = limits
        self._tensor: LazyTensor | None = None

    def read(self, offset: int, nbytes: int) -> Buffer:
        check_range(self, offset, nbytes)
        tensor = self._tensor or self._opened()
        if tensor.storage is not None and tensor.stride == contiguous_stride(tensor.spec.shape):
            start = tensor.storage_offset * tensor.dtype.itemsize + offset
            whole: Buffer = tensor._read(start, nbytes)
            return whole
        return bytearray(tensor_bytes(tensor.load())[offset : offset + nbytes])

    def _opened(self) -> LazyTensor:
        tensor = as_tensor(open_inner(self._slice, self._limits).tree)
        if not isinstance(tensor, LazyTensor) or tensor.spec != self._spec:
            said = repr(tensor) if isinstance(tensor, LazyTensor) else "no tensor"
            raise CorruptCheckpointError(f"holds {said} where the metadata says {self._spec}", file=self.name)
        self._tensor = tensor
        return tensor

    def sibling(self, name: str) -> Source:
        return self._slice.sibling(name)


def _nested(values: dict[str, Any], paths: dict[Any, Any]) -> Any:
    """Put flattened values back to where they were: keys of dicts, and numbers of lists."""
    root: dict[Any, Any] = {}
    for name, value in values.items():
        path = paths.get(name)
        if type(path) is not tuple or not path or not all(type(key) in {str, int} for key in path) or len(path) > 200:
            path = (name,)
        node: Any = root
        for key, following in zip(path, (*path[1:], None), strict=True):
            child: Any = value if following is None else [] if type(following) is int else {}
            node = _enter(node, key, child, len(values))
            if node is None:
                root[name] = value  # the path leads through a value: hostile or odd, and nothing is dropped
                break
    return root


def _enter(node: Any, key: Any, child: Any, most: int) -> Any:
    """What is under a key of a container, which becomes `child` where there is nothing yet; None where it cannot be."""
    if isinstance(node, dict):
        return node.setdefault(key, child)
    if not isinstance(node, list) or type(key) is not int or not 0 <= key <= most:
        return None
    node.extend([None] * (key + 1 - len(node)))
    if node[key] is None:
        node[key] = child
    return node[key]
