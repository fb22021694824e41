"""Stops when time, epochs or steps are used up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.criterion import Criterion, State
from ..core.metrics import finite


@dataclass(frozen=True)
class Budget(Criterion):
    """Stop when the time, the epochs or the steps that were set are used up, whichever is first.

    Attributes:
        hours: of training, over all processes of a run. Time in which nothing ran does not count, nor work that a
            crash threw away.
        epochs: from the first to the latest `epoch` of the records, both counted: 0 to 19 are 20, and so are 1 to 20.
        steps: the `step` of a record that is this or more.
    """

    hours: float | None = None
    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.hours, self.epochs, self.steps) if value is not None]
        if not given or any((finite(value) or 0) <= 0 for value in given):
            raise ValueError(f"{self} is no budget; give hours=, epochs= or steps=, as numbers above 0")

    @property
    def needed(self) -> frozenset[str]:
        """See Criterion."""
        limits = {"epoch": self.epochs, "step": self.steps}
        return frozenset(name for name, limit in limits.items() if limit is not None)

    def begin(self) -> State:
        """See Criterion."""
        return {"first": None, "epoch": None, "step": None}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        epoch, step = finite(record.get("epoch")), finite(record.get("step"))
        return {
            "first": epoch if state["first"] is None else state["first"],
            "epoch": state["epoch"] if epoch is None else epoch,
            "step": state["step"] if step is None else step,
        }

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        epochs = 0 if state["epoch"] is None else state["epoch"] - state["first"] + 1
        if self.hours is not None and seconds >= self.hours * 3600:
            return f"{seconds / 3600:.3g} hours of training have passed, of {self.hours:g}"
        if self.epochs is not None and epochs >= self.epochs:
            return f"{epochs:g} epochs are done, of {self.epochs:g}"
        if self.steps is not None and (state["step"] or 0) >= self.steps:
            return f"step {state['step']:.0f} is done, of {self.steps:g}"
        return ""
