"""A committed state of a run, as far as one wants to know it without restoring it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from . import tagged
from .manifest import Body
from .metrics import finite
from .table import Table, human_bytes
from .tensors import TensorSpec, torch_dtype


@dataclass(frozen=True)
class Snapshot:
    """One committed state of a run.

    Attributes:
        sequence: its number in the run, from 1.
        step: the caller's number.
        parent: the sequence it was continued from; 0 for none.
        created: seconds since 1970.
        metrics: the last value of each metric that was logged before it.
        tensors, nbytes: how many tensors it has and their bytes, shared ones counted once.
        new_bytes: bytes of tensors that no earlier snapshot of the run had.
        packs: ids of the packs it needs.
        path: the folder of its run.
    """

    sequence: int
    step: int
    parent: int
    created: float
    metrics: Mapping[str, Any]
    tensors: int
    nbytes: int
    new_bytes: int
    packs: tuple[str, ...]
    path: str = ""

    def __str__(self) -> str:
        metrics = ", ".join(f"{name} {_number(value)}" for name, value in self.metrics.items())
        return (
            f"snapshot {self.sequence}: step {self.step}, {human_bytes(self.nbytes)}{', ' if metrics else ''}{metrics}"
        )


def snapshot_of(body: Body, seen: set[str]) -> Snapshot:
    """A snapshot from its manifest; `seen` has the digests of earlier ones and grows."""
    sizes = {entry.digest: spec_of_entry(entry.dtype, entry.shape).nbytes for entry in body.entries}
    new = sum(size for digest, size in sizes.items() if digest not in seen)
    seen.update(sizes)
    metrics = tagged.decode(body.metrics)
    return Snapshot(
        body.sequence, body.step, body.parent, body.created, metrics, len(body.entries), sum(sizes.values()), new,
        tuple(body.packs),
    )  # fmt: skip


def spec_of_entry(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """dtype and shape of a manifest's entry."""
    return TensorSpec(torch_dtype(dtype), tuple(shape))


def value_of(snapshot: Snapshot, metric: str) -> float | None:
    """The value of a metric that can be compared: None if it was not logged, is no number, NaN or infinite."""
    return finite(snapshot.metrics.get(metric))


def best_of(snapshots: Iterable[Snapshot], metric: str, mode: str) -> Snapshot | None:
    """The snapshot with the lowest (`min`) or highest (`max`) value of a metric; NaN never wins, the earliest does."""
    return next(iter(ranked(snapshots, metric, mode)), None)


def ranked(snapshots: Iterable[Snapshot], metric: str, mode: str) -> list[Snapshot]:
    """The snapshots that have a finite value of a metric, the best first; of equal ones the earlier."""
    values = [(value, one) for one in snapshots if (value := value_of(one, metric)) is not None]
    return [one for _, one in sorted(values, key=lambda pair: pair[0] if mode == "min" else -pair[0])]


@dataclass(frozen=True)
class RunSummary:
    """The snapshots of a run as one table, with what is damaged among them, and the names that were given to some."""

    path: str
    snapshots: tuple[Snapshot, ...]
    best: Snapshot | None
    records: int
    damaged: tuple[str, ...] = ()
    tags: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> Table:
        """One row a snapshot."""
        logged = dict.fromkeys(key for snapshot in self.snapshots for key in snapshot.metrics)
        metrics = [key for key in logged if key not in {"epoch", "step"}][:4]
        rows = tuple(
            (
                " ".join([str(one.sequence), ", ".join(self._names(one.sequence))]).rstrip(),
                str(one.step),
                str(one.parent or ""),
                datetime.fromtimestamp(one.created).strftime("%m-%d %H:%M:%S"),
                human_bytes(one.new_bytes),
                human_bytes(one.nbytes),
                *(_number(one.metrics.get(metric)) for metric in metrics),
            )
            for one in self.snapshots
        )
        return Table(
            title=f"run {self.path}",
            facts=(("snapshots", str(len(self.snapshots))), ("history", f"{self.records} records")),
            columns=("snapshot", "step", "parent", "saved at", "new", "all", *metrics),
            rows=rows,
            notes=tuple(f"damaged: {what}" for what in self.damaged),
        )

    def _names(self, sequence: int) -> list[str]:
        best = ["best"] if self.best is not None and sequence == self.best.sequence else []
        return best + sorted(name for name, pointed in self.tags.items() if pointed == sequence)

    def __str__(self) -> str:
        return str(self.table())


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
