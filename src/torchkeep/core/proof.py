"""Whether a resumed run is the same run, as far as it was tried."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table


@dataclass(frozen=True)
class Divergence:
    """The first thing in which a killed and resumed run differs from one that was let alone.

    Attributes:
        where: the moment, e.g. `batch 3 of epoch 1`, `the snapshot of step 4`.
        what: what differs there.
        cause: what it probably comes from.
        hint: what to do.
    """

    where: str
    what: str
    cause: str
    hint: str = ""


@dataclass(frozen=True)
class ProofReport:
    """What became of a loop that was killed and resumed.

    Attributes:
        kills: the moments before which it was killed.
        snapshots: how many snapshots were compared, tensor by tensor.
        records: how many records of the history were compared.
        batches: how many batches were compared.
        divergence: the first difference; None if there is none.
        ignored: metrics that were left out of the comparison, because their names say that they are times.
    """

    kills: tuple[str, ...] = ()
    snapshots: int = 0
    records: int = 0
    batches: int = 0
    divergence: Divergence | None = None
    ignored: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the resumed run is the same, bit for bit."""
        return self.divergence is None

    def table(self) -> Table:
        """The verdict for people."""
        found = self.divergence
        facts = [
            ("killed before", ", ".join(self.kills)),
            ("compared", f"{self.snapshots} snapshots, {self.records} records, {self.batches} batches"),
            ("left out", ", ".join(self.ignored)),
        ]
        if found is None:
            return Table("the resumed run is the same run, bit for bit", tuple(facts))
        facts += [("first", found.where), ("differs", found.what), ("probably", found.cause), ("try", found.hint)]
        return Table("the resumed run is another run", tuple(facts))

    def __str__(self) -> str:
        return str(self.table())
