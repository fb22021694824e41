"""What was saved of a broken file, and what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .names import fold
from .table import Table, human_bytes


@dataclass(frozen=True)
class SalvageReport:
    """The tensors of a broken file.

    Attributes:
        source: the file.
        target: where the intact tensors were written; empty if they were not.
        intact: names of the tensors that are as they were, by a checksum or digest.
        unverified: names of those that are whole and have no checksum to compare with.
        lost: name -> why it is gone: cut off, or damaged.
        nbytes: bytes of the tensors that were kept.
        lost_nbytes: bytes of those that are gone.
        notes: what else is to be said.
    """

    source: str
    target: str
    intact: tuple[str, ...]
    unverified: tuple[str, ...]
    lost: Mapping[str, str]
    nbytes: int
    lost_nbytes: int
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost

    def table(self) -> Table:
        """Counts, and what is gone."""
        kept = len(self.intact) + len(self.unverified)
        total = kept + len(self.lost)
        rows = [(name, str(len(members)), self.lost[members[0]]) for name, members in fold(self.lost)]
        return Table(
            title=f"{self.source}: {'nothing is lost' if self.ok else f'lost {len(self.lost)} of {total} tensors'}",
            facts=(
                ("kept", f"{kept} of {total} tensors, {human_bytes(self.nbytes)}"),
                ("unverified", f"{len(self.unverified)} of them have no checksum" if self.unverified else ""),
                ("lost", human_bytes(self.lost_nbytes) if self.lost else ""),
                ("written to", self.target),
            ),
            columns=("lost", "count", "why") if rows else (),
            rows=tuple(rows),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())
