"""Which snapshots of a run stay: policies as data, to be joined, printed and tried on a list. Nothing is deleted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .metrics import checked_mode
from .snapshot import Snapshot, ranked
from .units import parse_bytes

ALWAYS = math.inf
"""The weight of what no limit on the size takes away."""


class Reason(NamedTuple):
    """Why a snapshot stays, and how late `at_most` gives it up: the lowest weight first, then the oldest."""

    text: str
    weight: float = 0.0


Reasons = dict[int, list[Reason]]


@dataclass(frozen=True)
class Shelf:
    """What a policy decides on.

    Attributes:
        snapshots: the intact snapshots, oldest first.
        tags: name of a tag -> sequence.
        sizes: id of a pack -> its bytes.
    """

    snapshots: tuple[Snapshot, ...]
    tags: Mapping[str, int]
    sizes: Mapping[str, int]


class Policy(ABC):
    """A rule that says which snapshots of a run stay. `a | b` keeps what either keeps.

    >>> policy = keep_last(3) | keep_best(1, "val_loss") | keep_tagged()      # doctest: +SKIP
    >>> policy = policy.at_most("20 GB")                                      # doctest: +SKIP
    """

    @abstractmethod
    def reasons(self, shelf: Shelf) -> Reasons:
        """For each snapshot that stays by this rule, why."""

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that it looks at."""
        return frozenset()

    @property
    def limit(self) -> int | None:
        """How many bytes of packs all that stays may need; None for any number."""
        return None

    def __or__(self, other: Policy) -> Policy:
        return Either(self, other)

    def at_most(self, nbytes: int | str) -> Policy:
        """The same, but drop more until the packs that are still needed fit into so many bytes.

        What only `keep_last` and `keep_every` keep goes first, the oldest of them before the others; then what
        `keep_best` keeps, the worst first. Tagged snapshots and the newest one stay, whatever they take.

        Args:
            nbytes: a number, or text as `20 GB` or `512MiB`.
        """
        return Limited(self, parse_bytes(nbytes))

    def __call__(
        self,
        snapshots: Sequence[Snapshot],
        *,
        tags: Mapping[str, int] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> frozenset[int]:
        """The sequences of the snapshots that stay. The newest always does.

        Args:
            snapshots: the intact snapshots of a run.
            tags: name of a tag -> sequence.
            sizes: id of a pack -> its bytes; if None, estimated from what the snapshots say.
        """
        return frozenset(self.explain(snapshots, tags=tags, sizes=sizes))

    def explain(
        self,
        snapshots: Sequence[Snapshot],
        *,
        tags: Mapping[str, int] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> dict[int, str]:
        """The same with the reasons, oldest first."""
        ordered = tuple(sorted(snapshots, key=lambda one: one.sequence))
        if not ordered:
            return {}
        shelf = Shelf(ordered, tags or {}, estimated_sizes(ordered) if sizes is None else sizes)
        found = _with_newest(self.reasons(shelf), shelf)
        there = {one.sequence for one in ordered}
        texts = {sequence: dict.fromkeys(reason.text for reason in why) for sequence, why in found.items()}
        return {sequence: ", ".join(texts[sequence]) for sequence in sorted(texts.keys() & there)}


def _with_newest(found: Reasons, shelf: Shelf) -> Reasons:
    newest = shelf.snapshots[-1].sequence
    return found | {newest: [*found.get(newest, []), Reason("the newest", ALWAYS)]}


def estimated_sizes(snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """The bytes of each pack, if each snapshot wrote its new tensors into the packs that no earlier one needs."""
    sizes: dict[str, int] = {}
    for snapshot in snapshots:
        fresh = [ident for ident in snapshot.packs if ident not in sizes]
        sizes.update(dict.fromkeys(fresh, snapshot.new_bytes // max(len(fresh), 1)))
    return sizes


@dataclass(frozen=True)
class KeepLast(Policy):
    """Keep the newest snapshots.

    Attributes:
        count: how many.
    """

    count: int

    def __post_init__(self) -> None:
        _positive("keep_last", self.count)

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        return {one.sequence: [Reason(f"last {self.count}")] for one in shelf.snapshots[-self.count :]}

    def __str__(self) -> str:
        return f"keep_last({self.count})"


@dataclass(frozen=True)
class KeepEvery(Policy):
    """Keep the snapshots whose step is a multiple of a number, step 0 among them.

    Attributes:
        steps: the number.
    """

    steps: int

    def __post_init__(self) -> None:
        _positive("keep_every", self.steps)

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        why = f"every {self.steps} steps"
        return {one.sequence: [Reason(why)] for one in shelf.snapshots if one.step % self.steps == 0}

    def __str__(self) -> str:
        return f"keep_every({self.steps})"


@dataclass(frozen=True)
class KeepBest(Policy):
    """Keep the snapshots with the best values of a metric; of equal ones the earlier. NaN and infinity are never best.

    Attributes:
        count: how many.
        metric: the name that was given to `run.log`.
        mode: `min` or `max`; if None, as the metric's name says: `min` for losses and errors, `max` for accuracies.
    """

    count: int
    metric: str
    mode: str | None = None

    def __post_init__(self) -> None:
        _positive("keep_best", self.count)
        object.__setattr__(self, "mode", checked_mode(self.metric, self.mode))

    @property
    def metrics(self) -> frozenset[str]:
        """See Policy."""
        return frozenset({self.metric})

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        best = ranked(shelf.snapshots, self.metric, str(self.mode))[: self.count]
        return {
            one.sequence: [Reason(f"best {self.count} by {self.metric}", 2 - rank / self.count)]
            for rank, one in enumerate(best)
        }

    def __str__(self) -> str:
        return f"keep_best({self.count}, {self.metric!r}, {self.mode!r})"


@dataclass(frozen=True)
class KeepTagged(Policy):
    """Keep the snapshots that `run.tag` gave a name."""

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        found: Reasons = {}
        for name, sequence in shelf.tags.items():
            found.setdefault(sequence, []).append(Reason(f"tag {name}", ALWAYS))
        return found

    def __str__(self) -> str:
        return "keep_tagged()"


@dataclass(frozen=True)
class Needed(Policy):
    """Keep one snapshot, because something is going to need it.

    Attributes:
        sequence: its number.
        reason: what it is needed for.
    """

    sequence: int
    reason: str

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        return {self.sequence: [Reason(self.reason, ALWAYS)]}

    def __str__(self) -> str:
        return f"needed({self.sequence})"


@dataclass(frozen=True)
class Either(Policy):
    """What one policy or another keeps."""

    first: Policy
    second: Policy

    @property
    def metrics(self) -> frozenset[str]:
        """See Policy."""
        return self.first.metrics | self.second.metrics

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        found = {sequence: list(why) for sequence, why in self.first.reasons(shelf).items()}
        for sequence, why in self.second.reasons(shelf).items():
            found.setdefault(sequence, []).extend(why)
        return found

    def __str__(self) -> str:
        return f"{self.first} | {self.second}"


@dataclass(frozen=True)
class Limited(Policy):
    """What a policy keeps, as far as its packs fit into a number of bytes."""

    policy: Policy
    nbytes: int

    @property
    def metrics(self) -> frozenset[str]:
        """See Policy."""
        return self.policy.metrics

    @property
    def limit(self) -> int | None:
        """See Policy."""
        return self.nbytes

    def reasons(self, shelf: Shelf) -> Reasons:
        """See Policy."""
        found = _with_newest(self.policy.reasons(shelf), shelf)
        packs = {one.sequence: one.packs for one in shelf.snapshots if one.sequence in found}
        needed: dict[str, int] = {}
        for ident in (ident for idents in packs.values() for ident in idents):
            needed[ident] = needed.get(ident, 0) + 1
        total = sum(shelf.sizes.get(ident, 0) for ident in needed)
        weights = {sequence: max(reason.weight for reason in found[sequence]) for sequence in packs}
        for sequence in sorted(packs, key=lambda sequence: (weights[sequence], sequence)):
            if total <= self.nbytes or weights[sequence] == ALWAYS:
                break
            del found[sequence]
            for ident in packs[sequence]:
                needed[ident] -= 1
                total -= 0 if needed[ident] else shelf.sizes.get(ident, 0)
        return found

    def __str__(self) -> str:
        return f"({self.policy}).at_most({self.nbytes})"


def _positive(what: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{what} got {number!r}; it needs an integer from 1")
