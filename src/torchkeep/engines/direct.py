"""Writing past the page cache, at the speed of the disk: through a small ring of buffers, each written in one piece.

What is given is copied into the ring while the disk is busy with an earlier buffer, and whoever gives it can hash it
while it is still in the processor's cache. The page cache of the machine is left to others, and a durable write does
not wait for it to be flushed.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from ..core.memory import pages
from ..core.source import Buffer
from .behind import Behind

BLOCK = 4096  # offsets, lengths and addresses are multiples of this, which is enough for every common disk
_CHUNK = 8 << 20
_CHUNKS = 4
_FIRST = 1 << 20  # so much is handed over first, and then twice as much each time: the disk begins sooner
_REFUSING = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_SMALL = 1 << 16  # less is copied faster without letting go of the interpreter's lock

_refused: set[int] = set()  # devices whose file systems took the flag and then refused to write
_spare: list[_Ring] = []  # one is kept: to get its memory anew takes as long as to write some of it


class Direct:
    """Bytes to a file in order, from an offset that is a multiple of BLOCK.

    Attributes:
        name: `direct`, or `buffered` where the file system refuses.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        """Write from where the descriptor stands."""
        self._fd = fd
        self._offset = os.lseek(fd, 0, os.SEEK_CUR)
        self._buffer = self._filled = 0
        self._limit = _FIRST
        able = self._offset % BLOCK == 0 and os.fstat(fd).st_dev not in _refused
        self.name = "direct" if able and _set_direct(fd, on=True) else "buffered"
        self._ring: _Ring | None = _taken()
        self._view, self._array = self._ring.view, self._ring.array
        self._behind = Behind(self._put, _CHUNKS - 1)  # one buffer is being filled, the others are written or wait

    def write(self, piece: Buffer) -> None:
        """The next bytes; they are copied before this returns."""
        if not len(piece):
            self._pause()
        elif len(piece) <= min(_SMALL, self._limit - self._filled):
            start = self._buffer * _CHUNK + self._filled
            self._view[start : start + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == self._limit:
                self._next()
        else:
            data = np.frombuffer(piece, np.uint8)
            while len(data):
                part = data[: self._limit - self._filled]
                start = self._buffer * _CHUNK + self._filled
                self._array[start : start + len(part)] = part
                self._filled += len(part)
                data = data[len(part) :]
                if self._filled == self._limit:
                    self._next()

    def _next(self) -> None:
        """Hand over a full buffer."""
        self._limit = min(2 * self._limit, _CHUNK)
        self._flush()

    def _pause(self) -> None:
        """Hand over the whole blocks that there are, if they are worth it."""
        rest = self._filled % BLOCK
        if self._filled - rest >= _FIRST:
            end = self._buffer * _CHUNK + self._filled
            self._filled -= rest
            self._flush()
            start = self._buffer * _CHUNK
            self._view[start : start + rest] = self._view[end - rest : end]
            self._filled = rest

    def finish(self) -> None:
        """Wait until the system has all of it; the descriptor goes through the page cache from then on."""
        self._flush()
        self._behind.finish()
        _set_direct(self._fd, on=False)
        self._give_back()

    def stop(self) -> None:
        """Give up; nothing is written after this returns."""
        self._behind.stop()
        self._give_back()

    def _give_back(self) -> None:
        """Keep the ring for the next write, if none is kept; once, whatever comes between."""
        ring, self._ring = self._ring, None
        if ring is not None and not _spare:
            _spare.append(ring)

    def _flush(self) -> None:
        if self._filled:
            start = self._buffer * _CHUNK
            self._behind.give(self._view[start : start + self._filled])
            self._buffer, self._filled = (self._buffer + 1) % _CHUNKS, 0

    def _put(self, data: memoryview) -> None:
        """Whole blocks past the page cache; what is left at the end of the file goes through it."""
        whole = len(data) - len(data) % BLOCK
        self._write(data[:whole])
        if whole < len(data):
            _set_direct(self._fd, on=False)
            self._write(data[whole:])

    def _write(self, data: memoryview) -> None:
        while len(data):
            try:
                done = os.pwrite(self._fd, data, self._offset)
            except OSError as error:
                if error.errno not in _REFUSING or self.name == "buffered":
                    raise
                _refused.add(os.fstat(self._fd).st_dev)
                _set_direct(self._fd, on=False)
                self.name = "buffered"
                continue
            self._offset += done
            data = data[done:]
            if done % BLOCK:  # a disk that is nearly full may stop anywhere
                _set_direct(self._fd, on=False)


class _Ring:
    """The buffers, in one piece of memory."""

    def __init__(self) -> None:
        memory = pages(_CHUNKS * _CHUNK)
        self.view = memoryview(memory)
        self.array = np.frombuffer(memory, np.uint8)


def _taken() -> _Ring:
    try:
        return _spare.pop()  # in one step: another thread may want it too
    except IndexError:
        return _Ring()


def _set_direct(fd: int, *, on: bool) -> bool:
    """Turn it on or off for a descriptor; False where it cannot be."""
    if not hasattr(os, "O_DIRECT"):
        return False
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True
