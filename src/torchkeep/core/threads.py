"""The same work on many things by a few threads at once, for work that lets go of the interpreter's lock."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

THREADS = min(4, os.cpu_count() or 1)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let torch compute on one thread inside, e.g. with small matrices: several take longer, and round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[T], object], items: Iterable[T], threads: int = THREADS) -> None:
    """Do the work on each item, in the order in which threads come free; raises what the first failure raised.

    The caller's thread is one of them. Plain threads, because pools take no work while the interpreter ends, and
    saves that are under way are finished then.
    """
    waiting = iter(items)
    lock = threading.Lock()
    failed: list[BaseException] = []

    def run() -> None:
        while not failed:
            with lock:
                try:
                    item = next(waiting)
                except StopIteration:
                    return
            try:
                work(item)
            except BaseException as error:
                failed.append(error)

    others = [threading.Thread(target=run, name="torchkeep-work") for _ in range(threads - 1)]
    try:
        for thread in others:
            thread.start()
        run()
        for thread in others:
            thread.join()
    except BaseException as error:  # a signal: nothing may go on with what the caller takes for its own again
        failed.append(error)
        for thread in others:
            with contextlib.suppress(RuntimeError):  # one that had not begun
                thread.join()
        raise
    if failed:
        raise failed[0]
