"""A folder as a source: it has no bytes of its own, only files in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..core.source import Buffer, Source, check_range
from ..errors import CheckpointNotFoundError, OpenError
from .local import plain_name


class FolderSource:
    """The files of one folder; nothing outside of it can be reached.

    Attributes:
        entries: names of the files in it, hidden ones too.
    """

    def __init__(self, path: str | os.PathLike[str], reader: Callable[[Path], Source]) -> None:
        """List a folder, and keep what reads its files.

        Raises:
            CheckpointNotFoundError: there is no such folder.
            OpenError: the system refuses to list it.
        """
        self.name = os.fspath(path)
        self.size = 0
        self._reader = reader
        try:
            self.entries = frozenset(entry.name for entry in os.scandir(path) if entry.is_file())
        except FileNotFoundError as error:
            raise CheckpointNotFoundError("there is no such folder", file=self.name) from error
        except OSError as error:
            raise OpenError(f"cannot be listed: {error.strerror}", file=self.name) from error

    def read(self, offset: int, nbytes: int) -> Buffer:
        """There are no bytes."""
        check_range(self, offset, nbytes)
        return b""

    def sibling(self, name: str) -> Source:
        """A file of the folder; only a plain file name is accepted."""
        return self._reader(Path(self.name) / plain_name(name, self.name))
