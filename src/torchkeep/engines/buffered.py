"""Writing through the page cache: straight from the memory of the tensors, while the next ones are hashed."""

from __future__ import annotations

import os

from ..core.source import Buffer
from .behind import Behind

_IOV = 512
_BATCH = 8 << 20  # handed to the system at once; small tensors are gathered up to here
_WAITING = 2  # batches that are being written or wait for it: what is copied on the way bounds the memory of a save
_AHEAD_FROM = 1 << 20  # a smaller file is written in line: a thread would take longer


class Buffered:
    """Bytes to a file in order, by vectors of what is given: nothing is copied but by the system."""

    name = "buffered"

    def __init__(self, fd: int, nbytes: int) -> None:
        """Write from where the descriptor stands, about `nbytes` in all."""
        self._fd = fd
        self._batch: list[Buffer] = []
        self._size = 0
        self._behind = Behind(self._put, _WAITING) if nbytes >= _AHEAD_FROM else None

    def write(self, piece: Buffer) -> None:
        """The next bytes; they must not change before `finish`."""
        self._batch.append(piece)
        self._size += len(piece)
        if len(self._batch) == _IOV or self._size >= _BATCH:
            self._flush()

    def finish(self) -> None:
        """Wait until the system has all of it."""
        self._flush()
        if self._behind is not None:
            self._behind.finish()

    def stop(self) -> None:
        """Give up; nothing is written after this returns."""
        if self._behind is not None:
            self._behind.stop()

    def _flush(self) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        if self._behind is None:
            self._put(batch)
        else:
            self._behind.give(batch)

    def _put(self, batch: list[Buffer]) -> None:
        write_all(self._fd, batch)


def write_all(fd: int, pieces: list[Buffer]) -> None:
    """Write buffers one after another, however often the system stops short."""
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while views:
        done = os.writev(fd, views[:_IOV]) if hasattr(os, "writev") else os.write(fd, views[0])
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]
