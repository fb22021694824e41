"""train.py in a process that kills itself (SIGKILL) in the middle of writing a snapshot: what a power cut looks like.

python killed.py --run runs/digits --die-in-save 3
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import train

import torchkeep as tk


class DyingStore:
    """The store of a run, except that it ends the process after half of the bytes of one pack."""

    def __init__(self, store: Any, die_in_save: int) -> None:
        self._store = store
        self._saves_left = die_in_save

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, pieces: Iterable[Any], *, nbytes: int = 0, replace: bool = False) -> bool:
        """Store, or die."""
        if key.startswith("packs/"):
            pieces = self._counted(pieces, nbytes)
        stored: bool = self._store.put(key, pieces, nbytes=nbytes, replace=replace)
        return stored

    def put_named(self, prefix: str, name: Callable[[], str], pieces: Iterable[Any], *, nbytes: int, head: Any) -> bool:
        """Store what gets its name at the end, or die."""
        pieces = self._counted(pieces, nbytes)
        stored: bool = self._store.put_named(prefix, name, pieces, nbytes=nbytes, head=head)
        return stored

    def _counted(self, pieces: Iterable[Any], nbytes: int) -> Iterable[Any]:
        self._saves_left -= 1
        return pieces if self._saves_left else _half(list(pieces), nbytes)


def _half(pieces: list[Any], nbytes: int) -> Iterator[Any]:
    done = 0
    for piece in pieces:
        if done >= nbytes // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece
        done += len(piece)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    place = sys.argv.index("--die-in-save")
    count = int(sys.argv[place + 1])
    settings = train.parse(sys.argv[1:place] + sys.argv[place + 2 :])
    store = DyingStore(tk.local_store(settings.run), count)
    with tk.Run(settings.run, monitor="val_accuracy", store=store) as run:
        train.train(settings, run)
