"""Stopping a run early, as methods of `Run`: when, why, and the best weights put back.

Nothing of it is stored but the seconds that a run has taken: what a criterion has seen follows from the history, which
is shown to it again after resuming. So its settings may be others in the next process.
"""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

from ..core.criterion import Criterion, Watched, best_place, is_better, place_of
from ..core.metrics import finite
from ..core.retention import Needed, Policy
from ..core.snapshot import Snapshot, ranked, value_of
from ..errors import CorruptCheckpointError, KeyNotFoundError, StopWarning
from ..stopping import Clock, Judge
from .committing import Moment, Saving
from .restore import carry_out, plan_weights
from .tracking import MODULE, of_kind

NEEDED = "the best so far, which stopping puts back"


class Stopping(Saving):
    """The part of `Run` that stops it."""

    _clock: Clock
    _writer: int

    def __init__(self, stop: Criterion | None) -> None:
        super().__init__()
        self._clock = Clock()
        self._judge = None if stop is None else Judge(stop)
        self._shown = self._turned = 0  # records that the criterion was shown, and of which turn of the history
        self._restored: tuple[int, int | None] | None = None  # records and snapshot when the best was put back

    def should_stop(self) -> bool:
        """Whether the criterion that the run was given as `stop=` says stop; then the model has its best weights.

        Log and save before you ask, so that what was logged belongs to a snapshot. The modules that are tracked get
        the weights of the best snapshot; optimizers, schedulers and generators stay as they are. The same happens when
        a `with` block of the run ends without an error, for a loop may come to its end before the criterion. Without
        a `with`, call `restore_best` after the loop.

        Raises:
            ValueError: the run has no criterion.
            SaveError: a save that was under way in the background has failed.
        """
        self._surface()
        if self._judge is None:
            raise ValueError("this run has no criterion: give it one, as in tk.Run(path, stop=tk.criteria.Patience(5))")
        judge = self._caught_up()
        if not judge.ask(self._clock.seconds):
            return False
        self._restore_once()
        return True

    @property
    def stopped(self) -> str:
        """Why the criterion has said stop, as a sentence with figures; empty as long as it has not.

        After `resume` it is what it was at the snapshot: a run that had stopped there says so before it trains on.
        """
        return "" if self._judge is None else self._caught_up(self._writer == os.getpid()).reason

    def restore_best(self) -> Snapshot | None:
        """Put the weights of the best snapshot into the tracked modules, and leave everything else as it is.

        The best is that of the metric in `monitor=`, else of the first that the criterion compares, among the snapshots
        that lead to where the run is; what was logged and saved after the criterion had said stop does not count. A
        damaged one is passed over. If the very last record is better than all of them and nothing was saved since, the
        model has the best weights already.

        Returns:
            The snapshot; None if the model keeps its weights, because they are the best, or because none are: then a
            StopWarning says so, as it does where the best record has no snapshot.

        Raises:
            IncompatibleCheckpointError: a module is not the one that was saved; none is changed.
        """
        self._settle()
        self._begin()
        snapshot = self._put_back()
        self._restored = self._journal.length, self._parent
        return snapshot

    # -- inside -----------------------------------------------------------------------------------------------

    def _caught_up(self, begin: bool = True) -> Judge:
        """The criterion, when it has seen every record. Those of earlier processes tell nothing about time."""
        assert self._judge is not None
        if begin:
            self._begin()
        seconds = self._clock.seconds
        if self._turned != self._journal.turned:
            self._turned, self._shown, seconds = self._journal.turned, 0, 0.0
            self._judge.begin()
        for record in self._journal.records(self._shown):
            self._judge.see(record, seconds)
            self._shown += 1
        return self._judge

    def _go_on_from(self, seconds: float) -> None:
        """The run was resumed: this much time led to where it is."""
        self._clock.set(seconds)
        self._restored = None
        if self._judge is not None:
            self._turned = 0
            self._caught_up()

    def _end(self) -> None:
        """The training is over, as far as this process knows."""
        if self._judge is not None and self._writer == os.getpid() and of_kind(self._objects, MODULE):
            if self._journal.length:
                self._caught_up().tell_missing()
            if self._journal.length or self._archive.sequences():
                self._restore_once()

    def _restore_once(self) -> None:
        """The same, unless it was done since anything was logged or saved."""
        self._settle()
        if self._restored != (self._journal.length, self._parent):
            self.restore_best()

    def _take(self, step: int, objects: dict[str, Any], extra: Any, gradients: bool | None) -> Moment:
        """See Saving. What comes after the stop must not take the place of the best, whether anybody asks or not."""
        moment = super()._take(step, objects, extra, gradients)
        if self._judge is not None:
            self._caught_up()
        return moment

    def _policy(self, keep: Policy) -> Policy:
        """What `keep=` says, and the best snapshot, which may be needed."""
        best = [] if self._judge is None else self._best_first()
        return keep | Needed(best[0].sequence, NEEDED) if best else keep

    def _best_first(self) -> list[Snapshot]:
        """The snapshots on the way to here that have a finite value of the metric, the best first."""
        snapshots = self._snapshots()
        metric, mode = self._monitor.judged_by(snapshots)
        marks = {one.sequence: self._archive.mark_of(one.sequence) for one in snapshots}
        counting = [
            one
            for one in snapshots
            if self._journal.follows(marks[one.sequence]) and marks[one.sequence].records <= self._counting
        ]
        return ranked(counting, metric, mode) if metric else []

    @property
    def _counting(self) -> float:
        """How many records count: those that came before the criterion said stop."""
        return self._judge.seen if self._judge is not None and self._judge.reason else math.inf

    def _put_back(self) -> Snapshot | None:
        metric, mode = self._monitor.judged_by(self._snapshots())
        every = self._journal.records()
        records = every[: int(min(len(every), self._counting))]
        place = best_place(records, Watched(metric, mode)) if metric else None
        best = None if place is None else finite(records[place][metric])
        candidates = self._best_first()
        held = value_of(candidates[0], metric) if candidates else None
        unsaved = best is not None and (held is None or is_better(best, held, mode))
        if unsaved and place == len(every) - 1:
            return None
        snapshot = self._restore_first(candidates)
        if snapshot is None:
            what = f"no snapshot has a finite {metric}" if metric else "no snapshot has a metric to compare"
            _warn(f"{what}, so there are no best weights to put back: the model is as it is")
        elif place is not None and best is not None and best != value_of(snapshot, metric):
            _warn(
                f"the best {metric}, {best:.5g} at {place_of(records[place], place + 1)}, has no intact snapshot; "
                f"the model has the weights of {snapshot}. Save after every log"
            )
        return snapshot

    def _restore_first(self, candidates: list[Snapshot]) -> Snapshot | None:
        """Restore the first of some snapshots that is intact."""
        for snapshot in candidates:
            try:
                loaded = self._archive.load(snapshot.sequence)
            except KeyNotFoundError:  # pruned by another process since it was listed
                continue
            except CorruptCheckpointError as error:
                _warn(f"snapshot {snapshot.sequence} has better weights and is damaged: {error.brief}")
                continue
            carry_out(plan_weights(loaded.body, loaded.tensors, of_kind(self._objects, MODULE)))
            return snapshot
        return None


def _warn(text: str) -> None:
    warnings.warn(text, StopWarning, stacklevel=6)


def monitored(stop: Criterion | None, monitor: str | None, mode: str | None) -> tuple[str | None, str | None]:
    """The metric that decides which snapshot is best, and its mode: the caller's, else the criterion's first."""
    watched: Any = () if stop is None else stop.watched
    known = {one.metric: one.mode for one in reversed(watched)}
    if monitor is None and watched:
        monitor = watched[0].metric
    return monitor, mode or known.get(monitor)
