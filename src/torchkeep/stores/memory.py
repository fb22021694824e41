"""A run in memory: for tests, and for trying things out without a disk."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

from ..core.source import Buffer, Source, check_range
from ..errors import CorruptCheckpointError, KeyNotFoundError, RunLockedError


class MemoryStore:
    """Keys are entries of a dict. Everything goes with the last store that holds it.

    >>> run = tk.Run("trial", store=MemoryStore())                              # doctest: +SKIP
    """

    def __init__(self, shared: MemoryStore | None = None) -> None:
        """An empty store, or a second one on the same bytes, as another process would open a folder.

        Args:
            shared: the store whose bytes these are; the lock of one then keeps the other out.
        """
        self._space: _Space = _Space() if shared is None else shared._space

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        """See Store."""
        data = b"".join(memoryview(piece).cast("B") for piece in pieces)
        with self._space.mutex:
            if key in self._space.values and not replace:
                return False
            self._space.values[key] = [data]
            return True

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """See Store. Memory is never durable."""
        with self._space.mutex:
            self._space.values.setdefault(key, []).append(bytes(data))

    def source(self, key: str) -> Source:
        """See Store."""
        with self._space.mutex:
            parts = self._space.values.get(key)
            if parts is None:
                raise KeyNotFoundError(f"the store has no {key}")
            if len(parts) != 1:
                parts[:] = [b"".join(parts)]
            return _Value(parts[0], key)

    def keys(self, prefix: str) -> list[str]:
        """See Store."""
        with self._space.mutex:
            return sorted(key for key in self._space.values if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See Store."""
        with self._space.mutex:
            self._space.values.pop(key, None)

    def lock(self) -> None:
        """Become the only writer, until `unlock` or until this object is gone.

        Raises:
            RunLockedError: another store on the same bytes is writing, or the process in which this one was locked
                before it forked.
        """
        me = os.getpid()
        with self._space.mutex:
            store, process = self._space.holder
            holder = store()
            if holder is not None and (holder is not self or process != me):
                who = f"another store object of this process ({me})" if process == me else f"process {process}"
                raise RunLockedError(
                    f"the run in memory is being written by {who}", hint="close the other Run, or use another store"
                )
            self._space.holder = (weakref.ref(self), me)

    def unlock(self) -> None:
        """Let others write."""
        with self._space.mutex:
            store, process = self._space.holder
            if store() is self and process == os.getpid():
                self._space.holder = _NOBODY

    @contextlib.contextmanager
    def guard(self, exclusive: bool) -> Iterator[None]:
        """Keep deleting and saving apart: any number are in it at once, or a single exclusive one alone.

        Waits until that is so. Who is in it already may enter once more if both times are shared; never otherwise.

        Args:
            exclusive: for what deletes; False for what relies on nothing being deleted meanwhile.
        """
        space = self._space
        with space.free:
            space.free.wait_for(lambda: space.inside == 0 if exclusive else space.inside >= 0)
            space.inside = -1 if exclusive else space.inside + 1
        try:
            yield
        finally:
            with space.free:
                space.inside = 0 if exclusive else space.inside - 1
                space.free.notify_all()


def _nobody() -> None:
    return None


_Holder = tuple[Callable[[], MemoryStore | None], int]
"""A weak reference to the store that is locked, and the process in which it was."""

_NOBODY: _Holder = (_nobody, 0)


class _Space:
    """What stores on the same bytes share."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.values: dict[str, list[bytes]] = {}  # in parts, so that appending does not copy
        self.holder: _Holder = _NOBODY
        self.free = threading.Condition()
        self.inside = 0  # how many share the guard; -1 while one has it alone


class _Value:
    """The bytes of a key as they were when it was asked for."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.size = len(data)
        self._data = data

    def read(self, offset: int, nbytes: int) -> Buffer:
        """A copy of the range, for the caller may write into it."""
        check_range(self, offset, nbytes)
        return bytearray(memoryview(self._data)[offset : offset + nbytes])

    def sibling(self, name: str) -> Source:
        """There is none."""
        raise CorruptCheckpointError(f"refers to {name!r}, and stands alone", file=self.name)
