"""Stops when a metric is no number any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import Criterion, State, place_of


@dataclass(frozen=True)
class NotANumber(Criterion):
    """Stop when a metric is NaN or infinite. Weights that give such values do not recover.

    Attributes:
        metric: the name that is logged; if None, all of a record.
    """

    metric: str | None = None

    @property
    def needed(self) -> frozenset[str]:
        """See Criterion."""
        return frozenset(() if self.metric is None else (self.metric,))

    def begin(self) -> State:
        """See Criterion."""
        return {"seen": 0, "found": ""}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        seen = state["seen"] + 1
        names = record if self.metric is None else [name for name in (self.metric,) if name in record]
        bad = [name for name in names if isinstance(record[name], float) and not math.isfinite(record[name])]
        found = f"{bad[0]} is {record[bad[0]]} at {place_of(record, seen)}" if bad else ""
        return {"seen": seen, "found": state["found"] or found}

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        return str(state["found"])
