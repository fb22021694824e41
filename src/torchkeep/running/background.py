"""A save that goes on while training does: what the caller holds of it, and what becomes of its errors."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import Callable

from ..core.report import SaveReport
from ..errors import SaveError, TorchkeepError


class SaveHandle:
    """A save that may still be under way: `run.save(step, blocking=False)`.

    Attributes:
        step: the caller's number.
        skipped: nothing is saved, because the save before is still under way and the run's policy is to skip.
    """

    def __init__(self, step: int, work: Callable[[Callable[[], None]], SaveReport] | None, path: str) -> None:
        """Prepare; `begin` begins.

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
        self._pid_and_number = self._pid, next(_COUNT)
        self._work = work
        self._claim = threading.Lock()
        self._thread: threading.Thread | None = None
        if work is None:
            note = "skipped: the save before is still under way"
            self._report = SaveReport(path, 0, 0, 0.0, notes=(note,))
            self._staged.set()
            self._done.set()

    def begin(self) -> None:
        """Start the thread. It is no daemon: the interpreter waits for it at its end, so that nothing is lost."""
        self._thread = threading.Thread(target=self._run, name=f"torchkeep-save-{self.step}")
        self._thread.start()

    def is_this_thread(self) -> bool:
        """Whether it is the save itself that asks."""
        return self._thread is threading.current_thread()

    def give_up(self) -> None:
        """After `begin` has failed, or a signal came: nothing is saved, unless the thread has begun already."""
        if self._take_work() is not None:
            self._error, self._told = SaveError(f"the save of step {self.step} did not begin"), True
            self._staged.set()
            self._done.set()

    def _take_work(self) -> Callable[[Callable[[], None]], SaveReport] | None:
        """The work, for the first who asks."""
        with self._claim:
            work, self._work = self._work, None
            return work

    @property
    def staged(self) -> bool:
        """Whether everything was copied, so that the tensors may change."""
        return self._staged.is_set()

    @property
    def done(self) -> bool:
        """Whether it is committed, or has failed."""
        return self._done.is_set() or self._pid != os.getpid()  # in a forked child nothing is under way

    def result(self, timeout: float | None = None) -> SaveReport:
        """Wait until it is committed.

        Args:
            timeout: seconds to wait at the most.

        Raises:
            TimeoutError: it is still under way.
            SaveError: it failed, and nothing was committed.
        """
        if self._pid != os.getpid():
            raise SaveError(f"the save of step {self.step} is under way in another process, from which this one forked")
        if not self._done.wait(timeout):
            raise TimeoutError(f"the save of step {self.step} is still under way")
        self.surface(again=True)
        assert self._report is not None
        return self._report

    def wait_staged(self) -> None:
        """Wait until the tensors may change. In a forked child nothing is under way."""
        if self._pid == os.getpid():
            self._staged.wait()

    def wait_done(self) -> None:
        """Wait until it is done, one way or the other. In a forked child nothing is under way."""
        if self._pid == os.getpid():
            self._done.wait()

    def surface(self, *, again: bool = False) -> None:
        """Raise the error of a save that failed, once, or `again` to who asks for the result."""
        if self.done and self._error is not None and (again or not self._told):
            self._told = True
            _UNTOLD.pop(self._pid_and_number, None)
            raise self._error

    def _run(self) -> None:
        work = self._take_work()
        if work is None:
            return
        try:
            self._report = work(self._staged.set)
        except BaseException as error:
            if isinstance(error, TorchkeepError):
                error.add_note(f"in the save of step {self.step}, which was under way in the background")
            self._error = error
            _UNTOLD[self._pid_and_number] = (
                f"torchkeep: the save of step {self.step} into {self._path} failed, and nothing was committed: {error}"
            )
        finally:
            del work  # and with it the copies
            self._staged.set()
            self._done.set()


_COUNT = itertools.count()
_UNTOLD: dict[tuple[int, int], str] = {}
"""What nobody has been told yet; kept here because handle and run may be gone when the program ends."""


@atexit.register
def _tell() -> None:
    """The last chance: the program ends without having asked."""
    for (process, _), text in list(_UNTOLD.items()):
        if process == os.getpid():
            print(text, file=sys.stderr)
