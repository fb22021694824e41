"""Stops when a metric is worse than its best by some per cent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import OfMetric, State, is_better, place_of
from ..core.metrics import checked_mode, finite


@dataclass(frozen=True)
class GeneralizationLoss(OfMetric):
    """Stop when the generalisation loss is above some per cent: 100 (E / E_best - 1) for an error E.

    The class GL of criteria in Prechelt, "Early Stopping - But When?" (1998). For a metric of which the highest value
    is best, and for negative values, it is how much worse the value is than the best one, in per cent of the size of
    the best. NaN and infinity are not looked at: that is for `NotANumber`.

    Attributes:
        alpha: per cent.
        metric: the name that is logged.
        mode: `min` or `max`; if None, as the metric's name says.
    """

    alpha: float = 5.0
    metric: str = "val_loss"
    mode: str | None = None

    def __post_init__(self) -> None:
        if finite(self.alpha) is None or self.alpha < 0:
            raise ValueError(f"GeneralizationLoss got {self.alpha!r}; it needs a number of per cent from 0")
        object.__setattr__(self, "mode", checked_mode(self.metric, self.mode))

    def begin(self) -> State:
        """See Criterion."""
        return {"seen": 0, "best": None, "place": "", "last": None}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        value, best = finite(record.get(self.metric)), state["best"]
        if value is None:
            return state
        seen = state["seen"] + 1
        if best is None or is_better(value, best, str(self.mode)):
            return {"seen": seen, "best": value, "place": place_of(record, seen), "last": value}
        return state | {"seen": seen, "last": value}

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        loss = _loss(state["last"], state["best"])
        if loss <= self.alpha:
            return ""
        return (
            f"{self.metric} is {loss:.3g} % worse than its best, which is more than {self.alpha:g} %: "
            f"{state['last']:.5g} now, {state['best']:.5g} at {state['place']}"
        )


def _loss(value: float | None, best: float | None) -> float:
    """How much worse a value is, in per cent of the best; infinite where the best is 0."""
    if value is None or best is None or value == best:
        return 0.0
    return 100 * abs(value - best) / abs(best) if best else math.inf
