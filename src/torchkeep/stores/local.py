"""A run in a folder of a local file system."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ..core.source import Buffer, Head, Source
from ..errors import CheckpointNotFoundError, KeyNotFoundError, RunLockedError, save_error

LOCK, GUARD = "lock", "guard"
UNSYNCED = "unsynced"  # there as long as a writer that did not wait for the disk may have left something to it
_BLOCK = 4096  # what a new name takes of a disk, about


class Written(Protocol):
    """What a writing engine answers: whether the file was put there by this call, and which engine wrote it."""

    @property
    def committed(self) -> bool: ...

    @property
    def engine(self) -> str: ...


class WriteFile(Protocol):
    """What a store needs of a writing engine."""

    def __call__(
        self,
        path: Path,
        pieces: Iterable[Buffer],
        *,
        nbytes: int = 0,
        replace: bool = True,
        head: Head | None = None,
        name: Callable[[], str] | None = None,
    ) -> Written: ...


class LocalStore:
    """Keys are files below a folder.

    Attributes:
        engine: which engine wrote the last `put`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        write: WriteFile,
        read: Callable[[Path], Source],
        sync_folder: Callable[[Path], None],
        temporary: str,
        durable: bool = True,
    ) -> None:
        """A store in a folder, which is made at the first write.

        Args:
            root: the folder; a relative one is taken from where the process is now, wherever it goes later.
            write, read, sync_folder: the engines that move the bytes and make names durable.
            temporary: how the names of unfinished files begin; leftovers of a crash are removed under the lock.
            durable: wait for the disk. Without, a crash of the machine may lose what was put, one of the process not.
        """
        self._lock: Any = None
        self.root = Path(root).absolute()
        self._write = write
        self._read = read
        self._sync_folder = sync_folder if durable else _leave
        self._durable = durable
        self.engine = ""
        self._temporary = temporary

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*key.split("/"))

    def _make_folder(self, folder: Path, needed: int = 0) -> None:
        """Make a folder and what is above it, each durably, for a file is only as durable as the way to it."""
        missing = [folder, *folder.parents]
        missing = missing[: next((place for place, path in enumerate(missing) if path.exists()), len(missing))]
        for path in reversed(missing):
            try:
                path.mkdir(exist_ok=True)
                try:
                    self._sync_folder(path.parent)
                except OSError:
                    with contextlib.suppress(OSError):
                        path.rmdir()  # so that the next try does not take it for durable
                    raise
            except OSError as error:
                raise save_error(error, path, max(needed, _BLOCK)) from error

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        """See Store."""
        path = self._path(key)
        self._make_folder(path.parent, nbytes)
        written = self._write(path, pieces, nbytes=nbytes, replace=replace)
        self.engine = written.engine
        return written.committed

    def put_named(
        self, prefix: str, name: Callable[[], str], pieces: Iterable[Buffer], *, nbytes: int, head: Head
    ) -> bool:
        """`put` bytes whose beginning, and whose key under a prefix, are known when all others are written.

        Args:
            prefix: ends in `/`.
            name: the rest of the key; asked for after `head`.
            pieces: the bytes after the head.
            nbytes: the most that all of it will be.
            head: the first bytes.
        """
        folder = self._path(prefix.rstrip("/"))
        self._make_folder(folder, nbytes)
        written = self._write(folder / "new", pieces, nbytes=nbytes, replace=False, head=head, name=name)
        self.engine = written.engine
        return written.committed

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store. What a full disk lets through of the data is taken back."""
        path = self._path(key)
        self._make_folder(path.parent, len(data))
        new = not path.exists()
        try:
            with path.open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    if new:
                        self._sync_folder(path.parent)
                    written = file.write(data)
                    while written < len(data):
                        written += file.write(data[written:])
                    if durable and self._durable:
                        os.fsync(file.fileno())
                except OSError:
                    if data:
                        file.truncate(size)
                    if new and not os.fstat(file.fileno()).st_size:
                        path.unlink()  # so that the next try makes its name durable
                    raise
        except OSError as error:
            raise save_error(error, path, max(len(data), _BLOCK if new else 0)) from error

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
        """See Store. It is durable after `flush`."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise save_error(error, path) from error

    def flush(self, prefix: str) -> None:
        """Make durable what was deleted under a prefix that ends in `/`."""
        folder = self._path(prefix.rstrip("/"))
        try:
            if folder.is_dir():
                self._sync_folder(folder)
        except OSError as error:
            raise save_error(error, folder) from error

    def age(self, key: str) -> float:
        """Seconds since a key was written; raises KeyNotFoundError."""
        try:
            return time.time() - self._path(key).stat().st_mtime
        except FileNotFoundError as error:
            raise KeyNotFoundError(f"{self.root} has no {key}") from error

    def leftovers(self) -> list[str]:
        """Keys of the packs and manifests that a crash left unfinished; true only of who has the guard alone."""
        found = (path for part in ("packs", "snapshots") for path in self.root.glob(f"{part}/{self._temporary}*"))
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    @contextlib.contextmanager
    def guard(self, exclusive: bool) -> Iterator[None]:
        """Keep saving and deleting apart: any number are in it at once, or a single exclusive one alone.

        Waits until that is so, across processes. It goes with the process, however that ends, and a forked child is
        not in it.

        Args:
            exclusive: for what deletes; False for what relies on nothing being deleted meanwhile.

        Raises:
            SaveError: the folder cannot be written, or its file system knows no locks.
        """
        self._make_folder(self.root)
        held = _Held(self.root / GUARD, exclusive)
        try:
            yield
        finally:
            held.release()

    def lock(self) -> None:
        """Become the only writer. The lock goes with the process, however it ends.

        Raises:
            RunLockedError: another process, or another object of this process, is writing here.
            SaveError: the folder cannot be made, or what is in it cannot be made durable.
        """
        if self._lock is not None:
            return
        self._make_folder(self.root)
        path = self.root / LOCK
        if not path.exists():  # where a lock is, the way to it was made durable before
            self._settle_way()
        try:
            file = path.open("a+")
        except OSError as error:
            raise save_error(error, path, _BLOCK) from error
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
        with contextlib.suppress(OSError):  # a lock that does not say whose it is, on a full disk, is a lock too
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._lock = file
        _LOCKED.add(self)
        try:
            with self.guard(exclusive=True):  # tags are written without the lock
                self._sweep()
                if self._durable:
                    self._settle()
                else:
                    (self.root / UNSYNCED).touch()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()  # closing releases the lock
            self._lock = None

    def __del__(self) -> None:
        self.unlock()

    def _settle(self) -> None:
        """Make durable what earlier writers may have left to the system: a save will rely on it.

        Of a writer that waited for the disk and was killed these are names; of one that did not wait, files too.
        """
        unsynced = self.root / UNSYNCED
        try:
            if unsynced.exists():
                for path in self.root.rglob("*"):
                    if path.is_file():
                        _sync_file(path)
                self._settle_way()
            for folder in (self.root, *(path for path in self.root.iterdir() if path.is_dir())):
                self._sync_folder(folder)
            unsynced.unlink(missing_ok=True)
        except OSError as error:
            raise save_error(error, self.root) from error

    def _settle_way(self) -> None:
        """The same for the folders above, which as a rule others made, and which may not be ours to open."""
        for folder in self.root.parents:
            with contextlib.suppress(OSError):
                self._sync_folder(folder)
            if folder.is_mount():
                break

    def _sweep(self) -> None:
        """Remove what a crash left unfinished; under the lock and the guard nobody else can be writing it."""
        for own in ("packs/{}*", "snapshots/{}*", "tags/{}*", "{}history*", "{}torchkeep*", "{}pruned*"):
            for path in self.root.glob(own.format(self._temporary)):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _leave(folder: Path) -> None:
    """Leave the names in a folder to the system."""


class _Held:
    """A lock on a descriptor of its own, so that threads keep each other out as processes do."""

    def __init__(self, path: Path, exclusive: bool) -> None:
        """Wait for it."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise save_error(error, path, _BLOCK) from error
        _HELD.add(self)
        try:
            _wait_for_file(self._fd, exclusive)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise save_error(error, path) from error
            raise

    def release(self) -> None:
        """Let go, also of what a child that forked without Python's knowledge still has."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                _free_file(self._fd)
            self.forget()

    def forget(self) -> None:
        """Close this descriptor; in a forked child this leaves the lock to the parent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _free_file(fd: int) -> None:
    if os.name != "nt":  # there closing does it
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)


def _wait_for_file(fd: int, exclusive: bool) -> None:
    if os.name == "nt":  # untested; there is no shared lock here
        import msvcrt

        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
                return
            except OSError as error:  # it gives up after ten seconds
                if error.errno != errno.EDEADLK:
                    raise
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


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
_HELD: weakref.WeakSet[_Held] = weakref.WeakSet()


def _forget_locks() -> None:
    for store in list(_LOCKED):
        store.unlock()
    for held in list(_HELD):
        held.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
