"""Reading without mapping, with many requests under way at once: for file systems that are reached over a network."""

from __future__ import annotations

import numpy as np

from ..core.source import Buffer, Source, check_range
from .filling import Job, fill
from .local import LocalFile

_SMALL = 1 << 20  # from here on a read is made by several threads, and not kept
_AHEAD = (1 << 16, 1 << 20)  # what is read ahead of small reads: at first, and at most while they follow each other


class ParallelSource(LocalFile):
    """A local file as a Source whose large reads are made in parts, by several threads, into memory of their own.

    A mapped file on a network file system costs a round trip for every few pages that are touched, one after another.
    Here a tensor costs its bytes in a few large requests side by side, and what is returned belongs to the caller.
    A file that is shortened meanwhile is noticed, always.
    """

    engine = "parallel"
    threads = 8

    _window: tuple[int, bytes] = (0, b"")
    _ahead = _AHEAD[0]

    def read(self, offset: int, nbytes: int) -> Buffer:
        """The bytes of a range in memory of their own."""
        check_range(self, offset, nbytes)
        if not nbytes:
            return bytearray()
        self.check_still(offset + nbytes)
        if nbytes >= _SMALL:
            out = np.empty(nbytes, np.uint8).data  # not a bytearray: one thread would set it to zero first
            fill([Job(self, offset, out)])
            return out
        start, data = self._window  # taken once: another thread may put another one in its place
        if not start <= offset <= offset + nbytes <= start + len(data):
            start, data = offset, self._look(offset, nbytes, follows=start <= offset <= start + len(data) + _AHEAD[0])
        return bytearray(data[offset - start : offset - start + nbytes])

    def sibling(self, name: str) -> Source:
        """Another file of the same folder; only a plain file name is accepted."""
        return self._sibling(name)

    def _look(self, offset: int, nbytes: int, *, follows: bool) -> bytes:
        """What is needed and some of what follows, kept for the next small read."""
        self._ahead = min(self._ahead * 2, _AHEAD[1]) if follows else _AHEAD[0]
        data = bytearray(min(max(nbytes, self._ahead), self.size - offset))
        self.read_into(offset, [memoryview(data)])
        self._window = (offset, bytes(data))
        return self._window[1]
