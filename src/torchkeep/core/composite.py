"""Tensors that are made of other tensors: sparse, quantized and nested ones, and those whose chunks lie in many files.

Each is a LazyTensor: its parts are read, checked and put together when it is loaded, and not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch

from ..errors import CorruptCheckpointError, UnsupportedFeatureError
from .source import Source
from .tensors import LazyTensor, Storages, TensorSpec, contiguous_stride, dtype_name

_PAIRS = 10_000_000  # chunks that are compared with each other


class Composition(Protocol):
    """How a tensor is put together from its parts."""

    @property
    def layout(self) -> str: ...

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tensor; raises CorruptCheckpointError when the parts do not fit."""
        ...


class Composite(LazyTensor):
    """A tensor made of named parts, each a LazyTensor of its own.

    Attributes:
        composition: how the parts become the tensor.
    """

    __slots__ = ("_parts", "composition")

    def __init__(
        self, composition: Any, parts: Mapping[str, LazyTensor], source: Source, spec: TensorSpec, **more: Any
    ) -> None:
        super().__init__(source, None, spec, more.pop("stride", contiguous_stride(spec.shape)), **more)
        self.composition = composition
        self._parts = dict(parts)

    def replace(self, **changes: Any) -> LazyTensor:
        """A copy with some attributes changed; it shares the parts."""
        shared = [name for name in LazyTensor.__slots__ if name not in {"storage", "token"}]
        fields = {name: getattr(self, name) for name in shared} | changes
        return Composite(self.composition, self._parts, **fields)

    @property
    def layout(self) -> str:
        """`sparse_coo`, `sparse_csr`, ..., `quantized`, `nested`, `chunked`."""
        return str(self.composition.layout)

    @property
    def parts(self) -> dict[str, LazyTensor]:
        """The tensors it is made of."""
        return dict(self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.nbytes for part in self._parts.values())

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two composites of the same parts."""
        parts = tuple((name, part.identity) for name, part in self._parts.items())
        return (self.composition, self.spec.shape, self.spec.dtype, parts)

    def load(self, device: torch.device | str | None = None, *, storages: Storages | None = None) -> torch.Tensor:
        """Read the parts, check them, and put them together.

        Raises:
            CorruptCheckpointError: a part is missing, or the parts do not fit together.
        """
        try:
            shared = storages if storages is not None and storages.device.type == "cpu" else None
            parts = {name: part.load(storages=shared) for name, part in self._parts.items()}
            with warnings.catch_warnings():  # that a layout is in beta, or quantization will go, helps nobody here
                warnings.simplefilter("ignore", UserWarning)
                out: torch.Tensor = self.composition.assemble(self.spec, parts)
        except CorruptCheckpointError as error:
            error.file = error.file or self.source.name
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise CorruptCheckpointError(
                f"is a {self.layout} tensor whose parts do not fit: {str(error).splitlines()[0]}", file=self.source.name
            ) from error
        return out if device is None else out.to(device)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """The whole is read unless it is chunked."""
        if isinstance(self.composition, Chunked):
            return self.composition.slice(self, index)
        return self.load()[index]


@dataclass(frozen=True, slots=True)
class Coo:
    """Coordinates: `indices` (sparse dimensions, count) and `values` (count, dense dimensions)."""

    coalesced: bool | None = None

    @property
    def layout(self) -> str:
        """torch's name of the layout."""
        return "sparse_coo"

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The indices are checked against the shape first: torch itself builds and reads beyond it."""
        indices, values = parts["indices"], parts["values"]
        if indices.dtype is not torch.int64 or indices.ndim != 2 or indices.shape[0] > len(spec.shape):
            raise CorruptCheckpointError("has sparse indices that are no table of 64-bit integers")
        count = indices.shape[1]
        if tuple(values.shape) != (count, *spec.shape[indices.shape[0] :]):
            raise CorruptCheckpointError(f"has {count} sparse indices and values of shape {list(values.shape)}")
        if count:
            most = torch.tensor(spec.shape[: indices.shape[0]]).unsqueeze(1)
            if bool(((indices < 0) | (indices >= most)).any()):
                raise CorruptCheckpointError(f"has sparse indices outside of its shape {list(spec.shape)}")
        return torch.sparse_coo_tensor(
            indices, values, spec.shape, dtype=spec.dtype, is_coalesced=self.coalesced, check_invariants=True
        )


@dataclass(frozen=True, slots=True)
class Compressed:
    """Compressed rows, columns or blocks of them: `compressed_indices`, `plain_indices`, `values`.

    Attributes:
        layout: `sparse_csr`, `sparse_csc`, `sparse_bsr` or `sparse_bsc`.
    """

    layout: str

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """torch checks the invariants of compressed layouts when it is asked to."""
        return torch.sparse_compressed_tensor(
            parts["compressed_indices"],
            parts["plain_indices"],
            parts["values"],
            spec.shape,
            dtype=spec.dtype,
            layout=getattr(torch, self.layout),
            check_invariants=True,
        )


# torch's quantized dtypes: the dtype of the stored integers, and how many elements one of them holds.
QUANTIZED: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.qint8: (torch.int8, 1),
    torch.quint8: (torch.uint8, 1),
    torch.qint32: (torch.int32, 1),
    torch.quint4x2: (torch.uint8, 2),
    torch.quint2x4: (torch.uint8, 4),
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integers (`ints`) with a scale and a zero point, or one of each (`scales`, `zero_points`) along an axis.

    Attributes:
        scheme: `per_tensor_affine`, `per_channel_affine` or `per_channel_affine_float_qparams`.
    """

    scheme: str
    scale: float = 1.0
    zero_point: int = 0
    axis: int = 0

    @property
    def layout(self) -> str:
        """All schemes together."""
        return "quantized"

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """torch's own quantized tensor."""
        ints = parts["ints"]
        if self.scheme == "per_tensor_affine":
            out = torch._empty_affine_quantized((0,), scale=self.scale, zero_point=self.zero_point, dtype=spec.dtype)
        else:
            scales, zeros = parts["scales"], parts["zero_points"]
            width = spec.shape[self.axis] if 0 <= self.axis < len(spec.shape) else -1
            if not scales.numel() == zeros.numel() == width:
                raise CorruptCheckpointError(
                    f"has {scales.numel()} scales and {zeros.numel()} zero points for {width} channels"
                )
            hollow = [width if dim == self.axis else 0 for dim in range(len(spec.shape))]
            out = torch._empty_per_channel_affine_quantized(
                hollow, scales=scales, zero_points=zeros, axis=self.axis, dtype=spec.dtype
            )
        packed = QUANTIZED[spec.dtype][1] > 1  # several elements in a byte: the integers are the bytes as they lie
        stride = contiguous_stride(spec.shape) if packed else ints.stride()
        return out.set_(ints.untyped_storage(), ints.storage_offset(), spec.shape, stride)


