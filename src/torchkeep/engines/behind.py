"""One thread that does one thing after another behind the thread that gives them, with a bound on what waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """A plain thread, because a pool takes no work while the interpreter ends.

    It begins with the first item, so that whoever can give can `stop` it too. It is a daemon: who gives waits for it,
    and one that a signal has cut off from its giver must not keep the interpreter from ending.
    """

    def __init__(self, work: Callable[[T], None], most: int) -> None:
        """Prepare it.

        Args:
            work: done with each item, in order.
            most: how many items may be given and not done yet.
        """
        self._work = work
        self._room: SimpleQueue[None] = SimpleQueue()  # a semaphore could be left locked by a signal
        for _ in range(most):
            self._room.put(None)
        self._items: SimpleQueue[tuple[T] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="torchkeep-write", daemon=True)
        self._begun = False

    def give(self, item: T) -> None:
        """Hand an item over; waits while there is no room, and raises what the work has raised."""
        if not self._begun:
            self._begun = True
            self._thread.start()
        self._room.get()
        self._raise()
        self._items.put((item,))

    def finish(self) -> None:
        """Wait until all is done; raises what the work has raised."""
        self._end()
        self._raise()

    def stop(self) -> None:
        """Drop what waits, and end."""
        self._error = self._error or RuntimeError("the write was given up")
        self._end()

    def _end(self) -> None:
        self._items.put(None)
        if self._begun:
            with contextlib.suppress(RuntimeError):  # a signal came while it began: it finds nothing to do, and ends
                self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                try:
                    self._work(item[0])
                except BaseException as error:
                    self._error = error
            item = None  # what was written may go before the next one comes
            self._room.put(None)
