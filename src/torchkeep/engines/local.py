"""An open local file: what the engines that read one have in common."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ..errors import CheckpointNotFoundError, CorruptCheckpointError, OpenError, UnsupportedFeatureError

IOV = 1000  # buffers that one call fills; Linux takes 1024
_SEEKING = threading.Lock()  # where a system has no preadv, a read moves the one position of the file


def plain_name(name: str, file: str) -> str:
    """A file name that leads nowhere else; raises CorruptCheckpointError for any other."""
    if Path(name).name != name or name in {"", ".", ".."} or "\0" in name or "\\" in name:
        raise CorruptCheckpointError(
            f"refers to {name[:100]!r}, which is no plain file name", file=file, hint="do not use it: it leads outside"
        )
    return name


class LocalFile:
    """A regular file, open for reading as long as this object lives.

    Attributes:
        name: as the caller named it.
        size: when it was opened.
        engine: how it is read: a name of `READERS`.
        threads: how many reads of it at the same time are worth while.
    """

    engine = ""
    threads = 2

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file.

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
        self.size = os.fstat(self._fd).st_size

    def check_still(self, end: int) -> None:
        """Raises CorruptCheckpointError when the file no longer reaches to `end`."""
        if os.fstat(self._fd).st_size < end:
            raise self._shortened()

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes that follow each other from an offset on, without a copy in between.

        The interpreter is free for other threads meanwhile.

        Raises:
            CorruptCheckpointError: the file ends before the buffers are full.
            OpenError: the system cannot read it.
        """
        left = list(buffers)
        while left:
            try:
                done = _read_at(self._fd, left[:IOV], offset)
            except OSError as error:
                raise OpenError(f"cannot be read: {error.strerror}", file=self.name) from error
            if not done:
                raise self._shortened()
            offset += done
            full = 0
            while full < len(left) and done >= len(left[full]):
                done -= len(left[full])
                full += 1
            del left[:full]
            if done:
                left[0] = left[0][done:]

    def _sibling(self, name: str) -> Self:
        return type(self)(Path(self.name).parent / plain_name(name, self.name))

    def _shortened(self) -> CorruptCheckpointError:
        return CorruptCheckpointError("was shortened while it was open", file=self.name, hint="open it again")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            with contextlib.suppress(OSError):
                os.close(self._fd)


def _read_at(fd: int, buffers: list[memoryview], offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, buffers, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, min(len(buffers[0]), 1 << 24))
    buffers[0].cast("B")[: len(data)] = data
    return len(data)
