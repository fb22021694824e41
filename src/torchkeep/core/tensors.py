"""Tensors that are not in memory yet: what they are, where their bytes lie, and the one table of dtypes."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch

from ..errors import CorruptCheckpointError, UnsupportedFeatureError
from .source import Source

_MOST = 1 << 62

# Processors on which a tensor may start at any address; elsewhere unaligned storages are copied once.
_UNALIGNED_OK = platform.machine().lower() in {"x86_64", "amd64", "i686", "aarch64", "arm64"}


@dataclass(frozen=True, slots=True)
class DType:
    """One row of the dtype table: torch's dtype, its safetensors code (None if it has none), its storage class."""

    torch: torch.dtype
    safetensors: str | None
    storage: str | None = None

    @property
    def name(self) -> str:
        """torch's name without the prefix: `float32`."""
        return dtype_name(self.torch)


def _rows() -> Iterable[DType]:
    table: tuple[tuple[str, str | None, str | None], ...] = (
        ("float64", "F64", "DoubleStorage"),
        ("float32", "F32", "FloatStorage"),
        ("float16", "F16", "HalfStorage"),
        ("bfloat16", "BF16", "BFloat16Storage"),
        ("int64", "I64", "LongStorage"),
        ("int32", "I32", "IntStorage"),
        ("int16", "I16", "ShortStorage"),
        ("int8", "I8", "CharStorage"),
        ("uint8", "U8", "ByteStorage"),
        ("bool", "BOOL", "BoolStorage"),
        ("uint64", "U64", None),
        ("uint32", "U32", None),
        ("uint16", "U16", None),
        ("complex128", None, "ComplexDoubleStorage"),
        ("complex64", "C64", "ComplexFloatStorage"),
        ("complex32", None, "ComplexHalfStorage"),
        ("float8_e4m3fn", "F8_E4M3", None),
        ("float8_e4m3fnuz", "F8_E4M3FNUZ", None),
        ("float8_e5m2", "F8_E5M2", None),
        ("float8_e5m2fnuz", "F8_E5M2FNUZ", None),
        ("float8_e8m0fnu", "F8_E8M0", None),
        ("float4_e2m1fn_x2", None, None),
    )
    for name, code, storage in table:
        if hasattr(torch, name):  # float8_e8m0fnu and float4 are younger than the oldest torch we support
            yield DType(getattr(torch, name), code, storage)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a dtype without the `torch.` prefix."""
    return str(dtype).removeprefix("torch.")


DTYPES: dict[str, DType] = {row.name: row for row in _rows()}
BY_SAFETENSORS: dict[str, DType] = {row.safetensors: row for row in DTYPES.values() if row.safetensors}
BY_STORAGE: dict[str, DType] = {row.storage: row for row in DTYPES.values() if row.storage}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dtype and shape of a tensor, and nothing of its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements when stored without gaps."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(map(str, self.shape))}]"


@dataclass(slots=True, eq=False)
class StorageRef:
    """A range of bytes in a file that one or more tensors share.

    `offset` is None while nobody knows where the bytes are; `problem` then says why, should it stay so.
    A legacy file tells its offsets only at the end, so its reader places the storages after it made the tensors.
    `source` is where the range is counted, when that is not the file itself: a compressed record, another shard.
    """

    nbytes: int
    offset: int | None
    problem: str = ""
    source: Source | None = None


class LazyTensor:
    """A tensor in a file: all about it is known, none of its values has been read.

    >>> ckpt["fc.weight"].shape, ckpt["fc.weight"].load()           # doctest: +SKIP
    >>> ckpt["embed.weight"][1000:1010]                             # reads ten rows  # doctest: +SKIP

    Attributes:
        spec: dtype and shape.
        stride, storage_offset: in elements, as in torch.
        device: the device it was saved from, as the file says: `cpu`, `cuda:0`, `meta`. It need not exist here.
        requires_grad: the flag in the file.
        kind: `parameter`, `buffer` or `tensor`.
        conj, neg: torch's lazy conjugation and negation bits.
        class_name: the tensor subclass in the file, or an empty string for torch's own.
        attributes: what else was pickled with the tensor (inert), or None.
        global_shape: the shape of the whole, where this is the part that one process held (DTensor); else None.
    """

    __slots__ = (
        "attributes",
        "class_name",
        "conj",
        "device",
        "global_shape",
        "kind",
        "neg",
        "requires_grad",
        "source",
        "spec",
        "storage",
        "storage_offset",
        "stride",
        "token",
    )

    def __init__(
        self,
        source: Source,
        storage: StorageRef | None,
        spec: TensorSpec,
        stride: tuple[int, ...],
        storage_offset: int = 0,
        *,
        device: str = "cpu",
        requires_grad: bool = False,
        kind: str = "tensor",
        conj: bool = False,
        neg: bool = False,
        class_name: str = "",
        attributes: Any = None,
        global_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.source = source
        self.storage = storage
        self.spec = spec
        self.stride = stride
        self.storage_offset = storage_offset
        self.device = device
        self.requires_grad = requires_grad
        self.kind = kind
        self.conj = conj
        self.neg = neg
        self.class_name = class_name
        self.attributes = attributes
        self.global_shape = global_shape
        self.token = object() if storage is None else None  # what has no bytes is the same only where copies of it are

    def replace(self, **changes: Any) -> LazyTensor:
        """A copy with some attributes changed; it shares the storage."""
        made = LazyTensor.__new__(LazyTensor)
        for name in LazyTensor.__slots__:
            setattr(made, name, changes.pop(name) if name in changes else getattr(self, name))
        if changes:
            raise TypeError(f"a LazyTensor has no {', '.join(changes)}")
        return made

    @property
    def layout(self) -> str:
        """How the elements are laid out: `strided`, `sparse_csr`, `quantized`, `nested`, `chunked`."""
        return "strided"

    @property
    def parts(self) -> dict[str, LazyTensor]:
        """The tensors this one is made of; none for a strided tensor."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """torch's dtype."""
        return self.spec.dtype

    @property
    def shape(self) -> torch.Size:
        """torch's Size."""
        return torch.Size(self.spec.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.spec.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements when stored without gaps."""
        return self.spec.nbytes

    def numel(self) -> int:
        """Number of elements."""
        return self.spec.numel

    def __len__(self) -> int:
        if not self.spec.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.spec.shape[0]

    def __repr__(self) -> str:
        notes = [str(self.spec)]
        if self.device != "cpu":
            notes.append(f"saved from {self.device}")
        if self.layout != "strided":
            notes.append(self.layout)
        if self.global_shape is not None:
            notes.append(f"part of {list(self.global_shape)}")
        if self.requires_grad:
            notes.append("requires_grad")
        return f"LazyTensor({', '.join(notes)})"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two tensors that are the same elements in the same order, as tied parameters are."""
        where: object = id(self.token if self.storage is None else self.storage)
        if self.storage is not None and self.storage.offset is not None:
            where = (id(self.storage.source or self.source), self.storage.offset)
        return (where, self.storage_offset, self.spec.shape, self.stride, self.spec.dtype, self.conj, self.neg)

    def load(self, device: torch.device | str | None = None, *, storages: Storages | None = None) -> torch.Tensor:
        """Read the tensor.

        From a local file nothing is copied: the result is a private view of the mapped file. Writing to it never
        reaches the file, but another `load` of the same tensor sees what was written.

        Args:
            device: where to put it; the CPU if None, wherever it was saved from.
            storages: pass one object to several loads so that tensors that shared a storage share it again.

        Raises:
            CorruptCheckpointError: the bytes are missing from the file.
        """
        if self.device == "meta" and self.storage is None:
            return torch.empty_strided(self.spec.shape, self.stride, dtype=self.dtype, device="meta")
        if storages is None:
            out = self._plain()
            if out is None:
                out = self._view(self.storage_offset, self.spec.shape, self.stride)
        else:
            base = storages.get(self)
            whole = torch.empty(0, dtype=self.dtype, device=base.device)
            out = self._finish(whole.set_(base, self.storage_offset, self.spec.shape, self.stride))
        return out if device is None else out.to(device)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Basic indexing (integers, slices, `...`, None) that reads only the bytes between first and last element."""
        if self.storage is None:
            return self.load()[index]
        frame = torch.empty_strided(self.spec.shape, self.stride, device="meta")
        view = frame[index]
        if view._base is not frame:  # advanced indexing copies, so there is no range to compute
            return self.load()[index]
        return self._view(self.storage_offset + int(view.storage_offset()), tuple(view.shape), view.stride())

    def _plain(self) -> torch.Tensor | None:
        """The whole of a tensor without gaps, in two calls of torch; None of any other."""
        spec, nbytes = self.spec, self.spec.nbytes
        plain = nbytes and self.storage is not None and self.stride == contiguous_stride(spec.shape)
        if not plain or self.conj or self.neg or not _UNALIGNED_OK:
            return None
        data = self._read(self.storage_offset * spec.dtype.itemsize, nbytes)
        if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
            data = bytearray(data)
        return torch.frombuffer(data, dtype=spec.dtype).resize_(spec.shape)  # no view: it is a tensor of its own

    def _view(self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        """Read the span of a strided view and nothing else. Strides are never negative: the readers check."""
        if 0 in shape:
            return self._finish(torch.empty_strided(shape, stride, dtype=self.dtype, device="cpu"))
        last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        itemsize = self.dtype.itemsize
        data = _storage_of(self._read(offset * itemsize, (last + 1) * itemsize), itemsize)
        return self._finish(torch.empty(0, dtype=self.dtype, device="cpu").set_(data, 0, shape, stride))

    def _read(self, start: int, nbytes: int) -> Any:
        storage = self.storage
        assert storage is not None
        if storage.offset is None:
            raise CorruptCheckpointError(storage.problem or "its bytes are missing", file=self.source.name)
        return (storage.source or self.source).read(storage.offset + start, nbytes)

    def _finish(self, out: torch.Tensor) -> torch.Tensor:
        if self.conj:
            out = out.conj()
        return torch._neg_view(out) if self.neg else out


class Storages:
    """Loads each storage once, so that tensors which shared memory when they were saved share it again."""

    def __init__(self, device: torch.device | str | None = None, *, mapped: bool = True) -> None:
        """Load to a device; on the CPU as views of mapped files, or as copies of one's own if not `mapped`."""
        self.device = torch.device(device or "cpu")
        self._mapped = mapped
        self._loaded: dict[object, tuple[torch.UntypedStorage, object]] = {}

    def get(self, tensor: LazyTensor) -> torch.UntypedStorage:
        """The storage of a tensor, on the device asked for."""
        storage = tensor.storage
        assert storage is not None
        source = storage.source or tensor.source
        key = (id(source), storage.offset, storage.nbytes) if storage.offset is not None else id(storage)
        if key not in self._loaded:
            found = _storage_of(tensor._read(0, storage.nbytes), tensor.dtype.itemsize)
            if self.device.type != "cpu":
                found = _to_device(found, self.device)
            elif not self._mapped:
                found = found.clone()
            self._loaded[key] = (found, (tensor.source, storage))  # what the key names must not be freed
        return self._loaded[key][0]


def _to_device(storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    flat = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    moved: torch.Tensor = flat.to(device)
    return moved.untyped_storage()


def _storage_of(data: Any, itemsize: int) -> torch.UntypedStorage:
    if not len(data):
        return torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
    if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
        data = bytearray(data)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if not _UNALIGNED_OK and flat.data_ptr() % itemsize:
        flat = flat.clone()
    return flat.untyped_storage()


@lru_cache(4096)
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor stored without gaps in row-major order, as torch computes them."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def check_geometry(
    spec: TensorSpec, stride: tuple[int, ...], storage_offset: int, storage_nbytes: int, *, file: str, place: str
) -> None:
    """Refuse a tensor that would reach outside its storage, naming the field that is wrong.

    Raises:
        CorruptCheckpointError: sizes, strides or offset are no such numbers, or lead outside the storage.
    """

    def fail(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            what, file=file, place=place, hint="the file is damaged or hostile; do not use it"
        )

    for number in (*spec.shape, *stride, storage_offset):
        if type(number) is not int or not 0 <= number < _MOST:
            raise fail(
                f"sizes {spec.shape}, strides {stride} and offset {storage_offset} must be integers from 0 to 2**62"
            )
    if len(stride) != len(spec.shape):
        raise fail(f"{len(spec.shape)} sizes but {len(stride)} strides")
    if spec.numel >= _MOST:
        raise fail(f"sizes {spec.shape} multiply to more elements than an address can count")
    itemsize = spec.dtype.itemsize
    if 0 in spec.shape:
        if storage_offset * itemsize > storage_nbytes:
            raise fail(f"offset {storage_offset} lies outside a storage of {storage_nbytes} bytes")
        return
    last = storage_offset + sum((size - 1) * step for size, step in zip(spec.shape, stride, strict=True))
    if (last + 1) * itemsize > storage_nbytes:
        raise fail(
            f"sizes {spec.shape}, strides {stride} and offset {storage_offset} need {(last + 1) * itemsize} bytes, "
            f"the storage has {storage_nbytes}"
        )


def torch_dtype(name: str, *, file: str = "", place: str = "") -> torch.dtype:
    """The dtype of a name such as `float32`.

    Raises:
        UnsupportedFeatureError: this torch has no such dtype.
    """
    row = DTYPES.get(name)
    if row is None:
        raise UnsupportedFeatureError(
            f"dtype {name!r} is not one this torch ({torch.__version__}) has", file=file, place=place
        )
    return row.torch