@dataclass(frozen=True, slots=True)
class Nested:
    """Tensors of different shapes in one buffer: `buffer`, `sizes`, `strides`, `offsets`."""

    @property
    def layout(self) -> str:
        """torch says strided, which tells nothing."""
        return "nested"

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Each member is checked against the buffer before torch makes a view of it."""
        buffer, sizes, strides, offsets = (parts[name] for name in ("buffer", "sizes", "strides", "offsets"))
        if sizes.shape != strides.shape or sizes.ndim != 2 or offsets.shape != sizes.shape[:1]:
            raise CorruptCheckpointError("is a nested tensor whose sizes, strides and offsets are of different number")
        for size, stride, offset in zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True):
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            if min([*size, *stride, offset], default=0) < 0 or (prod(size) and last >= buffer.numel()):
                raise CorruptCheckpointError("is a nested tensor with a member outside of its buffer")
        return torch._nested_view_from_buffer(buffer, sizes, strides, offsets)


@dataclass(frozen=True, slots=True)
class Chunked:
    """Rectangular chunks that tile the tensor: part number n begins at `offsets[n]`."""

    offsets: tuple[tuple[int, ...], ...]

    @property
    def layout(self) -> str:
        """As DCP calls its pieces."""
        return "chunked"

    def assemble(self, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Copy each chunk to its place; a single chunk that is the whole is not copied."""
        pieces = list(parts.values())
        if len(pieces) == 1 and tuple(pieces[0].shape) == spec.shape:
            return pieces[0]
        out = torch.empty(spec.shape, dtype=spec.dtype)
        for offset, piece in zip(self.offsets, pieces, strict=True):
            _window(out, offset, piece.shape).copy_(piece)
        return out

    def slice(self, tensor: Composite, index: Any) -> torch.Tensor:
        """A slice of the first dimension reads the chunks it touches, everything else reads all."""
        first = index[0] if isinstance(index, tuple) and index else index
        size = tensor.spec.shape[0] if tensor.spec.shape else 0
        if isinstance(first, slice) and first.step in {None, 1}:
            start, stop, _ = first.indices(size)
            rows = self._rows(tensor, start, max(start, stop))
            rest = index[1:] if isinstance(index, tuple) else ()
            return rows[(slice(None), *rest)] if rest else rows
        if type(first) is int and -size <= first < size:
            row = first % size
            rest = index[1:] if isinstance(index, tuple) else ()
            return self._rows(tensor, row, row + 1)[(0, *rest)]
        return tensor.load()[index]

    def box(self, tensor: Composite, starts: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A box of the tensor, read from the chunks that it touches."""
        out = torch.empty(tuple(sizes), dtype=tensor.spec.dtype, device="cpu")
        for offset, part in zip(self.offsets, tensor.parts.values(), strict=True):
            lows = [max(a, b) for a, b in zip(starts, offset, strict=True)]
            highs = [min(a + n, b + m) for a, n, b, m in zip(starts, sizes, offset, part.spec.shape, strict=True)]
            extent = [high - low for low, high in zip(lows, highs, strict=True)]
            if all(size > 0 for size in extent):
                inside = tuple(slice(low - b, high - b) for low, high, b in zip(lows, highs, offset, strict=True))
                _window(out, [low - a for low, a in zip(lows, starts, strict=True)], extent).copy_(part[inside or ...])
        return out

    def _rows(self, tensor: Composite, start: int, stop: int) -> torch.Tensor:
        rest = tensor.spec.shape[1:]
        return self.box(tensor, (start, *(0 for _ in rest)), (stop - start, *rest))


def _window(whole: torch.Tensor, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        whole = whole.narrow(dim, start, size)
    return whole


def check_tiling(shape: tuple[int, ...], chunks: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """What is wrong with chunks (offset, size) that should tile a shape; empty when nothing is.

    All of the volume must be covered and no two chunks overlap; many chunks are compared along their first offset.
    """
    volume = 0
    boxes = []
    for offset, size in chunks:
        if len(offset) != len(shape) or len(size) != len(shape):
            return f"has a chunk of {len(size)} dimensions in a tensor of {len(shape)}"
        if any(o < 0 or s < 0 or o + s > whole for o, s, whole in zip(offset, size, shape, strict=True)):
            return f"has a chunk of {list(size)} at {list(offset)}, outside of its shape {list(shape)}"
        if prod(size):
            volume += prod(size)
            boxes.append((offset, size))
    if volume != prod(shape):
        return f"has chunks of {volume:,} elements together, its shape {list(shape)} has {prod(shape):,}"
    return _overlap(boxes)


def _overlap(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Compare boxes along the dimension in which they begin at the most places: in a grid that leaves few pairs."""
    dimensions = len(boxes[0][0]) if boxes else 0
    if not dimensions:
        return "has several chunks for one number" if len(boxes) > 1 else ""
    along = max(range(dimensions), key=lambda dim: len({offset[dim] for offset, _ in boxes}))
    boxes.sort(key=lambda box: box[0][along])
    compared = 0
    for at, (offset, size) in enumerate(boxes):
        for later in range(at + 1, len(boxes)):
            other, extent = boxes[later]
            if other[along] >= offset[along] + size[along]:
                break
            compared += 1
            if all(o < p + n and p < o + m for o, m, p, n in zip(offset, size, other, extent, strict=True)):
                return f"has two chunks that overlap, at {list(offset)} and {list(other)}"
        if compared > _PAIRS:
            return f"has {len(boxes):,} chunks in no order that can be checked"
    return ""


def quantized_ints(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """The integers behind a quantized dtype, and elements in each."""
    found = QUANTIZED.get(dtype)
    if found is None:
        raise UnsupportedFeatureError(
            f"holds quantized tensors of dtype {dtype_name(dtype)}, which torchkeep cannot read"
        )
    return found
