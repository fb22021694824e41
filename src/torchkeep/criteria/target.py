"""Stops when a metric is as good as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import OfMetric, State, is_better, place_of
from ..core.metrics import checked_mode, finite


@dataclass(frozen=True)
class TargetReached(OfMetric):
    """Stop when the latest value of a metric is at least as good as a target.

    Attributes:
        metric: the name that is logged.
        target: in the unit of the metric.
        mode: `min` or `max`; if None, as the metric's name says: `min` for losses and errors, `max` for accuracies.
    """

    metric: str
    target: float
    mode: str | None = None

    def __post_init__(self) -> None:
        if finite(self.target) is None:
            raise ValueError(f"the target is {self.target!r}; it must be a number")
        object.__setattr__(self, "mode", checked_mode(self.metric, self.mode))

    def begin(self) -> State:
        """See Criterion."""
        return {"seen": 0, "last": None, "place": ""}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        if self.metric not in record:
            return state
        seen = state["seen"] + 1
        return {"seen": seen, "last": finite(record[self.metric]), "place": place_of(record, seen)}

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        if state["last"] is None or is_better(self.target, state["last"], str(self.mode)):
            return ""
        return f"{self.metric} is {state['last']:.5g} at {state['place']}, and {self.target:g} was the target"
