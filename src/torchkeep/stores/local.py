"""A run in a folder of a local file system."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from ..core.source import Buffer, Source
from ..errors import CheckpointNotFoundError, KeyNotFoundError, RunLockedError, save_error

LOCK = "lock"


class WriteFile(Protocol):
    """What a store needs of a writing engine."""

    def __call__(self, path: Path, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = True) -> bool: ...


class LocalStore:
    """Keys are files below a folder."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        write: WriteFile,
        read: Callable[[Path], Source],
        sync_folder: Callable[[Path], None],
        temporary: str,
    ) -> None:
        """A store in a folder, which is made at the first write.

        Args:
            root: the folder; a relative one is taken from where the process is now, wherever it goes later.
            write, read, sync_folder: the engines that move the bytes and make names durable.
            temporary: how the names of unfinished files begin; leftovers of a crash are removed under the lock.
        """
        self._lock: Any = None
        self.root = Path(root).absolute()
        self._write = write
        self._read = read
        self._sync_folder = sync_folder
        self._temporary = temporary

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*key.split("/"))

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and what is above it, each durably, for a file is only as durable as the way to it."""
        missing = [folder, *folder.parents]
        missing = missing[: next((place for place, path in enumerate(missing) if path.exists()), len(missing))]
        for path in reversed(missing):
            try:
                path.mkdir(exist_ok=True)
                self._sync_folder(path.parent)
            except OSError as error:
                raise save_error(error, path) from error

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        """See Store."""
        path = self._path(key)
        self._make_folder(path.parent)
        return self._write(path, pieces, nbytes=nbytes, replace=replace)

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store. What a full disk lets through of the data is taken back."""
        path = self._path(key)
        self._make_folder(path.parent)
        new = not path.exists()
        try:
            with path.open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    written = file.write(data)
                    while written < len(data):
                        written += file.write(data[written:])
                    if durable:
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
            if new:
                self._sync_folder(path.parent)
        except OSError as error:
            raise save_error(error, path, len(data)) from error

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
            SaveError: the folder cannot be made.
        """
        if self._lock is not None:
            return
        self._make_folder(self.root)
        path = self.root / LOCK
        try:
            file = path.open("a+")
        except OSError as error:
            raise save_error(error, path) from error
        try:
            _lock_file(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if holder.startswith(f"process {os.getpid()} "):
                holder = f"another Run object of this process ({os.getpid()})"
            file.close()
            raise RunLockedError(
                f"{self.root} is being written by {holder}",
                hint="stop it, close the other Run, or give this run another folder",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file
        _LOCKED.add(self)
        self._sweep()

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()  # closing releases the lock
            self._lock = None

    def __del__(self) -> None:
        self.unlock()

    def _sweep(self) -> None:
        """Remove what a crashed writer left unfinished; under the lock nobody else can be writing it."""
        for own in ("packs/{}*", "snapshots/{}*", "tags/{}*", "{}history*", "{}torchkeep*"):
            for path in self.root.glob(own.format(self._temporary)):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _lock_file(file: Any) -> None:
    if os.name == "nt":  # untested
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    import fcntl

    # flock and not a POSIX lock: that one is lost when anything in the process opens and closes the file.
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# A forked child has the lock too. It gives up its share at once, so that the workers of a data loader that outlive a
# killed trainer do not keep the run locked, and so that a child which writes has to ask.
_LOCKED: weakref.WeakSet[LocalStore] = weakref.WeakSet()


def _forget_locks() -> None:
    for store in list(_LOCKED):
        store.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
