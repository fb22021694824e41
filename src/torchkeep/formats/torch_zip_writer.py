"""Writing what torch.save writes: a zip of a pickle and of storages that are neither compressed nor held in memory.

The records stand in the order, at the alignment and with the headers of torch's own writer, so that readers that
compute where a storage begins find it: a local header without sizes, padding in an extra field `FB`, a descriptor
after the bytes. Layout and signatures follow sections 4.3 and 4.5 of PKWARE's APPNOTE.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ..core.composite import QUANTIZED, Chunked, Composite, Compressed, Coo, Nested, Quantized
from ..core.pieces import Beside, blocks_of, storage_blocks
from ..core.source import Buffer
from ..core.tensors import DTYPES, LazyTensor, contiguous_stride, dtype_name
from ..errors import UnsavableError
from ._directory import CENTRAL, END, END64, LOCAL, LOCATOR
from ._pickle_writer import Call, Name, Persistent, write_pickle

_ALIGN = 64
_MOST = 0xFFFFFFFF
_UTF8, _DESCRIPTOR = 0x0800, 0x0008
_VERSION64 = 45

_UNTYPED = Name("torch.storage", "UntypedStorage")
_HOOKS = Call(Name("collections", "OrderedDict"), ())  # where the hooks stood that nobody writes
_QUANTIZED_STORAGES = {
    "qint8": "QInt8",
    "quint8": "QUInt8",
    "qint32": "QInt32",
    "quint4x2": "QUInt4x2",
    "quint2x4": "QUInt2x4",
}


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
    """

    records: tuple[Record, ...]
    directory: int

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
                END64.pack(b"PK\6\6", 44, _VERSION64, _VERSION64, 0, 0, count, count, nbytes, self.directory),
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


def lay_out(root: Any, stem: str, other: Callable[[Any], Any]) -> Archive:
    """Decide every byte of the file but those of the storages.

    Args:
        root: plain values and lazy tensors, as `write_pickle` takes them.
        stem: of the file's name; the records lie in a folder of this name.
        other: what to write in the place of values that such a file cannot have.

    Raises:
        UnsavableError: something in `root` cannot be said.
    """
    storages = _Storages()
    data = write_pickle(root, storages.reduced, other)
    if storages.mixed:  # known only now; those are written as bytes without a dtype
        storages = _Storages(storages.mixed)
        data = write_pickle(root, storages.reduced, other)
    folder = stem if stem.isascii() and stem.isprintable() and "\\" not in stem and stem.strip(".") else "archive"

    def small(name: str, content: bytes) -> Record:
        return Record(name, len(content), lambda: iter([content]))

    records = [
        small("data.pkl", data),
        small(".format_version", b"1"),
        small(".storage_alignment", str(_ALIGN).encode()),
        small("byteorder", sys.byteorder.encode()),
        *storages.records.values(),
        small("version", b"3\n"),
    ]
    at = 0
    for record in records:
        record.name = f"{folder}/{record.name}"
        record.header = at
        at += len(record.local_header()) + record.nbytes + len(record.descriptor())
    return Archive(tuple(records), at)


