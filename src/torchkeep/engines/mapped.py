"""Reading by mapping a local file into memory: nothing is copied, and only what is touched is read."""

from __future__ import annotations

import mmap
import os

from ..core.source import Source, check_range
from ..errors import OpenError
from .filling import CORES
from .local import LocalFile


class MappedSource(LocalFile):
    """A local file as a Source.

    The mapping is private: tensors made from it may be written to, and the file never changes. It lives as long as
    a tensor made from it. A file that another program shortens meanwhile is noticed at the next `read`; touching
    a tensor that was read before ends the process with SIGBUS, which no library can prevent.
    """

    engine = "mapped"
    threads = CORES

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map a file; raises what LocalFile does, and OpenError where the system maps no files."""
        super().__init__(path)
        self._map = self._mapping()

    def read(self, offset: int, nbytes: int) -> memoryview:
        """A view of the mapping; raises CorruptCheckpointError when the range is not (or no longer) in the file."""
        check_range(self, offset, nbytes)
        if not nbytes:
            return memoryview(b"")
        self.check_still(offset + nbytes)
        assert self._map is not None
        return memoryview(self._map)[offset : offset + nbytes]

    def mapped_again(self) -> MappedSource:
        """The same open file in a mapping of its own: what is written to one is not seen in the other."""
        other = object.__new__(type(self))
        other.name, other.size, other._fd = self.name, self.size, os.dup(self._fd)
        other._map = other._mapping()
        return other

    def sibling(self, name: str) -> Source:
        """Another file of the same folder; only a plain file name is accepted."""
        return self._sibling(name)

    def _mapping(self) -> mmap.mmap | None:
        try:
            return mmap.mmap(self._fd, self.size, access=mmap.ACCESS_COPY) if self.size else None
        except (OSError, ValueError) as error:
            raise OpenError(
                f"cannot be mapped: {error}", file=self.name, hint="read it with tk.open(path, engine='parallel')"
            ) from error
