"""Every call that changes files below a folder, seen before it is made and noted after it was."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Op:
    """One change.

    Attributes:
        kind: open, write, allocate, truncate, sync, link, rename, mkdir, unlink (of a folder too), sync_folder; or mark,
            which is no call.
        path: of what is changed, relative to the folder that is watched; of an open file, its name when it was opened.
        other: what a link or rename starts from.
        file: number of the open file that is written to; every open has its own.
        offset, data: of a write.
        size: of an allocation or truncation; of a mark, the sequence number that was saved.
        makes: whether the open made the file.
    """

    kind: str
    path: str = ""
    other: str = ""
    file: int = 0
    offset: int = 0
    data: bytes = b""
    size: int = 0
    makes: bool = False

    @property
    def takes_space(self) -> bool:
        """Whether a full disk may refuse it."""
        return self.kind in {"allocate", "link", "rename", "mkdir"} or bool(self.data) or self.makes


Listener = Callable[[Op], None]

_UNKNOWN = (
    "pwritev", "sendfile", "copy_file_range", "splice", "symlink", "truncate", "removedirs", "renames", "mknod",
)  # fmt: skip


class Watch:
    """The calls of `os`, `io.open` and `pathlib`, replaced while it is entered.

    Syncs are noted and not made: what they would have made durable is what a simulation knows.
    """

    def __init__(self, world: Path, before: Listener | None = None, after: Listener | None = None) -> None:
        """Watch a folder.

        Args:
            world: the folder; it must exist.
            before: called with a change that is about to be made; may raise in its place.
            after: called with a change that was made.
        """
        self._starts = {str(world.absolute()), str(world.resolve())}
        self.before = before or (lambda op: None)
        self.after = after or (lambda op: None)
        self._mutex = threading.RLock()
        self._files: dict[int, tuple[int, str]] = {}
        self._folders: dict[int, str] = {}
        self._opened = 0
        self._real: dict[str, Any] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        ours = {name: getattr(self, f"_{name}") for name in (
            "open", "close", "write", "writev", "pwrite", "posix_fallocate", "ftruncate", "fsync", "fdatasync", "link",
            "rename", "replace", "unlink", "remove", "mkdir", "rmdir",
        )}  # fmt: skip
        ours = {name: function for name, function in ours.items() if hasattr(os, name)}
        ours |= {name: self._unknown(name) for name in _UNKNOWN if hasattr(os, name)}
        self._real = {name: getattr(os, name) for name in ours} | {"io.open": io.open}
        for name, function in ours.items():
            self._put(os, name, function)
        self._put(io, "open", self._io_open)
        self._put(builtins, "open", self._io_open)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _put(self, module: Any, name: str, function: Any) -> None:
        self._undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, function)

    def place(self, path: Any) -> str | None:
        """Where below the watched folder a path is, None if it is elsewhere; the folder itself is `.`."""
        if isinstance(path, int):
            return None
        full = os.fsdecode(path)
        full = full if full.startswith(os.sep) else str(Path(full).absolute())
        for start in self._starts:
            if full == start:
                return "."
            if full.startswith(start + os.sep):
                return full[len(start) + 1 :]
        return None

    @contextlib.contextmanager
    def doing(self, op: Op) -> Iterator[None]:
        """Around a change."""
        with self._mutex:
            self.before(op)
            yield
            self.after(op)

    def named(self, path: Any, makes: bool, cut: bool, make: Callable[[], int]) -> int:
        """Open a file or folder by a function that gives its descriptor."""
        place = self.place(path)
        if place is None:
            return make()
        exists = os.path.lexists(path)
        with self._mutex:
            number = self._opened = self._opened + 1
            op = Op("open", place, file=number, makes=makes and not exists)
            self.before(op)
            fd = make()
            if Path(path).is_dir():
                self._folders[fd] = place
                return fd
            self._files[fd] = (number, place)
            self.after(op)
            if cut and exists:
                self.after(Op("truncate", place, file=number))
            return fd

    def forget(self, fd: int) -> None:
        """A descriptor is closed."""
        self._files.pop(fd, None)
        self._folders.pop(fd, None)

    def written(self, fd: int, write: Callable[[], int], data: Callable[[], bytes], offset: int | None = None) -> int:
        """Write to a descriptor by a function that says how many bytes it wrote."""
        if fd not in self._files:
            return write()
        with self._mutex:
            at = offset
            if at is None:
                import fcntl

                at_end = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
                at = os.fstat(fd).st_size if at_end else os.lseek(fd, 0, os.SEEK_CUR)
            number, place = self._files[fd]
            self.before(Op("write", place, file=number, offset=at, data=data()))
            done = write()
            self.after(Op("write", place, file=number, offset=at, data=data()[:done]))
            return done

    def sized(self, fd: int, kind: str, size: int, change: Callable[[], Any]) -> Any:
        """Change the size of an open file."""
        if fd not in self._files:
            return change()
        number, place = self._files[fd]
        with self.doing(Op(kind, place, file=number, size=size)):
            return change()

    # -- what stands in for the functions of os ---------------------------------------------------------------

    def _open(self, path: Any, flags: int, *args: Any, **options: Any) -> int:
        make = lambda: self._real["open"](path, flags, *args, **options)  # noqa: E731
        return self.named(path, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC), make)

    def _io_open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if self.place(file) is None or not set(mode) & set("wax+"):
            return self._real["io.open"](file, mode, buffering, *args, **options)
        raw = _Watched(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

    def _close(self, fd: int) -> None:
        self.forget(fd)
        self._real["close"](fd)

    def _write(self, fd: int, data: Any) -> int:
        return self.written(fd, lambda: self._real["write"](fd, data), lambda: bytes(data))

    def _writev(self, fd: int, views: Any) -> int:
        return self.written(fd, lambda: self._real["writev"](fd, views), lambda: b"".join(views))

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self.written(fd, lambda: self._real["pwrite"](fd, data, offset), lambda: bytes(data), offset)

    def _posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        self.sized(fd, "allocate", offset + size, lambda: self._real["posix_fallocate"](fd, offset, size))

    def _ftruncate(self, fd: int, size: int) -> None:
        self.sized(fd, "truncate", size, lambda: self._real["ftruncate"](fd, size))

    def _fsync(self, fd: int) -> None:
        if fd in self._folders:
            with self.doing(Op("sync_folder", self._folders[fd])):
                return
        if fd not in self._files:
            self._real["fsync"](fd)
        else:
            self.sized(fd, "sync", 0, lambda: None)

    _fdatasync = _fsync

    def _two(self, kind: str, name: str, source: Any, target: Any) -> None:
        start, end = self.place(source), self.place(target)
        assert (start is None) == (end is None), f"{kind} from {source} to {target} leaves what is watched"
        if start is None or end is None:
            self._real[name](source, target)
            return
        with self.doing(Op(kind, end, start)):
            self._real[name](source, target)

    def _link(self, source: Any, target: Any) -> None:
        self._two("link", "link", source, target)

    def _rename(self, source: Any, target: Any) -> None:
        self._two("rename", "rename", source, target)

    def _replace(self, source: Any, target: Any) -> None:
        self._two("rename", "replace", source, target)

    def _unlink(self, path: Any, **options: Any) -> None:
        place = self.place(path)
        with self.doing(Op("unlink", place)) if place else contextlib.nullcontext():
            self._real["unlink"](path, **options)

    _remove = _unlink

    def _rmdir(self, path: Any, **options: Any) -> None:
        place = self.place(path)
        with self.doing(Op("unlink", place)) if place else contextlib.nullcontext():
            self._real["rmdir"](path, **options)

    def _mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        place = self.place(path)
        with self.doing(Op("mkdir", place)) if place else contextlib.nullcontext():
            self._real["mkdir"](path, mode, **options)

    def _unknown(self, name: str) -> Any:
        def refuse(*args: Any, **options: Any) -> Any:
            paths = [arg for arg in args if isinstance(arg, (str, os.PathLike)) and self.place(arg)]
            assert not paths and not [arg for arg in args if isinstance(arg, int) and arg in self._files], (
                f"os.{name} is not simulated"
            )
            return self._real[name](*args, **options)

        return refuse


class _Watched(io.FileIO):
    """A file that was opened by `io.open` and not by `os.open`."""

    def __init__(self, watch: Watch, path: Any, mode: str) -> None:
        self._watch = watch

        def make() -> int:
            io.FileIO.__init__(self, path, mode)
            return self.fileno()

        watch.named(path, bool(set(mode) & set("wax")), "w" in mode, make)

    def write(self, data: Any) -> int:
        return self._watch.written(self.fileno(), lambda: io.FileIO.write(self, data) or 0, lambda: bytes(data))

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        return int(self._watch.sized(self.fileno(), "truncate", size, lambda: io.FileIO.truncate(self, size)))

    def close(self) -> None:
        if not self.closed:
            self._watch.forget(self.fileno())
        super().close()
