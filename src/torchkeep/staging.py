"""Staging: host copies of tensors in memory that is used again, so that training goes on while they are written."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from .core.live import spec_of
from .core.memory import in_place, pages
from .core.tensors import TensorSpec
from .core.threads import THREADS, side_by_side

_ALIGN = 64
_UNIT = 4 << 20  # copied at once by one thread
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux, which the mmap module does not name

Place = tuple[torch.Tensor, int, torch.Tensor]
"""Host memory, the byte in it where a copy begins, and the tensor that is copied."""


class Mover(Protocol):
    """How tensors of one kind of device come into host memory.

    `copy` may return before the copies are made. After `order` whatever the caller does to the tensors comes after
    the copies; after `wait` they are there for everyone.
    """

    def memory(self, nbytes: int) -> torch.Tensor: ...

    def copy(self, places: list[Place], threads: int) -> None: ...

    def order(self) -> None: ...

    def wait(self) -> None: ...


class HostMover:
    """Tensors that lie in host memory already: copied at once, by several threads."""

    def memory(self, nbytes: int) -> torch.Tensor:
        """Memory whose pages are there, large ones where the system has them."""
        block = pages(max(nbytes, 1))
        whole = torch.frombuffer(block, dtype=torch.uint8)
        try:
            block.madvise(_POPULATE_WRITE)
        except (OSError, ValueError):  # an older kernel, or another system
            whole[:: mmap.PAGESIZE] = 0
        return whole

    def copy(self, places: list[Place], threads: int) -> None:
        """Copy all of them, in pieces of like size."""
        side_by_side(_move, _units(places), threads)

    def order(self) -> None:
        """The copies were made when `copy` returned."""

    def wait(self) -> None:
        """The same."""


class CudaMover:
    """Tensors on CUDA devices: into pinned memory, on a stream of their own, without waiting for the device."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        """`cuda` is `torch.cuda`, or what stands in for it."""
        self._cuda = cuda
        self._streams: dict[torch.device, Any] = {}
        self._events: dict[torch.device, Any] = {}

    def memory(self, nbytes: int) -> torch.Tensor:
        """Pinned, so that the device writes into it by itself."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda is torch.cuda)

    def copy(self, places: list[Place], threads: int) -> None:
        """Let each device copy, after what it was told to do so far."""
        by_device: dict[torch.device, list[Place]] = {}
        for place in places:
            by_device.setdefault(place[2].device, []).append(place)
        for device, members in by_device.items():
            stream = self._streams.setdefault(device, None) or self._cuda.Stream(device)
            self._streams[device] = stream
            stream.wait_stream(self._cuda.current_stream(device))
            with self._cuda.stream(stream):
                for memory, offset, tensor in members:
                    _copy_at(memory, offset, tensor).copy_(tensor.detach(), non_blocking=True)
                    tensor.record_stream(stream)  # its memory is not given to another before the copy is made
            self._events[device] = stream.record_event()

    def order(self) -> None:
        """Have the devices' current streams go on after the copies; the caller does not wait."""
        for device, event in list(self._events.items()):  # another thread may find them done
            self._cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Wait for the copies, and for nothing else on the devices."""
        for device, event in list(self._events.items()):
            event.synchronize()
            self._events.pop(device)


class OtherMover(HostMover):
    """Tensors of other accelerators: copied one by one, each waited for."""

    def copy(self, places: list[Place], threads: int) -> None:
        """Copy all of them."""
        for memory, offset, tensor in places:
            _copy_at(memory, offset, tensor).copy_(tensor.detach())


_MOVERS = {"cpu": HostMover, "cuda": CudaMover}


class Staging:
    """Host memory for copies: made when it is first needed, kept, and filled anew for each save."""

    def __init__(self, movers: Mapping[str, Mover] | None = None) -> None:
        """With movers by kind of device, if not the usual ones."""
        self._movers: dict[str, Mover] = dict(movers or {})
        self._memory: dict[str, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """How much memory is kept."""
        return sum(memory.nbytes for memory in self._memory.values())

    def reserve(self, tensors: Mapping[str, torch.Tensor], more: int = 0) -> None:
        """Have the memory for copies of these tensors, and for so many bytes more on each kind of device."""
        for kind, members in _by_kind(tensors).items():
            _, needed = _places(members)
            self._have(kind, needed + more)

    def begin(self, tensors: Mapping[str, torch.Tensor]) -> Copies:
        """Places for copies of some tensors. What was staged before is gone."""
        kinds = []
        for kind, members in _by_kind(tensors).items():
            offsets, needed = _places(members)
            kinds.append((self._mover(kind), self._have(kind, needed), members, offsets))
        return Copies(kinds)

    def _mover(self, kind: str) -> Mover:
        if kind not in self._movers:
            self._movers[kind] = _MOVERS.get(kind, OtherMover)()
        return self._movers[kind]

    def _have(self, kind: str, nbytes: int) -> torch.Tensor:
        memory = self._memory.get(kind)
        if memory is None or memory.nbytes < nbytes:
            memory = None
            self._memory.pop(kind, None)  # given back first: both together might not fit
            self._memory[kind] = self._mover(kind).memory(nbytes)
        return self._memory[kind]


class Copies:
    """Copies of some tensors, under way."""

    def __init__(
        self, kinds: Sequence[tuple[Mover, torch.Tensor, Mapping[str, torch.Tensor], Mapping[str, int]]]
    ) -> None:
        self._movers = [mover for mover, _, _, _ in kinds]
        self._left: list[dict[str, Place]] = [
            {name: (memory, offsets[name], tensor) for name, tensor in members.items()}
            for _, memory, members, offsets in kinds
        ]
        self._made: list[tuple[str, torch.Tensor, int, TensorSpec]] = []

    def start(self, later: Collection[str] = (), threads: int = THREADS) -> None:
        """Copy; what lies in host memory is left to `finish` if it is named `later`."""
        for mover, left in zip(self._movers, self._left, strict=True):
            wait = later if isinstance(mover, HostMover) else ()
            self._copy(mover, left, [name for name in left if name not in wait], threads)

    def order(self) -> None:
        """What the caller does to the tensors from now on comes after the copies that were started."""
        for mover in self._movers:
            mover.order()

    def finish(self) -> dict[str, torch.Tensor]:
        """Copy what is left, wait until all is there, and give the copies. The tensors are let go of."""
        for mover, left in zip(self._movers, self._left, strict=True):
            self._copy(mover, left, list(left), 1)
            mover.wait()
        return {name: _view(memory, offset, spec) for name, memory, offset, spec in self._made}

    def _copy(self, mover: Mover, left: dict[str, Place], names: list[str], threads: int) -> None:
        if names:
            mover.copy([left[name] for name in names], threads)
        for name in names:
            memory, offset, tensor = left.pop(name)
            self._made.append((name, memory, offset, spec_of(tensor)))


def _by_kind(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(tensor.device.type, {})[name] = tensor
    return found


def _places(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, int], int]:
    """Where each copy begins, and how much memory all take."""
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = end
        end += -(-tensor.nbytes // _ALIGN) * _ALIGN
    return offsets, end


def _copy_at(memory: torch.Tensor, offset: int, tensor: torch.Tensor) -> torch.Tensor:
    """The stretch of host memory where a copy of a tensor goes, as a tensor like it."""
    return _view(memory, offset, spec_of(tensor))


def _view(memory: torch.Tensor, offset: int, spec: TensorSpec) -> torch.Tensor:
    return memory[offset : offset + spec.nbytes].view(spec.dtype).view(spec.shape)


_Part = tuple[int, int, int]  # to where, from where, how many bytes


def _units(places: list[Place]) -> Iterator[list[_Part] | Place]:
    """Work for one thread at a time: stretches of memory of a few megabytes together, or one tensor that is none."""
    unit: list[_Part] = []
    size = 0
    for place in places:
        memory, offset, tensor = place
        if not in_place(tensor):
            yield place
            continue
        to, start, nbytes = memory.data_ptr() + offset, tensor.data_ptr(), tensor.nbytes
        for at in range(0, nbytes, _UNIT):
            part = min(_UNIT, nbytes - at)
            unit.append((to + at, start + at, part))
            size += part
            if size >= _UNIT:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def _move(unit: list[_Part] | Place) -> None:
    if isinstance(unit, list):
        for to, start, nbytes in unit:
            ctypes.memmove(to, start, nbytes)
    else:
        memory, offset, tensor = unit
        _copy_at(memory, offset, tensor).copy_(tensor.detach())
