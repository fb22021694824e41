"""Writing through the page cache, so that a reader never sees half a file and a crash leaves the old one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..core.source import Buffer
from ..errors import CommitUnknownError, save_error

TEMPORARY = ".tmp-"
_IOV = 512
_BLOCK = 4096  # what a new name takes of a disk, about
_BATCH = 4 << 20  # small tensors are gathered up to here; nothing is held longer


def write_file(
    path: Path,
    pieces: Iterable[Buffer],
    *,
    nbytes: int = 0,
    replace: bool = True,
    durable: bool = True,
    finish: Callable[[int], None] | None = None,
) -> bool:
    """Write a file under a temporary name, make it durable, then give it its name in one step.

    Args:
        path: the final name.
        pieces: the bytes, in order.
        nbytes: expected total, reserved beforehand so that a full disk is noticed before anything is written.
        replace: take the place of an existing file; otherwise an existing file stays and False is returned.
        durable: wait until the disk has the bytes and the name.
        finish: called with the file descriptor after the last piece, to fill in what was not known at the start.

    Returns:
        Whether the file was put there by this call.

    Raises:
        NoSpaceError: the disk is full; the temporary file is gone and an existing file is as it was.
        SaveError: the system refused otherwise.
        CommitUnknownError: the name was given, but the folder could not be made durable.
    """
    start = path.name.encode()[:80].decode(errors="ignore")  # a name has at most 255 bytes
    temporary = path.with_name(f"{TEMPORARY}{start}-{secrets.token_hex(6)}")
    asked = 0

    def counted() -> Iterator[Buffer]:
        nonlocal asked
        for piece in pieces:
            asked += memoryview(piece).nbytes
            yield piece

    try:
        try:
            _fill(temporary, counted(), nbytes, durable, finish)
            committed = _publish(temporary, path, replace)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise save_error(error, path, max(nbytes, asked) or _BLOCK) from error
    if durable:  # also where the name was there: who gave it may have been killed before it was durable
        try:
            sync_folder(path.parent)
        except OSError as error:
            raise CommitUnknownError(f"{path} was written, but its folder could not be synced: {error}") from error
    return committed


def _fill(
    path: Path, pieces: Iterable[Buffer], nbytes: int, durable: bool, finish: Callable[[int], None] | None
) -> None:
    # 0o666 leaves the mode to the umask, as for any file the user makes; O_EXCL never follows a planted link.
    fd = os.open(
        path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        if nbytes:
            _reserve(fd, nbytes)
        batch: list[Buffer] = []
        waiting = 0
        for piece in pieces:
            batch.append(piece)
            waiting += len(piece)
            if len(batch) == _IOV or waiting >= _BATCH:
                write_all(fd, batch)
                batch, waiting = [], 0
        write_all(fd, batch)
        if finish is not None:
            finish(fd)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _reserve(fd: int, nbytes: int) -> None:
    """Take the space now, so that a full disk shows before hours of state are half written."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}:
            raise


def write_all(fd: int, pieces: list[Buffer]) -> None:
    """Write buffers one after another, however often the system stops short."""
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while views:
        done = os.writev(fd, views[:_IOV]) if hasattr(os, "writev") else os.write(fd, views[0])
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]


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
