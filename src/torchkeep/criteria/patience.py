"""Stops when a metric has not improved for some time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import OfMetric, State, is_better, place_of
from ..core.metrics import checked_mode, finite


@dataclass(frozen=True)
class Patience(OfMetric):
    """Stop after some values of a metric in a row that are no improvement.

    >>> tk.Run("runs/flowers", stop=tk.criteria.Patience(5, min_delta=1e-3))           # doctest: +SKIP

    An improvement is better than the best so far by more than `min_delta`; an equal value is none, and neither is NaN
    or infinity. The meaning of the settings is that of Keras's EarlyStopping.

    Attributes:
        count: how many; 0 is as 1.
        metric: the name that is logged. Records without it do not count.
        min_delta: in the unit of the metric, from 0.
        mode: `min` or `max`; if None, as the metric's name says: `min` for losses and errors, `max` for accuracies.
        start: values of earlier epochs are not looked at. The `epoch` of a record counts; where it has none, how many
            values came before.
        baseline: only improvements that are better than this, by more than `min_delta`, begin the count anew.
    """

    count: int
    metric: str = "val_loss"
    min_delta: float = 0.0
    mode: str | None = None
    start: int = 0
    baseline: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 0:
            raise ValueError(f"Patience got {self.count!r}; it needs a number of epochs, an integer from 0")
        if finite(self.min_delta) is None or self.min_delta < 0:
            raise ValueError(f"min_delta is {self.min_delta!r}; it must be a number from 0")
        if self.baseline is not None and finite(self.baseline) is None:
            raise ValueError(f"baseline is {self.baseline!r}; it must be a number")
        object.__setattr__(self, "mode", checked_mode(self.metric, self.mode))

    def begin(self) -> State:
        """See Criterion."""
        return {"seen": 0, "best": None, "place": "", "waited": 0, "last": "", "over": False}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        if self.metric not in record:
            return state
        seen = state["seen"] + 1
        epoch = finite(record.get("epoch"))
        if (seen - 1 if epoch is None else epoch) < self.start:
            return state | {"seen": seen}
        value, best = finite(record[self.metric]), state["best"]
        state = state | {"seen": seen, "waited": state["waited"] + 1, "last": _shown(record[self.metric])}
        if value is None or not (best is None or self._beats(value, best)):
            return state | {"over": state["waited"] >= self.count}
        waited = 0 if self.baseline is None or self._beats(value, self.baseline) else state["waited"]
        return state | {"best": value, "place": place_of(record, seen), "waited": waited, "over": False}

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        if not state["over"]:
            return ""
        verb, side = ("fallen", "below") if self.mode == "min" else ("risen", "above")
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        base = "" if self.baseline is None else f" and the baseline {self.baseline:g}"
        waited = f"{state['waited']} value{'' if state['waited'] == 1 else 's'}"
        if state["best"] is None:
            return f"{self.metric} has had no finite value in {waited}: now {state['last']}"
        return (
            f"{self.metric} has not {verb}{least} {side} its best{base} for {waited}: "
            f"best {state['best']:.5g} at {state['place']}, now {state['last']}"
        )

    def _beats(self, value: float, reference: float) -> bool:
        delta = self.min_delta if self.mode == "min" else -self.min_delta
        return is_better(value + delta, reference, str(self.mode))


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
