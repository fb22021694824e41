"""What a store promises that keeps others out: one writer at a time, and nothing deleted under a save."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

from ..core.source import read_all
from ..errors import RunLockedError
from ..stores import Store

_SOON = 10.0  # seconds within which what has to happen does happen
_WHILE = 0.1  # seconds for which what must not happen is watched


class ExclusionTests:
    """The part of StoreTests about `lock()` with `unlock()` and `guard(exclusive)`, where a store has them."""

    def new(self) -> Store:
        """A store with nothing in it, another one at each call.

        Raises:
            NotImplementedError: it was not filled in.
        """
        raise NotImplementedError

    def again(self, store: Any) -> Store:
        """A second store on the bytes of the first, as another process would open it; by default the first itself."""
        found: Store = store
        return found

    def test_one_writer_at_a_time(self) -> None:
        """The lock keeps others from writing, not from reading; it goes when it is given back or its store is gone."""
        store: Any = self.new()
        if not hasattr(store, "lock"):
            return
        other: Any = self.again(store)
        assert other is not store, "fill in `again`, so that the lock can be tried"
        store.lock()
        store.lock()
        for _ in range(2):
            assert _refused(other.lock), "two stores have the lock"
            other.unlock()
        store.put("packs/a", [b"x"])
        assert read_all(other.source("packs/a")) == b"x"
        store.unlock()
        store.unlock()
        other.lock()
        assert _refused(store.lock), "two stores have the lock"
        del other
        gc.collect()
        store.lock()
        store.unlock()

    def test_the_guard_keeps_deleting_and_saving_apart(self) -> None:
        """Any number share it; who wants it alone waits until all are out, and keeps the others out."""
        store: Any = self.new()
        if not hasattr(store, "guard"):
            return
        other: Any = self.again(store)
        with store.guard(False), store.guard(False):
            shared = _Guest(other, False).enters()
            alone = _Guest(other, True).waits()
            shared.leave().left()
        alone.enters()
        waiting = [_Guest(store, False).waits(), _Guest(store, True).waits()]
        for one in (alone, *waiting):
            one.leave()
        for one in (alone, *waiting):
            one.left()

    def test_the_guard_goes_with_an_error(self) -> None:
        """Whatever happens inside, the next may enter."""
        store: Any = self.new()
        if not hasattr(store, "guard"):
            return
        for exclusive in (True, False):
            with contextlib.suppress(ValueError), store.guard(exclusive):
                raise ValueError("it comes out")
            _Guest(self.again(store), True).enters().leave().left()


class _Guest:
    """A thread that enters a guard, and stays in it until it is told to leave."""

    def __init__(self, store: Any, exclusive: bool) -> None:
        self._in, self._out, self._left = threading.Event(), threading.Event(), threading.Event()

        def stay() -> None:
            with store.guard(exclusive):
                self._in.set()
                self._out.wait(_SOON)
            self._left.set()

        threading.Thread(target=stay, daemon=True).start()

    def enters(self) -> _Guest:
        assert self._in.wait(_SOON), "the guard never let in who may enter"
        return self

    def waits(self) -> _Guest:
        assert not self._in.wait(_WHILE), "the guard let in who has to wait"
        return self

    def leave(self) -> _Guest:
        self._out.set()
        return self

    def left(self) -> None:
        assert self._left.wait(_SOON), "the guard never let in who may enter, or never let out"


def _refused(lock: Callable[[], None]) -> bool:
    try:
        lock()
    except RunLockedError:
        return True
    return False
