"""Tensors as blocks of bytes, none larger than a few megabytes, so that writing one of any size takes little memory."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch

from .composite import Chunked, Composite
from .live import AnyTensor
from .memory import in_place, tensor_bytes
from .source import Buffer, Source, Swapped, check_range
from .tensors import LazyTensor, StorageRef, TensorSpec, contiguous_stride

BLOCK = 8 << 20
_HOT = 1 << 20
_WINDOW = 2 << 20  # gathered from all over a storage: larger windows pass over it less often, and take memory
_ELEMENTS = 1 << 20  # read at a time to be averaged
_CHUNK = 1 << 15  # cast or averaged at a time: torch shares no smaller work out to threads, which would wait
_AHEAD = 32 << 20

_Step = Callable[[Buffer], Buffer]


class Cast:
    """A source whose elements are those of another one in another floating dtype.

    Attributes:
        overflowed: finite numbers that became infinite, in what was read so far.
    """

    def __init__(self, source: Source, start: int, numel: int, old: torch.dtype, new: torch.dtype) -> None:
        """The elements that begin at byte `start` of a source."""
        self.name = source.name
        self.size = numel * new.itemsize
        self.overflowed = 0
        self.inner = source
        self.start = start
        self.old = old
        self.new = new

    def read(self, offset: int, nbytes: int) -> Buffer:
        """The elements of a range, which begins and ends at whole ones."""
        check_range(self, offset, nbytes)
        first, count = offset // self.new.itemsize, nbytes // self.new.itemsize
        return self.converted(self.inner.read(self.start + first * self.old.itemsize, count * self.old.itemsize))

    def sibling(self, name: str) -> Source:
        """A neighbour of the file."""
        return self.inner.sibling(name)

    def converted(self, data: Buffer) -> Buffer:
        """Some elements in the new dtype."""
        old = _flat(data, self.old)
        new = torch.empty(old.shape, dtype=self.new, device="cpu")
        for start in range(0, old.numel(), _CHUNK):
            before, after = old[start : start + _CHUNK], new[start : start + _CHUNK]
            after.copy_(before)
            infinite = int(torch.isinf(after).sum())
            if infinite:
                self.overflowed += infinite - int(torch.isinf(before.double()).sum())
        return tensor_bytes(new)


class Mean:
    """A source whose elements are the weighted average of those of several tensors, computed when they are read.

    Sums are made in float64 and rounded once. Elements that are bit for bit the same in all tensors stay what they
    are, infinities and the payloads of NaNs too. Complex numbers are averaged by their parts.

    Attributes:
        inputs: the tensors, all of one floating-point or complex dtype and one shape.
    """

    def __init__(self, inputs: Sequence[LazyTensor], shares: Sequence[float]) -> None:
        """The shares add up to 1; tensors with a share of 0 are not read."""
        used = [(tensor, share) for tensor, share in zip(inputs, shares, strict=True) if share]
        self.inputs = tuple(tensor for tensor, _ in used)
        self._shares = tuple(share for _, share in used)
        self._spec = inputs[-1].spec
        self.name = inputs[-1].source.name
        self.size = self._spec.nbytes

    def read(self, offset: int, nbytes: int) -> Buffer:
        """The elements of a range, which begins and ends at whole ones."""
        check_range(self, offset, nbytes)
        itemsize = self._spec.dtype.itemsize
        first, count = offset // itemsize, nbytes // itemsize
        out = torch.empty(count, dtype=self._spec.dtype, device="cpu")
        window = max(_CHUNK, _ELEMENTS // len(self.inputs))
        for start in range(0, count, window):
            some = out[start : start + window]
            rows = [elements(tensor, first + start, some.numel()) for tensor in self.inputs]
            for at in range(0, some.numel(), _CHUNK):
                part = slice(at, at + _CHUNK)
                _bits(some[part]).copy_(self._mean([row[part] for row in rows]))
        return tensor_bytes(out)

    def sibling(self, name: str) -> Source:
        """A neighbour of the last file."""
        return self.inputs[-1].source.sibling(name)

    def _mean(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Some elements as bits."""
        base = _bits(rows[0])
        total = torch.zeros(base.shape, dtype=torch.float64)
        same = torch.ones(base.shape, dtype=torch.bool)
        for row, share in zip(rows, self._shares, strict=True):
            total.add_(_real(row).to(torch.float64), alpha=share)
            same &= _bits(row) == base
        return torch.where(same, base, _bits(total.to(_real(rows[0]).dtype)))


