"""When a training should stop: rules as data, joined by `|` and `&`, each with a small plain state.

A criterion is never changed: `look` gives the state after one more record, `why` reads it. So the state after any
number of records can be had again by showing the records again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .metrics import finite

State = dict[str, Any]
"""What a criterion remembers: JSON values only."""


class Watched(NamedTuple):
    """A metric that a criterion compares, and whether its lowest (`min`) or its highest (`max`) value is best."""

    metric: str
    mode: str


class Criterion(ABC):
    """A rule that says when to stop. `a | b` stops when either says so, `a & b` when both do at the same time.

    >>> stop = Patience(5) | NotANumber()                                    # doctest: +SKIP
    >>> stop = Patience(5) & Budget(epochs=20)      # not before epoch 20    # doctest: +SKIP

    What it says is about the latest record. Who uses it stops at the first record at which it says so.
    """

    @property
    def watched(self) -> tuple[Watched, ...]:
        """The metrics that it compares; the first one decides which weights are best."""
        return ()

    @property
    def needed(self) -> frozenset[str]:
        """The names that a record must have one day, or it can never say anything."""
        return frozenset(one.metric for one in self.watched)

    @abstractmethod
    def begin(self) -> State:
        """The state before the first record."""

    @abstractmethod
    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """The state after one more record. The state that is given is not changed.

        Args:
            state: of `begin` or of an earlier `look`.
            record: metrics by name; what is missing is as if there had been no record.
        """

    @abstractmethod
    def why(self, state: State, seconds: float) -> str:
        """Why to stop now, as a sentence with figures; empty where there is no reason.

        Args:
            state: of the latest record.
            seconds: how long the training has run, over all processes.
        """

    def __or__(self, other: Criterion) -> Criterion:
        return AnyOf(_parts(AnyOf, self, other)) if isinstance(other, Criterion) else NotImplemented

    def __and__(self, other: Criterion) -> Criterion:
        return AllOf(_parts(AllOf, self, other)) if isinstance(other, Criterion) else NotImplemented


class OfMetric(Criterion):
    """A criterion that compares one metric, by its `metric` and `mode`."""

    metric: str
    mode: str | None

    @property
    def watched(self) -> tuple[Watched, ...]:
        """See Criterion."""
        return (Watched(self.metric, str(self.mode)),)


@dataclass(frozen=True)
class Several(Criterion):
    """Criteria that are joined."""

    parts: tuple[Criterion, ...]

    @property
    def watched(self) -> tuple[Watched, ...]:
        """See Criterion."""
        return tuple(dict.fromkeys(one for part in self.parts for one in part.watched))

    @property
    def needed(self) -> frozenset[str]:
        """See Criterion."""
        return frozenset(name for part in self.parts for name in part.needed)

    def begin(self) -> State:
        """See Criterion."""
        return {"parts": [part.begin() for part in self.parts]}

    def look(self, state: State, record: Mapping[str, Any]) -> State:
        """See Criterion."""
        return {"parts": [part.look(one, record) for part, one in zip(self.parts, state["parts"], strict=True)]}

    def _reasons(self, state: State, seconds: float) -> list[str]:
        return [part.why(one, seconds) for part, one in zip(self.parts, state["parts"], strict=True)]


class AnyOf(Several):
    """Stops when one of its parts says so."""

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        return "; ".join(reason for reason in self._reasons(state, seconds) if reason)

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


class AllOf(Several):
    """Stops when all of its parts say so at the same time."""

    def why(self, state: State, seconds: float) -> str:
        """See Criterion."""
        reasons = self._reasons(state, seconds)
        return ", and ".join(reasons) if all(reasons) else ""

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


def _parts(kind: type[Several], *criteria: Criterion) -> tuple[Criterion, ...]:
    """The criteria to join; those that are joined in the same way already give their parts."""
    return tuple(part for one in criteria for part in (one.parts if isinstance(one, kind) else (one,)))


def checked_criterion(criterion: Any) -> Criterion:
    """The same; raises TypeError for what is none."""
    if not isinstance(criterion, Criterion):
        raise TypeError(
            f"{criterion!r} is no criterion; say when to stop, as in tk.criteria.Patience(5) | tk.criteria.NotANumber()"
        )
    return criterion


def place_of(record: Mapping[str, Any], number: int) -> str:
    """Where in the training a record stands: `epoch 3`, `step 1200`, or `record 4` by its number from 1."""
    for unit in ("epoch", "step"):
        value = finite(record.get(unit))
        if value is not None:
            return f"{unit} {value:g}" if abs(value) < 1e6 else f"{unit} {value:.0f}"
    return f"record {number}"


def best_place(records: list[dict[str, Any]], watched: Watched) -> int | None:
    """The index of the record with the best finite value of a metric, the first of equal ones; None without any."""
    best: tuple[float, int] | None = None
    for number, record in enumerate(records):
        value = finite(record.get(watched.metric))
        if value is not None and (best is None or is_better(value, best[0], watched.mode)):
            best = value, number
    return None if best is None else best[1]


def is_better(value: float, held: float, mode: str) -> bool:
    """Whether a value is truly better than another one: of equal values neither is."""
    return value < held if mode == "min" else value > held