class _Storages:
    """Makes the calls that rebuild tensors, and collects the storages that they need.

    Attributes:
        records: one for each storage, by what makes it the same.
        mixed: storages that tensors of several dtypes use.
    """

    def __init__(self, mixed: Collection[object] = ()) -> None:
        """Storages in `mixed` are written as bytes without a dtype."""
        self.records: dict[object, Record] = {}
        self.mixed: set[object] = set()
        self._untyped = frozenset(mixed)
        self._kinds: dict[object, str] = {}

    def reduced(self, tensor: LazyTensor) -> tuple[object, Call]:
        """A key, equal for tensors that are one, and the call that makes the tensor."""
        meta = tensor.device == "meta"
        key = ((id(tensor),) if meta else tensor.identity, tensor.kind, tensor.requires_grad)
        if tensor.kind != "parameter":
            return key, self._tensor(tensor, tensor.requires_grad)
        return key, _call("_rebuild_parameter", self._tensor(tensor, False), _grad(tensor), _HOOKS)

    def _tensor(self, tensor: LazyTensor, requires_grad: bool) -> Call:
        grad = requires_grad and _grad(tensor)
        if isinstance(tensor, Composite):
            return self._composite(tensor, tensor.composition, grad)
        if tensor.device == "meta":
            dtype = Name("torch", dtype_name(tensor.dtype))
            return _call("_rebuild_meta_tensor_no_storage", dtype, tensor.spec.shape, tensor.stride, grad)
        ident, nbytes = _place(tensor)
        where = (tensor.storage_offset, tensor.spec.shape, tensor.stride)
        bits = {name: True for name in ("conj", "neg") if getattr(tensor, name)}

        def blocks() -> Iterator[Buffer]:
            return storage_blocks(tensor, nbytes)

        return self._strided(ident if nbytes else (tensor.dtype,), nbytes, blocks, tensor.dtype, where, grad, bits)

    def _strided(
        self,
        ident: object,
        nbytes: int,
        blocks: Callable[[], Iterator[Buffer]],
        dtype: torch.dtype,
        where: tuple[Any, ...],
        grad: bool,
        bits: dict[str, bool],
    ) -> Call:
        kind = DTYPES[dtype_name(dtype)].storage
        typed = kind is not None and hasattr(torch, kind) and not nbytes % dtype.itemsize
        if kind is None or not typed or ident in self._untyped:
            storage = self._storage(ident, _UNTYPED, nbytes, nbytes, blocks)
            name = Name("torch", dtype_name(dtype))
            return _call("_rebuild_tensor_v3", storage, *where, grad, _HOOKS, name, *([bits] if bits else []))
        storage = self._storage(ident, Name("torch", kind), nbytes // dtype.itemsize, nbytes, blocks)
        return _call("_rebuild_tensor_v2", storage, *where, grad, _HOOKS, *([bits] if bits else []))

    def _storage(
        self, ident: object, kind: Name, count: int, nbytes: int, blocks: Callable[[], Iterator[Buffer]]
    ) -> Persistent:
        record = self.records.get(ident)
        if record is None:
            record = self.records[ident] = Record(f"data/{len(self.records)}", nbytes, blocks)
            self._kinds[ident] = kind.name
        if self._kinds[ident] != kind.name:
            self.mixed.add(ident)
        return Persistent(("storage", kind, record.name.removeprefix("data/"), "cpu", count))

    def _composite(self, tensor: Composite, how: Any, grad: bool) -> Call:
        if isinstance(how, Chunked):
            spec, stride = tensor.spec, contiguous_stride(tensor.spec.shape)
            ident = ("chunked", tensor.identity)
            return self._strided(
                ident, spec.nbytes, lambda: blocks_of(tensor), spec.dtype, (0, spec.shape, stride), grad, {}
            )
        tensor.load()  # torch.load checks less: what does not fit together would be read from beyond its memory there
        if isinstance(how, Quantized):
            return self._quantized(tensor, how, grad)
        parts = {name: self._tensor(part, False) for name, part in tensor.parts.items()}
        if isinstance(how, Nested):
            return _call("_rebuild_nested_tensor", *(parts[name] for name in ("buffer", "sizes", "strides", "offsets")))
        layout = Call(Name("torch.serialization", "_get_layout"), (f"torch.{how.layout}",))
        size = Call(Name("torch", "Size"), (tensor.spec.shape,))
        if isinstance(how, Coo):
            data: tuple[Any, ...] = (parts["indices"], parts["values"], size, how.coalesced)
        elif isinstance(how, Compressed):
            data = (parts["compressed_indices"], parts["plain_indices"], parts["values"], size)
        else:
            raise UnsavableError(f"a {how.layout} tensor cannot be written for torch.load(weights_only=True)")
        return _call("_rebuild_sparse_tensor", layout, data)

    def _quantized(self, tensor: Composite, how: Quantized, grad: bool) -> Call:
        ints = tensor.parts["ints"]
        ident, nbytes = _place(ints)
        kind = Name("torch", f"{_QUANTIZED_STORAGES[dtype_name(tensor.dtype)]}Storage")
        place = self._storage(
            (kind, ident), kind, nbytes // ints.dtype.itemsize, nbytes, lambda: storage_blocks(ints, nbytes)
        )
        scheme = Name("torch", how.scheme)
        if how.scheme == "per_tensor_affine":
            params: tuple[Any, ...] = (scheme, how.scale, how.zero_point)
        else:
            scales, zeros = (self._tensor(tensor.parts[name], False) for name in ("scales", "zero_points"))
            params = (scheme, scales, zeros, how.axis)
        packed = QUANTIZED[tensor.dtype][1] > 1
        stride = contiguous_stride(tensor.spec.shape) if packed else ints.stride
        where = (ints.storage_offset, tensor.spec.shape, stride)
        return _call("_rebuild_qtensor", place, *where, params, grad, _HOOKS)


def _place(tensor: LazyTensor) -> tuple[object, int]:
    """What makes a tensor's storage the same as that of another one, and its size in bytes."""
    storage = tensor.storage
    assert storage is not None
    if storage.offset is None:
        return id(storage), storage.nbytes
    ident = (id(storage.source or tensor.source), storage.offset, storage.nbytes)
    if storage.source is None:
        return ident, storage.nbytes
    return ident, min(storage.nbytes, storage.source.size - storage.offset)  # the other byte order: whole elements


def _call(function: str, *args: Any) -> Call:
    return Call(Name("torch._utils", function), args)


def _grad(tensor: LazyTensor) -> bool:
    """The flag, where torch would take it."""
    return tensor.requires_grad and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
