"""One thread that does one thing after another behind the thread that gives them, with a bound on what waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """A plain thread, which the interpreter waits for at its end, where a pool would refuse work by then."""

    def __init__(self, work: Callable[[T], None], most: int) -> None:
        """Start it.

        Args:
            work: done with each item, in order.
            most: how many items may be given and not done yet.
        """
        self._work = work
        self._room = threading.Semaphore(most)
        self._items: SimpleQueue[tuple[T] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="torchkeep-write")
        self._thread.start()

    def give(self, item: T) -> None:
        """Hand an item over; waits while there is no room, and raises what the work has raised."""
        self._room.acquire()
        self._raise()
        self._items.put((item,))

    def finish(self) -> None:
        """Wait until all is done; raises what the work has raised."""
        self._items.put(None)
        self._thread.join()
        self._raise()

    def stop(self) -> None:
        """Drop what waits, and end."""
        self._error = self._error or RuntimeError("the write was given up")
        self._items.put(None)
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
            self._room.release()
