"""Stopping early: a criterion at work, and the best weights put back when it says so."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .core.criterion import Criterion, Watched, checked_criterion, is_better
from .core.live import set_extra_state, spec_of, state_of, tied_names
from .core.metrics import checked_mode, finite, plain_record
from .core.table import shorten
from .errors import IncompatibleCheckpointError, StopWarning, UnsavableError

_PATIENT = 3  # askings without the metric, after which it is time to say so


class Clock:
    """Seconds of training, over all processes: time in which nothing ran does not count."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def go(self) -> None:
        """Run from now on, if it does not yet."""
        if self._since is None:
            self._since = time.monotonic()

    def halt(self) -> None:
        """Stand still."""
        self._before, self._since = self.seconds, None

    def set(self, seconds: float) -> None:
        """Go on from another time, running or not as before."""
        self._before, self._since = seconds, None if self._since is None else time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {"_before": self.seconds, "_since": None}  # what another process makes of its own clock is its matter


class Judge:
    """A criterion, what it has seen, and whether it has said stop. After that it looks at nothing more.

    Attributes:
        criterion: the rule.
        reason: why it said stop; empty as long as it has not.
        seen: how many records it has looked at.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = checked_criterion(criterion)
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self.reason, self.seen = "", 0
        self._state = self.criterion.begin()
        self._logged: dict[str, None] = {}
        self._asked = 0
        self._warned = False

    def see(self, record: Mapping[str, Any], seconds: float) -> None:
        """Look at one more record."""
        self._logged.update(dict.fromkeys(record))
        if not self.reason:
            self.seen += 1
            self._state = self.criterion.look(self._state, record)
            self.reason = self.criterion.why(self._state, seconds)

    def ask(self, seconds: float) -> bool:
        """Whether to stop now; says aloud when a metric does not come."""
        self._asked += 1
        if not self.reason:
            self.reason = self.criterion.why(self._state, seconds)
        if self._asked >= _PATIENT:
            self.tell_missing()
        return bool(self.reason)

    @property
    def logged(self) -> tuple[str, ...]:
        """The names that records have had."""
        return tuple(self._logged)

    def tell_missing(self) -> None:
        """Warn, once, of what the criterion needs and no record has had."""
        missing = sorted(self.criterion.needed - self._logged.keys())
        if missing and self._logged and not self._warned:
            self._warned = True
            names = ", ".join(map(repr, missing))
            warnings.warn(
                f"early stopping waits for {names}, which no record has had so far; logged were: "
                f"{shorten(list(self._logged))}",
                StopWarning,
                stacklevel=4,
            )

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain values, with the settings of the criterion."""
        return {
            "criterion": repr(self.criterion),
            "state": copy.deepcopy(self._state),
            "reason": self.reason,
            "seen": self.seen,
            "logged": list(self._logged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            IncompatibleCheckpointError: it is the state of another criterion, or of other settings.
        """
        if state["criterion"] != repr(self.criterion):
            raise IncompatibleCheckpointError(
                f"the state is of {state['criterion']}, and the criterion is {self.criterion!r}",
                hint="make the criterion as it was, or begin anew without its state",
            )
        self.begin()
        self.reason, self.seen = state["reason"], state["seen"]
        self._state = copy.deepcopy(state["state"])
        self._logged = dict.fromkeys(state["logged"])


class EarlyStopping:
    """Stops a training and puts the best weights back, without a run.

    >>> with tk.EarlyStopping(model, tk.criteria.Patience(5)) as stopper:              # doctest: +SKIP
    ...     for epoch in range(50):
    ...         train_one_epoch()
    ...         if stopper.update(epoch=epoch, val_loss=validate()):
    ...             break

    After `update` has said stop, and after the `with`, the model has its best weights, whether the criterion or the
    loop came to its end first. Without a `with`, call `restore_best` after the loop. A copy of what the model's state
    dict names is kept in host memory, `nbytes` of it, and made anew at each improvement; while that is done, there are
    two. The best is the best finite value, the first of equal ones, whatever `min_delta` and `start` say; what comes
    after the stop does not count. Optimizers are left as they are.

    It can be tracked by a run, `run.resume(model=model, stopper=stopper)`, and its state dict is what `torch.save` and
    `tk.save` can write.

    Attributes:
        model: whose weights are kept.
        best: the record of the best weights; None as long as there is none.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion, *, metric: str | None = None, mode: str | None = None
    ) -> None:
        """Watch a model.

        Args:
            model: its tensors are changed in place when the best weights are put back.
            criterion: when to stop, as `tk.criteria.Patience(5) | tk.criteria.NotANumber()`.
            metric: which decides what is best; if None, the first that the criterion compares.
            mode: `min` or `max`; if None, as the criterion or the metric's name says.

        Raises:
            ValueError: the criterion compares no metric, and none was given.
        """
        self.model = model
        self.best: dict[str, Any] | None = None
        self._judge = Judge(criterion)
        self._watched = _decisive(self._judge.criterion, metric, mode)
        self._kept: dict[str, torch.Tensor] = {}
        self._extra: dict[str, Any] = {}
        self._best_value: float | None = None
        self._clock = Clock()
        self._clock.go()

    @property
    def criterion(self) -> Criterion:
        """When to stop."""
        return self._judge.criterion

    @property
    def stopped(self) -> str:
        """Why it has stopped, as a sentence with figures; empty as long as it has not."""
        return self._judge.reason

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the copy of the best weights takes now; tied tensors count once."""
        return sum(tensor.nbytes for tensor in {id(one): one for one in self._kept.values()}.values())

    def update(self, **metrics: Any) -> bool:
        """Look at the metrics of one epoch, that the weights which the model has now have given.

        Args:
            metrics: as for `run.log`: numbers, tensors of one element.

        Returns:
            Whether to stop; the model has its best weights then.

        Raises:
            UnsavableError: a metric is a tensor of several elements, or a tensor of the model has no values.
        """
        if not metrics:
            raise ValueError("nothing to look at: give metrics by name, as in stopper.update(epoch=0, val_loss=0.7)")
        self._clock.go()
        record = plain_record(metrics)
        value = finite(record.get(self._watched.metric))
        held = self._best_value
        if value is not None and not self.stopped and (held is None or is_better(value, held, self._watched.mode)):
            self._keep()
            self.best, self._best_value = record, value
        seconds = self._clock.seconds
        self._judge.see(record, seconds)
        stop = self._judge.ask(seconds)
        if stop:
            self.restore_best()
        return stop

    def restore_best(self) -> bool:
        """Put the best weights so far into the model. Can be called at any time.

        Returns:
            False if there are none, because the metric never had a finite value: a StopWarning says so.

        Raises:
            IncompatibleCheckpointError: the model has other tensors than when they were kept; it is untouched.
        """
        if self._best_value is None:
            warnings.warn(
                f"{self._watched.metric} has had no finite value, so no weights are best: the model is as it is",
                StopWarning,
                stacklevel=3,
            )
            return False
        live = state_of(self.model)[0]
        _check_same(live, self._kept)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(self._kept[name])
        for name, value in self._extra.items():
            set_extra_state(self.model, name, copy.deepcopy(value))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything it has seen, and the best weights, which are not changed afterwards."""
        return {
            "judge": self._judge.state_dict(),
            "seconds": self._clock.seconds,
            "metric": list(self._watched),
            "best": self.best,
            "weights": dict(self._kept),
            "extra": self._extra,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. The model is untouched.

        Raises:
            IncompatibleCheckpointError: it is the state of another criterion, metric or model.
        """
        if list(state["metric"]) != list(self._watched):
            raise IncompatibleCheckpointError(
                f"the state compares {' '.join(state['metric'])}, and the stopper {' '.join(self._watched)}",
                hint="make the stopper with metric= and mode= as they were",
            )
        live = state_of(self.model)[0]
        if state["weights"]:
            _check_same(live, state["weights"])
        self._judge.load_state_dict(state["judge"])
        self._clock.set(state["seconds"])
        self.best = state["best"]
        self._best_value = None if self.best is None else finite(self.best[self._watched.metric])
        self._kept, self._extra = _copies(state["weights"], tied_names(live)), copy.deepcopy(state["extra"])

    def __enter__(self) -> EarlyStopping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._judge.logged:
            self._judge.tell_missing()
            self.restore_best()

    def _keep(self) -> None:
        tensors, extra = state_of(self.model)
        self._kept, self._extra = _copies(tensors, tied_names(tensors)), copy.deepcopy(extra)


def _decisive(criterion: Criterion, metric: str | None, mode: str | None) -> Watched:
    """The metric that decides what is best."""
    known = {one.metric: one.mode for one in reversed(criterion.watched)}
    if metric is None:
        if not criterion.watched:
            raise ValueError(f"which weights are best? {criterion} compares no metric: give metric='val_loss'")
        metric = criterion.watched[0].metric
    return Watched(metric, checked_mode(metric, mode or known.get(metric)))


def _copies(tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Copies in host memory; names that are tied to another share its copy.

    Raises:
        UnsavableError: a tensor has no values.
    """
    empty = [name for name, tensor in tensors.items() if tensor.device.type == "meta"]
    if empty:
        raise UnsavableError(
            f"{empty[0]!r} is on the meta device and has no values", path=empty[0], hint="load weights first"
        )
    copies = {name: one.detach().to("cpu", copy=True) for name, one in tensors.items() if name not in tied}
    return {name: copies[tied.get(name, name)] for name in tensors}


def _check_same(live: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> None:
    """The tensors must be those of which copies were kept."""
    other = sorted(live.keys() ^ kept.keys()) or _unlike(live, kept)
    if other:
        raise IncompatibleCheckpointError(
            f"the model is not the one whose weights were kept: {shorten(other)} differ",
            hint="make the stopper anew after the structure of the model has changed",
        )


def _unlike(live: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in live.items() if spec_of(tensor) != spec_of(kept[name])]
