"""Pointing at weights: a file, a checkpoint, a run, or one of its snapshots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .core.checkpoint import Checkpoint
from .core.snapshot import Snapshot
from .core.table import shorten
from .engines.ranges import is_url
from .errors import LoadError
from .opening import open_checkpoint
from .running import Run, is_run


def checkpoint_of(given: Any) -> Checkpoint:
    """The checkpoint that a caller means.

    Args:
        given: a Checkpoint; a path or address that `open` takes; a run or its folder, for the newest snapshot; a
            snapshot, or `runs/flowers@7`, `runs/flowers@best` and `runs/flowers@TAG`.

    Raises:
        OpenError: there is nothing that can be opened.
        LoadError: the run has no such snapshot, or it is something else.
    """
    if isinstance(given, Checkpoint):
        return given
    if isinstance(given, Run):
        return given.open()
    if isinstance(given, Snapshot):
        return Run(given.path).open(given.sequence)
    if not isinstance(given, (str, os.PathLike)):
        raise LoadError(
            f"weights cannot be taken from a {type(given).__name__}",
            hint="pass a path, a Checkpoint, a run or a snapshot",
        )
    if _holds_run(given):
        return Run(given).open()
    folder, _, which = os.fspath(given).rpartition("@")
    if folder and which and _holds_run(folder) and not Path(given).exists():
        run = Run(folder)
        return run.open(_sequence(run, which))
    return open_checkpoint(given)


def _holds_run(path: str | os.PathLike[str]) -> bool:
    if isinstance(path, str) and is_url(path):
        return False
    try:
        return is_run(path)
    except (OSError, ValueError):  # no name of a file at all
        return False


def _sequence(run: Run, which: str) -> int:
    """The number of the snapshot that is called `7`, `best` or by a tag."""
    if which.isdecimal():
        return int(which)
    found = run.tags.get(which)
    if found is None and which == "best" and run.best is not None:
        found = run.best.sequence
    if found is None:
        tags = shorten(run.tags) or "none"
        raise LoadError(
            f"{run.path} has no snapshot {which!r}",
            hint=f"write a number or a tag; its tags are {tags}, `best` by metric",
        )
    return found
