"""Lazy tensors as the calls by which torch.load rebuilds them, and the storages that those calls need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.composite import QUANTIZED, Chunked, Composite, Compressed, Coo, Nested, Quantized
from ..core.pieces import blocks_of, storage_blocks
from ..core.source import Buffer
from ..core.tensors import DTYPES, LazyTensor, contiguous_stride, dtype_name
from ..errors import UnsavableError
from ._pickle_writer import Call, Name, Persistent, write_pickle
from ._torch_versions import TODAY, TorchVersion

_UNTYPED = Name("torch.storage", "UntypedStorage")
_HOOKS = Call(Name("collections", "OrderedDict"), ())  # where the hooks stood that nobody writes
_QUANTIZED_STORAGES = {
    "qint8": "QInt8",
    "quint8": "QUInt8",
    "qint32": "QInt32",
    "quint4x2": "QUInt4x2",
    "quint2x4": "QUInt2x4",
}
_FIRST_ADDRESS, _ADDRESS_STEP = 0x5500_0000_0000, 64  # where a process has its heap; all are of 14 digits


@dataclass(frozen=True, slots=True)
class Stored:
    """One storage of a file: what the pickle calls it, its size in elements and in bytes, and its bytes in time."""

    key: str
    count: int
    nbytes: int
    blocks: Callable[[], Iterator[Buffer]]


@dataclass(frozen=True, slots=True)
class Pickled:
    """An object's pickle and the storages beside it, in the order in which the pickle names them.

    Attributes:
        notes: what is not in the file as it was.
    """

    data: bytes
    storages: tuple[Stored, ...]
    notes: tuple[str, ...] = ()


def pickled(root: Any, other: Callable[[Any], Any], version: TorchVersion = TODAY) -> Pickled:
    """Everything but the bytes of the storages.

    Args:
        root: plain values and lazy tensors, as `write_pickle` takes them.
        other: what to write in the place of values that such a file cannot have.
        version: of torch, whose ways are kept.

    Raises:
        UnsavableError: something in `root` cannot be said, or not to that version.
    """
    storages = _Storages(version)
    data = write_pickle(root, storages.reduced, other, version)
    if storages.mixed:  # known only now; those are written as bytes without a dtype
        storages = _Storages(version, storages.mixed)
        data = write_pickle(root, storages.reduced, other, version)
    return Pickled(data, tuple(storages.stored.values()), storages.notes())


class _Storages:
    """Makes the calls that rebuild tensors, and collects the storages that they need.

    Attributes:
        stored: one for each storage, by what makes it the same.
        mixed: storages that tensors of several dtypes use, and that can be written as bytes without a dtype.
    """

    def __init__(self, version: TorchVersion, mixed: Collection[object] = ()) -> None:
        """Storages in `mixed` are written as bytes without a dtype."""
        self.stored: dict[object, Stored] = {}
        self.mixed: set[object] = set()
        self._version = version
        self._typed = not version.has_untyped
        self._untyped = frozenset(mixed)
        self._kinds: dict[object, set[str]] = {}

    def notes(self) -> tuple[str, ...]:
        """What could not stay shared."""
        apart = sum(len(kinds) > 1 for kinds in self._kinds.values()) if self._typed else 0
        what = f"{apart:,} storages that tensors of several dtypes share are written once for each dtype"
        return (what,) if apart else ()

    def reduced(self, tensor: LazyTensor) -> tuple[object, Call]:
        """A key, equal for tensors that are one, and the call that makes the tensor."""
        self._version.check(tensor)
        key: object = (tensor.identity, tensor.kind, tensor.requires_grad)
        own = self._version.exact and tensor.kind != "parameter"  # torch knows nothing of equal tensors
        if own or tensor.device == "meta":
            key = (id(tensor), tensor.kind, tensor.requires_grad)
        if tensor.kind != "parameter":
            return key, self._tensor(tensor, tensor.requires_grad)
        data = self._tensor(tensor, False)
        if not self._version.has_rebuild_parameter:
            return key, Call(Name("torch.nn.parameter", "Parameter"), (data, _grad(tensor)))
        return key, _call("_rebuild_parameter", data, _grad(tensor), _HOOKS)

    def _tensor(self, tensor: LazyTensor, requires_grad: bool) -> Call:
        grad = requires_grad and _grad(tensor)
        if isinstance(tensor, Composite):
            return self._composite(tensor, tensor.composition, grad)
        if tensor.device == "meta":
            dtype = Name("torch", dtype_name(tensor.dtype))
            return _call("_rebuild_meta_tensor_no_storage", dtype, tensor.spec.shape, tensor.stride, grad)
        ident, nbytes = _place(tensor)
        if self._typed:
            nbytes -= nbytes % tensor.dtype.itemsize  # whole elements; no tensor of this dtype reaches beyond
        where = (tensor.storage_offset, tensor.spec.shape, self._stride(tensor))
        bits = {name: True for name in ("conj", "neg") if getattr(tensor, name)}

        def blocks() -> Iterator[Buffer]:
            return storage_blocks(tensor, nbytes)

        ident = ident if nbytes else (tensor.dtype, ident)
        return self._strided(ident, nbytes, blocks, tensor.dtype, where, grad, bits)

    def _stride(self, tensor: LazyTensor) -> tuple[int, ...]:
        """The strides; where they would make an old torch look for elements that are not there, some that do not."""
        shape, stride = tensor.spec.shape, tensor.stride
        if tensor.numel() or not self._version.enlarges_empty:
            return stride
        at = shape.index(0)
        last = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)
        return (*stride[:at], last, *stride[at + 1 :])

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
        kinds = self._kinds.setdefault(ident, set())
        kinds.add(kind.name)
        slot = (ident, kind.name) if self._typed else ident
        if len(kinds) > 1 and not self._typed:
            self.mixed.add(ident)
        stored = self.stored.get(slot)
        if stored is None:
            stored = self.stored[slot] = Stored(self._key(), count, nbytes, blocks)
        view = (None,) if self._version.is_legacy else ()
        return Persistent(("storage", kind, stored.key, "cpu", count, *view))

    def _key(self) -> str:
        number = len(self.stored)
        return str(_FIRST_ADDRESS + _ADDRESS_STEP * number if self._version.has_addresses else number)

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
        layout = Call(Name("torch.serialization", "_get_layout"), (f"torch.{how.layout}",), once=True)
        size = Call(Name("torch", "Size"), (tensor.spec.shape,))
        function = "_rebuild_sparse_tensor"
        if isinstance(how, Coo):
            coalesced = (how.coalesced,) if self._version.has_coalesced else ()
            data: tuple[Any, ...] = (parts["indices"], parts["values"], size, *coalesced)
        elif isinstance(how, Compressed):
            data = (parts["compressed_indices"], parts["plain_indices"], parts["values"], size)
            if self._version.has_rebuild_csr:
                function = "_rebuild_sparse_csr_tensor"
        else:
            raise UnsavableError(f"a {how.layout} tensor cannot be written for torch.load(weights_only=True)")
        return _call(function, layout, data)

    def _quantized(self, tensor: Composite, how: Quantized, grad: bool) -> Call:
        ints = tensor.parts["ints"]
        ident, nbytes = _place(ints)
        kind = Name("torch", f"{_QUANTIZED_STORAGES[dtype_name(tensor.dtype)]}Storage")
        place = self._storage(
            (kind, ident), kind, nbytes // ints.dtype.itemsize, nbytes, lambda: storage_blocks(ints, nbytes)
        )
        params = (Name("torch", how.scheme), *self._scales(tensor, how))
        packed = QUANTIZED[tensor.dtype][1] > 1
        stride = contiguous_stride(tensor.spec.shape) if packed else ints.stride
        where = (ints.storage_offset, tensor.spec.shape, stride)
        return _call("_rebuild_qtensor", place, *where, params, grad, _HOOKS)

    def _scales(self, tensor: Composite, how: Quantized) -> tuple[Any, ...]:
        if how.scheme == "per_tensor_affine":
            return how.scale, how.zero_point
        scales, zeros = tensor.parts["scales"], tensor.parts["zero_points"]
        if self._version.lists_scales:
            return scales.load().tolist(), zeros.load().tolist(), how.axis
        return self._tensor(scales, False), self._tensor(zeros, False), how.axis


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
