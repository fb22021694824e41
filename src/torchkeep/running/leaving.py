"""Leaving on SIGTERM: remembering that it came, so that the run can finish a snapshot first."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

LEFT = 75
"""The exit code of a process that was asked to end, saved a snapshot and left: run it again to go on (EX_TEMPFAIL)."""


@contextlib.contextmanager
def untouched_by_sigterm() -> Iterator[None]:
    """Processes that are started here do not get SIGTERM where this one catches it.

    A signal to the whole group, as batch systems send it, would else kill the workers of a loader, and the loader
    kills the training before it comes to its next batch. They end with the loader; those that are left when this
    process exits are killed, because Python would wait for them to obey the signal.
    """
    if not isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Sigterm):
        yield
        return
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _SPARED.update(set(multiprocessing.active_children()) - others)
        atexit.unregister(_end_the_spared)  # the last to be registered is the first to be called
        atexit.register(_end_the_spared)


_SPARED: weakref.WeakSet[Any] = weakref.WeakSet()


def _end_the_spared() -> None:
    if any(process.is_alive() for process in _SPARED):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their end for a failure of the training
    for process in list(_SPARED):
        with contextlib.suppress(ValueError, AssertionError):  # closed already, or the parent's own after a fork
            if process.is_alive():
                process.kill()


class Sigterm:
    """Catches SIGTERM between `watch` and `release`; works in the main thread only, where Python handles signals."""

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._watching = False

    def watch(self) -> None:
        """Catch the signal from now on.

        Raises:
            RuntimeError: this is not the main thread.
        """
        if self._watching:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("tk.Run(..., sigterm=True) must be used from the main thread, which gets the signals")
        self._before = signal.signal(signal.SIGTERM, self._handle)
        self._watching = True

    def release(self) -> None:
        """Let the signal do what it did before."""
        if self._watching:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)
            self._watching = False

    def _handle(self, number: int, frame: Any) -> None:
        self.came = True
