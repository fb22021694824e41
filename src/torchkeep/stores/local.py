"""A run in a folder of a local file system."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from ..core.source import Buffer, Source
from ..errors import CheckpointNotFoundError, KeyNotFoundError, RunLockedError

LOCK = "lock"


class WriteFile(Protocol):
    """What a store needs of a writing engine."""

    def __call__(self, path: Path, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = True) -> bool: ...


class LocalStore:
    """Keys are files below a folder."""

    # Folders locked by this process: POSIX locks only hold against other processes.
    _held: set[tuple[int, str]] = set()  # noqa: RUF012 - shared by all stores of the process on purpose

    def __init__(
        self, root: str | os.PathLike[str], *, write: WriteFile, read: Callable[[Path], Source], temporary: str
    ) -> None:
        """A store in a folder, which is made at the first write.

        Args:
            root: the folder.
            write, read: the engines that move the bytes.
            temporary: how the names of unfinished files begin; leftovers of a crash are removed under the lock.
        """
        self._lock: Any = None
        self.root = Path(root)
        self._write = write
        self._read = read
        self._temporary = temporary

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*key.split("/"))

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        """See Store."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._write(path, pieces, nbytes=nbytes, replace=replace)

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def source(self, key: str) -> Source:
        """See Store."""
        try:
            return self._read(self._path(key))
        except CheckpointNotFoundError as error:
            raise KeyNotFoundError(f"{self.root} has no {key}") from error

    def keys(self, prefix: str) -> list[str]:
        """See Store."""
        folder = self._path(prefix.rstrip("/"))
        if not folder.is_dir():
            return []
        return sorted(prefix + path.name for path in folder.iterdir() if not path.name.startswith("."))

    def delete(self, key: str) -> None:
        """See Store."""
        self._path(key).unlink(missing_ok=True)

    def lock(self) -> None:
        """Become the only writer. The lock goes with the process, however it ends.

        Raises:
            RunLockedError: another process, or another object of this process, is writing here.
        """
        if self._lock is not None and self._lock[0] == os.getpid():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        ident = str(self.root.resolve())
        path = self.root / LOCK
        hint = "stop it, close the other Run, or give this run another folder"
        if (os.getpid(), ident) in self._held:  # opening and closing the file would drop the lock that is held
            raise RunLockedError(f"{self.root} is being written by another Run of this process", hint=hint)
        file = path.open("a+")
        try:
            _lock_file(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunLockedError(f"{self.root} is being written by {holder}", hint=hint) from error
        self._held.add((os.getpid(), ident))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = (os.getpid(), ident, file)
        self._sweep()

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            pid, ident, file = self._lock
            file.close()  # closing releases the lock
            self._held.discard((pid, ident))
            self._lock = None

    def __del__(self) -> None:
        self.unlock()

    def _sweep(self) -> None:
        """Remove what a crashed writer left unfinished; under the lock nobody else can be writing it."""
        for folder in (self.root, *(path for path in self.root.iterdir() if path.is_dir())):
            for path in folder.glob(self._temporary + "*"):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _lock_file(file: Any) -> None:
    if os.name == "nt":  # untested
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    import fcntl

    # A POSIX lock, not flock: worker processes forked by a data loader do not inherit it, so a killed trainer
    # cannot leave it behind with them.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
