"""A file in one step: written under a temporary name, made durable, and then given its own name."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.source import Buffer, Head
from ..errors import CheckpointNotFoundError, CommitUnknownError, save_error
from .buffered import Buffered, write_all
from .direct import BLOCK, Direct

AUTO = "auto"
WRITERS: dict[str, Callable[[int, int], Writer]] = {"direct": Direct, "buffered": Buffered}
TEMPORARY = ".tmp-"
_DIRECT_FROM = 4 << 20  # less than this is durable sooner through the page cache


class Writer(Protocol):
    """What an engine does with an open file: takes its bytes in order, from a multiple of 4096 on.

    An empty piece says that the next one may take a while: what there is may be written meanwhile.
    """

    name: str

    def write(self, piece: Buffer) -> None: ...

    def finish(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Written:
    """What `write_file` did: whether the file was put there by this call, and the engine that wrote it."""

    committed: bool
    engine: str


def read_file(path: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        CheckpointNotFoundError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointNotFoundError(f"cannot be read: {error.strerror}", file=str(path)) from error


def write_file(
    path: Path,
    pieces: Iterable[Buffer],
    *,
    nbytes: int = 0,
    replace: bool = True,
    durable: bool = True,
    engine: str = AUTO,
    head: Head | None = None,
    name: Callable[[], str] | None = None,
) -> Written:
    """Write a file under a temporary name, make it durable, then give it its name in one step.

    Args:
        path: the final name, or that of the folder and anything where `name` tells the final one.
        pieces: the bytes, in order; after the head, if there is one. None may change before this returns.
        nbytes: the most that it will be, reserved beforehand so that a full disk is noticed before anything is written.
        replace: take the place of an existing file; otherwise an existing file stays.
        durable: wait until the disk has the bytes and the name.
        engine: `direct` or `buffered`; `auto` takes direct for large durable files. Where direct I/O is refused it is
            buffered all the same.
        head: the first bytes, if they are known only at the end.
        name: the last part of the final name, if it is known only when all is written, the head too.

    Raises:
        NoSpaceError: the disk is full; the temporary file is gone and an existing file is as it was.
        SaveError: the system refused otherwise.
        CommitUnknownError: the name was given, but the folder could not be made durable.
    """
    start = os.fsencode(path.name)[:80].decode(errors="ignore")  # a name has at most 255 bytes
    temporary = path.with_name(f"{TEMPORARY}{start}-{secrets.token_hex(6)}")
    asked = _Counted(pieces)
    try:
        try:
            used = _fill(temporary, asked, nbytes, durable, engine, head)
            path = path if name is None else path.with_name(name())
            committed = _publish(temporary, path, replace)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise save_error(error, path, max(nbytes, asked.nbytes) or BLOCK) from error
    if durable:  # also where the name was there: who gave it may have been killed before it was durable
        try:
            sync_folder(path.parent)
        except OSError as error:
            raise CommitUnknownError(f"{path} was written, but its folder could not be synced: {error}") from error
    return Written(committed, used)


class _Counted:
    """Pieces, and how many bytes they had so far."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        self.pieces = pieces
        self.nbytes = 0


def _fill(path: Path, asked: _Counted, nbytes: int, durable: bool, engine: str, head: Head | None) -> str:
    # 0o666 leaves the mode to the umask, as for any file the user makes; O_EXCL never follows a planted link.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags, 0o666)
    try:
        if nbytes:
            _reserve(fd, nbytes)
        if head is not None:
            os.lseek(fd, head.nbytes, os.SEEK_SET)
        writer = WRITERS[_chosen(engine, nbytes, durable)](fd, nbytes)
        try:
            for piece in asked.pieces:
                asked.nbytes += len(piece)
                writer.write(piece)
            writer.finish()
        except BaseException:
            writer.stop()
            raise
        if head is not None:
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, [head.make()])
            if head.nbytes + asked.nbytes < nbytes:
                os.ftruncate(fd, head.nbytes + asked.nbytes)
        if durable:
            os.fsync(fd)
        return writer.name
    finally:
        os.close(fd)


def _chosen(engine: str, nbytes: int, durable: bool) -> str:
    if engine != AUTO:
        return engine
    return "direct" if durable and nbytes >= _DIRECT_FROM else "buffered"


def check_engine(engine: str) -> str:
    """The name of an engine that writes; raises ValueError for another."""
    if engine not in {AUTO, *WRITERS}:
        raise ValueError(f"there is no engine {engine!r} that writes; known are {', '.join((AUTO, *WRITERS))}")
    return engine


def _reserve(fd: int, nbytes: int) -> None:
    """Take the space now, so that a full disk shows before hours of state are half written."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}:
            raise


def _publish(temporary: Path, path: Path, replace: bool) -> bool:
    if replace:
        temporary.replace(path)
        return True
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system lets one open a folder."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
