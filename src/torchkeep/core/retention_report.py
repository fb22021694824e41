"""What pruning and collecting removed, or would remove."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table, human_bytes, shorten


@dataclass(frozen=True)
class Verdict:
    """What becomes of one snapshot, and why.

    Attributes:
        sequence, step: its numbers; the step of a damaged one may be unknown.
        why: the reason.
    """

    sequence: int
    step: int | None
    why: str


@dataclass(frozen=True)
class PruneReport:
    """Which snapshots a policy dropped.

    Attributes:
        path: the run.
        policy: the policy as text.
        removed: the snapshots that are gone.
        kept: those that stay.
        tags: names of tags that pointed to removed snapshots and went with them.
        packs: ids of the packs that no snapshot needs any more; `gc` removes them.
        nbytes: bytes of these packs.
        dry_run: nothing was changed; the rest says what would have been.
        notes: what else the caller should know.
    """

    path: str
    policy: str
    removed: tuple[Verdict, ...]
    kept: tuple[Verdict, ...]
    tags: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    nbytes: int = 0
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """One row a snapshot."""
        gone = "would go" if self.dry_run else "removed"
        all_of_them = [(one, gone) for one in self.removed] + [(one, "kept") for one in self.kept]
        rows = tuple(
            (str(one.sequence), "" if one.step is None else str(one.step), what, one.why)
            for one, what in sorted(all_of_them, key=lambda pair: pair[0].sequence)
        )
        return Table(
            title=f"{'plan for pruning' if self.dry_run else 'pruned'} {self.path}",
            facts=(
                ("policy", self.policy),
                ("snapshots", f"{len(self.kept)} kept, {len(self.removed)} {gone}"),
                ("tags", f"{', '.join(self.tags)} {gone}" if self.tags else ""),
                ("for gc", f"{human_bytes(self.nbytes)} in {len(self.packs)} packs" if self.packs else ""),
            ),
            columns=("snapshot", "step", "what", "why") if rows else (),
            rows=rows,
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True)
class GarbageReport:
    """Which files of a run no snapshot needs.

    Attributes:
        path: the run.
        removed: keys of the files that are gone: packs, and what a crash left unfinished.
        nbytes: their bytes.
        waiting: keys of the files that nothing needs and that are younger than the grace period.
        waiting_nbytes: their bytes.
        kept: how many packs the snapshots need.
        grace: the grace period in seconds.
        dry_run: nothing was changed; the rest says what would have been.
    """

    path: str
    removed: tuple[str, ...]
    nbytes: int
    waiting: tuple[str, ...]
    waiting_nbytes: int
    kept: int
    grace: float
    dry_run: bool = False

    def table(self) -> Table:
        """Counts and bytes."""
        waiting = f"{_files(len(self.waiting))}, {human_bytes(self.waiting_nbytes)}, younger than {self.grace:g} s"
        return Table(
            title=f"{'what gc would remove from' if self.dry_run else 'collected'} {self.path}",
            facts=(
                ("would go" if self.dry_run else "removed", f"{_files(len(self.removed))}, {human_bytes(self.nbytes)}"),
                ("kept", f"{self.kept} packs that snapshots need"),
                ("waiting", waiting if self.waiting else ""),
            ),
            notes=tuple(
                f"{what}: {shorten(keys, 4)}"
                for what, keys in (("no snapshot needs", self.removed), ("waiting", self.waiting))
                if keys
            ),
        )

    def __str__(self) -> str:
        return str(self.table())


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