_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _real(flat: torch.Tensor) -> torch.Tensor:
    """Complex numbers in a row as twice as many real ones; others as they are."""
    return flat.view(_REAL[flat.dtype]) if flat.dtype in _REAL else flat


def _bits(flat: torch.Tensor) -> torch.Tensor:
    """Elements in a row as integers of the same width, which compare where NaNs do not."""
    real = _real(flat)
    return real.view(_INTEGERS[real.dtype.itemsize])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where two rows of elements of one dtype are bit for bit the same; of complex ones, both their parts."""
    same = _bits(one) == _bits(other)
    return same.view(-1, 2).all(1) if one.dtype in _REAL else same


def real_numbers(flat: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """A row of elements, complex ones as twice as many real ones, in the dtype and the memory of `room`."""
    real = _real(flat)
    return room[: real.numel()].copy_(real)


def elements(tensor: AnyTensor, first: int, count: int) -> torch.Tensor:
    """Some elements in row-major order, in a row; they may lie in the tensor itself, so nobody may write to them.

    Raises:
        CorruptCheckpointError: the bytes are missing from the file.
        UnsavableError: it is sparse, quantized or nested.
    """
    if not count:
        return torch.empty(0, dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, torch.Tensor):
        plain = tensor.detach()
        if in_place(plain):
            return plain.reshape(-1)[first : first + count]
        return _row(
            [tensor_bytes(plain[_slices(*box)]) for box in _boxes(tuple(plain.shape), first, count)], plain.dtype
        )
    if isinstance(tensor, Composite):
        if not isinstance(tensor.composition, Chunked):
            return _flat(tensor_bytes(tensor.load()), tensor.dtype)[first : first + count]
        boxes = [tensor.composition.box(tensor, *box) for box in _boxes(tensor.spec.shape, first, count)]
        return _row([tensor_bytes(box) for box in boxes], tensor.dtype)
    raw, steps = _raw(tensor)
    if raw.stride == contiguous_stride(raw.spec.shape) or raw.numel() == 1:
        start = (raw.storage_offset + first) * raw.dtype.itemsize
        blocks = [raw._read(start, count * raw.dtype.itemsize)]
    else:
        blocks = [tensor_bytes(raw[_slices(*box)]) for box in _boxes(raw.spec.shape, first, count)]
    return _row([reduce(lambda data, step: step(data), steps, block) for block in blocks], tensor.dtype)


def _row(blocks: Sequence[Buffer], dtype: torch.dtype) -> torch.Tensor:
    flat = [_flat(block, torch.uint8) for block in blocks]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)).view(dtype)


def _boxes(shape: tuple[int, ...], first: int, count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The boxes (starts, sizes) that some elements in row-major order make up, in their order."""
    if not shape:
        yield (), ()
        return
    row, rest = prod(shape[1:]), shape[1:]
    while count:
        at, inside = divmod(first, row)
        if inside or count < row:
            some = min(count, row - inside)
            yield from (((at, *starts), (1, *sizes)) for starts, sizes in _boxes(rest, inside, some))
        else:
            some = count // row * row
            yield (at, *(0 for _ in rest)), (count // row, *rest)
        first, count = first + some, count - some


def blocks_of(tensor: AnyTensor) -> Iterator[Buffer]:
    """The elements in row-major order, block by block, without loading the tensor whole.

    Raises:
        CorruptCheckpointError: the bytes are missing from the file.
        UnsavableError: it is made of parts, which have blocks of their own.
    """
    if isinstance(tensor, torch.Tensor):
        yield from _live_blocks(tensor)
    elif isinstance(tensor, Composite) and isinstance(tensor.composition, Chunked):
        for starts, sizes in _windows(tensor.spec):
            yield tensor_bytes(tensor.composition.box(tensor, starts, sizes))
    elif isinstance(tensor, Composite):
        yield tensor_bytes(tensor.load())
    elif tensor.numel():
        raw, steps = _raw(tensor)
        for block in _raw_blocks(raw):
            yield reduce(lambda data, step: step(data), steps, block)


def hot_blocks(tensor: AnyTensor) -> Iterator[Buffer]:
    """The same in smaller blocks, each of which is still in the processor's cache when it is hashed after a copy."""
    for block in blocks_of(tensor):
        if len(block) <= _HOT:
            yield block
        else:
            view = memoryview(block)
            for start in range(0, len(view), _HOT):
                yield view[start : start + _HOT]


def storage_blocks(tensor: LazyTensor, nbytes: int) -> Iterator[Buffer]:
    """The first bytes of a tensor's storage as they lie, whether the tensor uses them or not."""
    for start in range(0, nbytes, BLOCK):
        yield tensor._read(start, min(BLOCK, nbytes - start))


def _live_blocks(tensor: torch.Tensor) -> Iterator[Buffer]:
    plain = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        yield tensor_bytes(plain)  # refuses it
    elif in_place(plain):
        data = tensor_bytes(plain)
        for start in range(0, len(data), BLOCK):
            yield data[start : start + BLOCK]
    else:
        for starts, sizes in _windows(TensorSpec(plain.dtype, tuple(plain.shape))):
            yield tensor_bytes(plain[_slices(starts, sizes)])


def _raw_blocks(tensor: LazyTensor) -> Iterator[Buffer]:
    """Elements as the file has them: no source in between that would copy all that a window spans."""
    if tensor.stride == contiguous_stride(tensor.spec.shape) or tensor.numel() == 1:
        start = tensor.storage_offset * tensor.dtype.itemsize
        for at in range(0, tensor.nbytes, BLOCK):
            yield tensor._read(start + at, min(BLOCK, tensor.nbytes - at))
    else:
        for starts, sizes in _windows(tensor.spec):
            yield tensor_bytes(tensor[_slices(starts, sizes)])


def _raw(tensor: LazyTensor) -> tuple[LazyTensor, list[_Step]]:
    """The tensor as it lies in its file, and what makes its elements of those, one by one."""
    steps: list[_Step] = []
    spec = tensor.spec
    if tensor.conj or tensor.neg:
        steps.append(lambda block: tensor_bytes(tensor._finish(_flat(block, spec.dtype))))
    raw = tensor.replace(conj=False, neg=False)
    while (storage := raw.storage) is not None and isinstance(storage.source, (Cast, Swapped)):
        source = storage.source
        if isinstance(source, Cast):
            assert storage.offset == 0
            steps.append(source.converted)
            inner = StorageRef(source.size // source.new.itemsize * source.old.itemsize, source.start, "", source.inner)
            raw = raw.replace(spec=TensorSpec(source.old, spec.shape), storage=inner)
        else:
            steps.append(_swapper(source._itemsize))
            raw = raw.replace(storage=StorageRef(storage.nbytes, storage.offset, storage.problem, source._source))
    return raw, steps[::-1]


def _swapper(width: int) -> _Step:
    def swapped(block: Buffer) -> Buffer:
        return memoryview(np.frombuffer(block, np.uint8).reshape(-1, width)[:, ::-1].tobytes())

    return swapped


def _windows(spec: TensorSpec) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes (starts, sizes) that follow each other in row-major order, each of a few megabytes at the most."""
    shape, most = spec.shape, max(1, _WINDOW // spec.dtype.itemsize)
    if 0 in shape:
        return
    dim, row = len(shape), 1  # everything from `dim` on fits into a window together
    while dim and row * shape[dim - 1] <= most:
        dim -= 1
        row *= shape[dim]
    if not dim:
        yield (0,) * len(shape), shape
        return
    rest = (0,) * (len(shape) - dim)
    for lead in product(*map(range, shape[: dim - 1])):
        for start in range(0, shape[dim - 1], most // row):
            rows = min(most // row, shape[dim - 1] - start)
            yield (*lead, start, *rest), (*(1 for _ in lead), rows, *shape[dim:])


def _slices(starts: Sequence[int], sizes: Sequence[int]) -> Any:
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)) or ...


def _flat(data: Buffer, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as elements in a row, without a copy where they may be written to."""
    if not len(data):
        return torch.empty(0, dtype=dtype, device="cpu")
    if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
        held = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
        return torch.frombuffer(held, dtype=torch.uint8).view(dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype)


class Beside:
    """Runs checksums on another thread beside the write, with a bound on the bytes that wait for it."""

    def __init__(self, pool: Executor) -> None:
        """The pool has one thread, so that blocks are taken in their order."""
        self._pool = pool
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._held = 0

    def feed(self, update: Callable[[Buffer], object], block: Buffer) -> None:
        """Hand a block over; waits while too much is waiting already."""
        self._waiting.append((len(block), self._pool.submit(_run, update, block)))
        self._held += len(block)
        while self._held > _AHEAD or len(self._waiting) > 1000:
            self._take()

    def finish(self) -> None:
        """Wait until all of it is done."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        size, future = self._waiting.popleft()
        self._held -= size
        future.result()


def _run(update: Callable[[Buffer], object], block: Buffer) -> None:
    update(block)
