"""Runs: history, snapshots and resuming. `Run` is the verb; capture, archive and restore are its steps."""

from .background import SaveHandle
from .run import Run, is_run, local_store

__all__ = ["Run", "SaveHandle", "is_run", "local_store"]
