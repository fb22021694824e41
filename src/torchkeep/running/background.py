"""A save that goes on while training does: what the caller holds of it, and what becomes of its errors."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable

from ..core.report import SaveReport
from ..errors import TorchkeepError


class SaveHandle:
    """A save that may still be under way: `run.save(step, blocking=False)`.

    Attributes:
        step: the caller's number.
        skipped: nothing is saved, because the save before is still under way and the run's policy is to skip.
    """

    def __init__(self, step: int, work: Callable[[Callable[[], None]], SaveReport] | None, path: str) -> None:
        """Begin.

        Args:
            step: the caller's number.
            work: stages, calls what it is given, and commits; None for a save that is skipped.
            path: the run, for the message of an error that nobody asked for.
        """
        self.step = step
        self.skipped = work is None
        self._path = path
        self._staged, self._done = threading.Event(), threading.Event()
        self._report: SaveReport | None = None
        self._error: BaseException | None = None
        self._told = False
        self._pid = os.getpid()
        if work is None:
            note = "skipped: the save before is still under way"
            self._report = SaveReport(path, 0, 0, 0.0, notes=(note,))
            self._staged.set()
            self._done.set()
            return
        _OPEN.add(self)
        # No daemon: the interpreter waits for it at its end, so that nothing is lost.
        threading.Thread(target=self._run, args=(work,), name=f"torchkeep-save-{step}").start()

    @property
    def staged(self) -> bool:
        """Whether everything was copied, so that the tensors may change."""
        return self._staged.is_set()

    @property
    def done(self) -> bool:
        """Whether it is committed, or has failed."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> SaveReport:
        """Wait until it is committed.

        Args:
            timeout: seconds to wait at the most.

        Raises:
            TimeoutError: it is still under way.
            SaveError: it failed, and nothing was committed.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the save of step {self.step} is still under way")
        self.surface(again=True)
        assert self._report is not None
        return self._report

    def wait_staged(self) -> None:
        """Wait until the tensors may change. In a forked child nothing is under way."""
        if self._pid == os.getpid():
            self._staged.wait()

    def settle(self) -> None:
        """Wait until it is done, and raise its error unless somebody was told."""
        if self._pid == os.getpid():
            self._done.wait()
            self.surface()

    def surface(self, *, again: bool = False) -> None:
        """Raise the error of a save that failed, once, or `again` to who asks for the result."""
        if self.done and self._error is not None and (again or not self._told):
            self._told = True
            _OPEN.discard(self)
            raise self._error

    def _run(self, work: Callable[[Callable[[], None]], SaveReport]) -> None:
        try:
            self._report = work(self._staged.set)
            _OPEN.discard(self)
        except BaseException as error:
            if isinstance(error, TorchkeepError):
                error.add_note(f"in the save of step {self.step}, which was under way in the background")
            self._error = error
        finally:
            self._staged.set()
            self._done.set()

    def _tell_at_exit(self) -> None:
        if self._error is not None and not self._told and self._pid == os.getpid():
            print(
                f"torchkeep: the save of step {self.step} into {self._path} failed, and nothing was committed: "
                f"{self._error}",
                file=sys.stderr,
            )


_OPEN: weakref.WeakSet[SaveHandle] = weakref.WeakSet()


@atexit.register
def _tell() -> None:
    """The last chance: the program ends without having asked."""
    for handle in list(_OPEN):
        handle._tell_at_exit()
