"""What differs between two sets of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .names import fold
from .table import Table, shorten

EQUAL, CLOSE = "equal", "close"
KINDS = ("removed", "added", "reshaped", "recast", "unread", "moved", CLOSE, EQUAL)
"""What can become of a tensor, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one tensor.

    Attributes:
        name: in both.
        what: `equal` bit for bit; `close`: moved, by no more than the tolerance; `moved`; `recast`: another dtype;
            `reshaped`; `added`: only in the second; `removed`: only in the first; `unread`: one side is on the meta
            device and has no values.
        before, after: dtype and shape on each side, empty where it is not there.
        by_digest: it was recognised by the digests that both carry, and not read.
        relative: norm of the difference over the norm before; None where that says nothing.
        largest: the largest difference of two elements; None where nothing was compared.
        cosine: of the angle between before and after; None where one of them is 0.
        changed: elements that differ; None where nothing was compared.
        lost: of those, the ones that are NaN or infinite on one side or both: no figure above counts them.
        nonfinite: how many elements are NaN or infinite, before and after; known of those that were compared.
        why: what else is to be said of it.
    """

    name: str
    what: str
    before: str = ""
    after: str = ""
    by_digest: bool = False
    relative: float | None = None
    largest: float | None = None
    cosine: float | None = None
    changed: int | None = None
    lost: int = 0
    nonfinite: tuple[int, int] = (0, 0)
    why: str = ""


@dataclass(frozen=True)
class DiffReport:
    """What differs between two sets of weights: `report.equal`, `report.moved`, `print(report)`.

    Attributes:
        before, after: what was compared.
        changes: one for each name, or after `only_changed` one for each that differs.
        counts: how many there are of each kind, all names counted.
        by_digest: how many of the equal ones were recognised by digests and not read.
        tolerance: relative norm up to which a tensor that moved counts as equal.
        notes: what was not compared, and what else the caller should know.
    """

    before: str
    after: str
    changes: tuple[Change, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    by_digest: int = 0
    tolerance: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, before: str, after: str, changes: Iterable[Change], tolerance: float, notes: Iterable[str] = ()
    ) -> DiffReport:
        """A report of all changes."""
        listed = tuple(changes)
        found = Counter(change.what for change in listed)
        counts = {kind: found[kind] for kind in KINDS if found[kind]}
        by_digest = sum(change.by_digest for change in listed)
        return cls(before, after, listed, counts, by_digest, tolerance, tuple(notes))

    @property
    def equal(self) -> bool:
        """Whether nothing differs, but for what the tolerance allows."""
        return not self.counts.keys() - {EQUAL, CLOSE}

    @property
    def added(self) -> tuple[str, ...]:
        """Names that only the second has."""
        return self._named("added")

    @property
    def removed(self) -> tuple[str, ...]:
        """Names that only the first has."""
        return self._named("removed")

    @property
    def reshaped(self) -> tuple[str, ...]:
        """Names whose tensors have different shapes."""
        return self._named("reshaped")

    @property
    def recast(self) -> tuple[str, ...]:
        """Names whose tensors have one shape and different dtypes."""
        return self._named("recast")

    @property
    def moved(self) -> tuple[str, ...]:
        """Names whose values differ by more than the tolerance."""
        return self._named("moved")

    def _named(self, what: str) -> tuple[str, ...]:
        return tuple(change.name for change in self.changes if change.what == what)

    def only_changed(self) -> DiffReport:
        """The same without what is equal."""
        return replace(self, changes=tuple(change for change in self.changes if change.what != EQUAL))

    def table(self) -> Table:
        """Folded by layer, what differs first; of several tensors the one that moved most."""
        rows = []
        for kind in KINDS:
            changes = {change.name: change for change in self.changes if change.what == kind}
            rows += [_row(kind, name, [changes[one] for one in members]) for name, members in fold(changes)]
        verdict = "equal" if self.counts.keys() <= {EQUAL} else f"equal within {self.tolerance:g}"
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        known = f" ({self.by_digest} known by digests in both, and not read)" if self.by_digest else ""
        return Table(
            title=f"{self.before} and {self.after}: {verdict if self.equal else 'DIFFERENT'}",
            facts=(("tensors", counts + known),),
            columns=("name", "what", "count", "relative", "largest", "cosine", "why") if rows else (),
            rows=tuple(rows),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


def _row(kind: str, name: str, changes: list[Change]) -> tuple[str, ...]:
    relative = [change.relative for change in changes if change.relative is not None]
    largest = [change.largest for change in changes if change.largest is not None]
    cosine = [change.cosine for change in changes if change.cosine is not None]
    return (
        name or "(the object itself)",
        kind,
        str(len(changes)),
        f"{max(relative):.3g}" if relative else "",
        f"{max(largest):.3g}" if largest else "",
        f"{min(cosine):.6g}" if cosine else "",
        _why(kind, changes),
    )


def _why(kind: str, changes: list[Change]) -> str:
    said = list(dict.fromkeys(change.why for change in changes if change.why))
    if kind in {"reshaped", "recast"}:
        said = [shorten(dict.fromkeys(f"{change.before} to {change.after}" for change in changes), 2), *said]
    elif kind in {"added", "removed"}:
        said = [shorten(dict.fromkeys(change.after or change.before for change in changes), 2), *said]
    if lost := sum(change.lost for change in changes):
        said.append(f"{lost:,} elements are NaN or infinite and differ")
    if kind in {"moved", CLOSE} and not said:
        said.append(f"{sum(change.changed or 0 for change in changes):,} elements")
    return "; ".join(said)
