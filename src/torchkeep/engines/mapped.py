"""Reading by mapping a local file into memory: nothing is copied, and only what is touched is read."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

from ..core.source import Source, check_range
from ..errors import CheckpointNotFoundError, CorruptCheckpointError, OpenError, UnsupportedFeatureError


def plain_name(name: str, file: str) -> str:
    """A file name that leads nowhere else; raises CorruptCheckpointError for any other."""
    if Path(name).name != name or name in {"", ".", ".."} or "\0" in name or "\\" in name:
        raise CorruptCheckpointError(
            f"refers to {name[:100]!r}, which is no plain file name", file=file, hint="do not use it: it leads outside"
        )
    return name


class MappedSource:
    """A local file as a Source.

    The mapping is private: tensors made from it may be written to, and the file never changes. It lives as long as
    a tensor made from it. A file that another program shortens meanwhile is noticed at the next `read`; touching
    a tensor that was read before ends the process with SIGBUS, which no library can prevent.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map a file.

        Raises:
            CheckpointNotFoundError: there is no such file.
            UnsupportedFeatureError: it is a folder.
            OpenError: the system refuses to open it.
        """
        self.name = os.fspath(path)
        with contextlib.suppress(OSError):  # one look: the file may go at any time
            if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for a writer
                raise UnsupportedFeatureError("is not a regular file", file=self.name)
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(
                "there is no such file",
                file=self.name,
                hint="check the path; it is read relative to the working folder",
            ) from error
        except OSError as error:
            raise OpenError(f"cannot be opened: {error.strerror}", file=self.name) from error
        try:
            status = os.fstat(self._fd)
            self.size = status.st_size
            self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_COPY) if self.size else None
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, offset: int, nbytes: int) -> memoryview:
        """A view of the mapping; raises CorruptCheckpointError when the range is not (or no longer) in the file."""
        end = offset + nbytes
        check_range(self, offset, nbytes)
        if not nbytes:
            return memoryview(b"")
        if os.fstat(self._fd).st_size < end:
            raise CorruptCheckpointError("was shortened while it was open", file=self.name, hint="open it again")
        assert self._map is not None
        return memoryview(self._map)[offset:end]

    def sibling(self, name: str) -> Source:
        """Another file of the same folder; only a plain file name is accepted."""
        return MappedSource(Path(self.name).parent / plain_name(name, self.name))

    def __del__(self) -> None:
        if hasattr(self, "_map"):  # the descriptor was kept; a failed __init__ has closed it
            os.close(self._fd)
