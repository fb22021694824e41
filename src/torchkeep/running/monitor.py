"""Which snapshot is best: by the caller's metric, else by the last writer's, else by a usual one."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from ..core.manifest import Body, seal, unseal
from ..core.metrics import checked_mode, mode_of
from ..core.snapshot import Snapshot, best_of
from ..errors import CorruptCheckpointError, SaveError
from ..stores import Store
from .journal import read_key

BEST = "tags/best.json"
_USUAL = ("val_loss", "eval_loss", "valid_loss", "val_accuracy", "val_acc", "eval_accuracy")


class Monitor:
    """Compares snapshots by one metric, and points to the best one for those who read the run later."""

    def __init__(self, store: Store, metric: str | None, mode: str | None) -> None:
        self._store = store
        self._metric = metric
        self._mode = None if metric is None and mode is None else checked_mode(metric or "", mode)

    def best(self, snapshots: tuple[Snapshot, ...]) -> Snapshot | None:
        """The best of some snapshots; None if the metric was never logged."""
        metric, mode = self.judged_by(snapshots)
        return best_of(snapshots, metric, mode) if metric else None

    def point_to_best(self, snapshots: tuple[Snapshot, ...], body: Body) -> None:
        """Leave a pointer if the snapshot that was just saved is the best."""
        best = self.best(snapshots)
        if best is not None and best.sequence == body.sequence:
            metric, mode = self.judged_by(snapshots)
            told = {"sequence": body.sequence, "metric": metric, "mode": mode}
            with contextlib.suppress(SaveError):  # the snapshot is committed, and the pointer can be computed again
                self._store.put(BEST, [seal(msgspec.json.encode(told))], replace=True)

    def judged_by(self, snapshots: tuple[Snapshot, ...]) -> tuple[str, str]:
        """The metric that decides, and its mode; two empty texts where none was logged."""
        metric, mode = self._metric, self._mode
        if metric is None:
            logged = {name for snapshot in snapshots for name in snapshot.metrics}
            told = self._told()
            if told.get("metric") in logged and told.get("mode") in {"min", "max"}:
                metric, mode = told["metric"], mode or told["mode"]
            else:
                metric = next((name for name in _USUAL if name in logged), "")
        return metric, mode or (mode_of(metric) if metric else "")

    def _told(self) -> dict[str, Any]:
        with contextlib.suppress(CorruptCheckpointError, msgspec.DecodeError, ValueError):
            data = read_key(self._store, BEST)
            if data:
                return msgspec.json.decode(unseal(data, file=BEST), type=dict[str, Any])
        return {}
