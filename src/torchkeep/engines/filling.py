"""Bytes of files straight into memory that is there already, by several threads and without a copy in between."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch

from ..core.source import Slice, Source, check_range
from ..core.tensors import LazyTensor, contiguous_stride
from ..core.threads import side_by_side
from .local import IOV, LocalFile

CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_PIECES = (1 << 20, 8 << 20)  # what one call reads: little enough that all threads have work, enough to be worth it
_GAP = 1 << 14  # bytes between two tensors that are read and thrown away rather than read apart


@dataclass(slots=True, eq=False)
class Job:
    """Some bytes of a file and where they go."""

    source: LocalFile
    offset: int
    target: memoryview


@dataclass(slots=True)
class _Read:
    """One call: bytes of a file that follow each other, and the buffers they go to, in order."""

    source: LocalFile
    start: int
    stop: int
    buffers: list[memoryview] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    done: bool = False

    def run(self) -> None:
        self.source.read_into(self.start, self.buffers)
        self.done = True


class Place(NamedTuple):
    """A stretch of a local file."""

    source: LocalFile
    offset: int
    nbytes: int


def place_of(tensor: LazyTensor) -> Place | None:
    """Where a local file has the tensor's elements as they are; None if they must be made from what is there.

    Only of tensors that lie without gaps, in any order of their dimensions.

    Raises:
        CorruptCheckpointError: the place lies outside of the file.
    """
    storage = tensor.storage
    if type(tensor) is not LazyTensor or storage is None or storage.offset is None or tensor.conj or tensor.neg:
        return None
    shape, itemsize = tensor.spec.shape, tensor.spec.dtype.itemsize
    nbytes = prod(shape) * itemsize
    if not nbytes or not is_dense(shape, tensor.stride):
        return None
    return _stretch(storage.source or tensor.source, storage.offset + tensor.storage_offset * itemsize, nbytes)


def storage_place(tensor: LazyTensor) -> Place | None:
    """Where a local file has the storage of a tensor as it is, which other tensors may share."""
    storage = tensor.storage
    if type(tensor) is not LazyTensor or storage is None or storage.offset is None or not storage.nbytes:
        return None
    return _stretch(storage.source or tensor.source, storage.offset, storage.nbytes)


def _stretch(source: Source, offset: int, nbytes: int) -> Place | None:
    while type(source) is Slice:  # of another class derived from it nobody knows what it does to the bytes
        check_range(source, offset, nbytes)
        offset += source._offset
        source = source._source
    if not isinstance(source, LocalFile):
        return None
    check_range(source, offset, nbytes)
    return Place(source, offset, nbytes)


@lru_cache(maxsize=4096)
def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether elements fill their span without gaps and overlaps, whichever dimension runs fastest."""
    if stride == contiguous_stride(shape):
        return True
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


def same_order(tensor: LazyTensor, target: torch.Tensor) -> bool:
    """Whether elements that lie without gaps come in the same order on both sides; the shapes are equal."""
    if tensor.stride == target.stride():
        return True
    pairs = zip(tensor.spec.shape, tensor.stride, target.stride(), strict=True)
    return all(size == 1 or step == other for size, step, other in pairs)


def bytes_of(target: torch.Tensor) -> memoryview:
    """The memory of a tensor on the CPU that lies without gaps, to be written to."""
    array = (ctypes.c_ubyte * target.nbytes).from_address(target.data_ptr())
    array.owner = target  # type: ignore[attr-defined] # keeps the memory as long as the view
    return memoryview(array)


def fill(jobs: Sequence[Job], finished: bytearray | None = None) -> None:
    """Carry out the jobs, in the order of the files.

    Args:
        jobs: their targets must not overlap.
        finished: one byte for each job, set to 1 where all of it was read; also when this raises.

    Raises:
        CorruptCheckpointError: a file was shortened meanwhile.
        OpenError: the system cannot read it.
    """
    threads = max((job.source.threads for job in jobs), default=1)
    each = sum(len(job.target) for job in jobs) // (2 * threads)
    reads = _reads(jobs, min(max(each, _PIECES[0]), _PIECES[1]))
    try:
        side_by_side(_Read.run, reads, min(threads, len(reads)))
    finally:
        if finished is not None:
            _mark(reads, finished)


def _mark(reads: Sequence[_Read], finished: bytearray) -> None:
    finished[:] = b"\1" * len(finished)
    for read in reads:
        if not read.done:
            for job in read.jobs:
                finished[job] = 0


def _reads(jobs: Sequence[Job], piece: int) -> list[_Read]:
    """Jobs as calls of about one size: large ones are cut, small ones that lie close together are joined."""
    order = sorted(range(len(jobs)), key=lambda at: (id(jobs[at].source), jobs[at].offset))
    waste = memoryview(bytearray(_GAP))
    reads: list[_Read] = []
    last: _Read | None = None
    for at in order:
        job = jobs[at]
        offset, target = job.offset, job.target
        gap = offset - last.stop if last is not None and last.source is job.source else -1
        if last is not None and gap > 0 and gap <= _GAP:
            last.buffers.append(waste[:gap])
            last.stop = offset
            gap = 0
        while target:
            room = piece - (last.stop - last.start) if last is not None and gap == 0 else 0
            if last is None or room <= 0 or len(last.buffers) > IOV - 2:
                last = _Read(job.source, offset, offset)
                reads.append(last)
                room, gap = piece, 0
            part = target[:room]
            last.buffers.append(part)
            last.jobs.append(at)
            offset += len(part)
            last.stop = offset
            target = target[len(part) :]
    return reads
