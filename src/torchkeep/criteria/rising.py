"""Stops when a metric has become worse several times in succession."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import OfMetric, State, is_better
from ..core.metrics import checked_mode, finite


@dataclass(frozen=True)
class Rising(OfMetric):
    """Stop when an error has risen in several strips of values in succession, however little.

    The class UP of criteria in Prechelt, "Early Stopping - But When?" (1998): the last value of each strip is compared
    with the last value of the strip before. A strip that ends with NaN or infinity is passed over.

    Attributes:
        count: how many times in succession.
        every: values of the metric in a strip.
        metric: the name that is logged.
        mode: `min` or `max`; if None, as the metric's name says. Of an accuracy it is falling that counts.
    """

    count: int = 3
    every: int = 5
    metric: str = "val_loss"
    mode: str | None = None

    def __post_init__(self) -> None:
        for number in (self.count, self.every):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"Rising got {number!r}; it needs integers from 1")
        object.__setattr__(self, "mode", checked_mode(self.metric, self.mode))

    def begin(self) -> State:
        """See Criterion."""
        return {"seen": 0, "ends": []}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        if self.metric not in record:
            return state
        seen, value = state["seen"] + 1, finite(record[self.metric])
        if seen % self.every or value is None:
            return {"seen": seen, "ends": state["ends"]}
        ends = state["ends"]
        worse = bool(ends) and is_better(ends[-1], value, str(self.mode))
        return {"seen": seen, "ends": [*(ends if worse else []), value][-self.count - 1 :]}

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        if len(state["ends"]) <= self.count:
            return ""
        verb = "risen" if self.mode == "min" else "fallen"
        figures = ", ".join(f"{value:.5g}" for value in state["ends"])
        return f"{self.metric} has {verb} {self.count} times in succession, seen every {self.every} values: {figures}"
