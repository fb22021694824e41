"""Leaving on SIGTERM: remembering that it came, so that the run can finish a snapshot first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

LEFT = 75
"""The exit code of a process that was asked to end, saved a snapshot and left: run it again to go on (EX_TEMPFAIL)."""


@contextlib.contextmanager
def untouched_by_sigterm() -> Iterator[None]:
    """Processes that are started here do not get SIGTERM where this one catches it.

    A signal to the whole group, as batch systems send it, would else kill the workers of a loader, and the loader
    kills the training before it comes to its next batch. They end with the loader, or with this process.
    """
    if not isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Sigterm):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
