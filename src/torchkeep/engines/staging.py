"""Bytes of files to a device that shares no memory with the processor, through a few buffers that are used again.

The copy to CUDA was written without such a device at hand: what is tested is the order of reading, sending and reusing
buffers, with a lane that ends in memory of the processor.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from .filling import bytes_of
from .local import LocalFile

_BUFFERS = 4
_NBYTES = 16 << 20


@dataclass(slots=True, eq=False)
class Sending:
    """Some bytes of a file and where they go: a flat tensor of bytes on a device."""

    source: LocalFile
    offset: int
    target: torch.Tensor


class Lane(Protocol):
    """A way to a device."""

    def buffer(self, nbytes: int) -> torch.Tensor:
        """Bytes of the processor's memory that can be sent from."""
        ...

    def send(self, host: torch.Tensor, target: torch.Tensor) -> None:
        """Begin to copy."""
        ...

    def settle(self) -> None:
        """Return when all that was sent has arrived, and what it was sent from may be filled again."""
        ...


class HostLane:
    """Ends in memory of the processor: what the lanes to devices have in common is tested with it."""

    def buffer(self, nbytes: int) -> torch.Tensor:
        """Plain memory."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def send(self, host: torch.Tensor, target: torch.Tensor) -> None:
        """Copies at once."""
        target.copy_(host)

    def settle(self) -> None:
        """All has arrived."""


class CudaLane:
    """To a CUDA device, from pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # work that still uses the old values comes first

    def buffer(self, nbytes: int) -> torch.Tensor:
        """Pinned memory, which the device reads by itself."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def send(self, host: torch.Tensor, target: torch.Tensor) -> None:
        """Queues the copy."""
        with torch.cuda.stream(self._stream):
            target.copy_(host, non_blocking=True)

    def settle(self) -> None:
        """Until the stream is empty."""
        self._stream.synchronize()


@dataclass(slots=True)
class _Load:
    """What goes through one buffer: a stretch of a file, and the parts of it with their targets."""

    source: LocalFile
    start: int
    stop: int
    parts: list[tuple[int, int, torch.Tensor]]  # from where in the buffer, job, target


def send_all(jobs: Sequence[Sending], lane: Lane, finished: bytearray, *, nbytes: int = _NBYTES) -> None:
    """Carry out the jobs: several buffers are read into while others are sent.

    Args:
        jobs: their targets must not overlap.
        lane: the way to the device that the targets are on.
        finished: one byte for each job, set to 1 where all of it has arrived; also when this raises.
        nbytes: size of a buffer.

    Raises:
        CorruptCheckpointError: a file was shortened meanwhile.
        OpenError: the system cannot read it.
    """
    loads = _loads(jobs, nbytes)
    buffers = [lane.buffer(nbytes) for _ in range(min(_BUFFERS, len(loads)))]
    left = Counter(job for load in loads for _, job, _ in load.parts)
    todo = iter(loads)
    reading: deque[tuple[_Load, torch.Tensor, Future[None]]] = deque()
    try:
        with ThreadPoolExecutor(max(1, len(buffers))) as pool:

            def begin(buffer: torch.Tensor) -> None:
                load = next(todo, None)
                if load is not None:
                    room = bytes_of(buffer)[: load.stop - load.start]
                    reading.append((load, buffer, pool.submit(load.source.read_into, load.start, [room])))

            for buffer in buffers:
                begin(buffer)
            while reading:
                load, buffer, read = reading.popleft()
                read.result()
                for at, _, target in load.parts:
                    lane.send(buffer[at : at + target.numel()], target)
                lane.settle()  # the other buffers are read into meanwhile
                left.subtract(job for _, job, _ in load.parts)
                begin(buffer)
    finally:
        lane.settle()
        finished[:] = bytes(not left[job] for job in range(len(jobs)))


def _loads(jobs: Sequence[Sending], nbytes: int) -> list[_Load]:
    """Jobs as buffers full: large ones are cut, those that lie close together share a buffer."""
    loads: list[_Load] = []
    last: _Load | None = None
    for at in sorted(range(len(jobs)), key=lambda at: (id(jobs[at].source), jobs[at].offset)):
        job, done = jobs[at], 0
        while done < job.target.numel():
            offset = job.offset + done
            near = last is not None and last.source is job.source and 0 <= offset - last.stop <= nbytes // 16
            if last is None or not near or offset - last.start >= nbytes:
                last = _Load(job.source, offset, offset, [])
                loads.append(last)
            count = min(job.target.numel() - done, nbytes - (offset - last.start))
            last.parts.append((offset - last.start, at, job.target[done : done + count]))
            last.stop = offset + count
            done += count
    return loads
