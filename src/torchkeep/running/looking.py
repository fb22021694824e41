"""Looking at a run, as methods of `Run`: its snapshots, weights and history. No lock is needed, nothing is changed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ..core.about import About, Parent, with_parents
from ..core.checkpoint import Checkpoint
from ..core.curves import Setting
from ..core.digests import digest_bytes
from ..core.facts import FileFacts
from ..core.history import History
from ..core.manifest import Body
from ..core.snapshot import RunSummary, Snapshot
from ..errors import CorruptCheckpointError, KeyNotFoundError, LoadError
from ..stores import Store
from .archive import MARKER, Archive
from .journal import Journal, read_key
from .monitor import Monitor
from .restore import extra_state_of, frozen_of, optimizers_in, origins_in, surgery_of, tracked_in
from .setting import branch, setting_from
from .tags import read_tags


class Looking:
    """The part of `Run` that only reads; other processes may write meanwhile."""

    path: Path
    _store: Store
    _archive: Archive
    _journal: Journal
    _monitor: Monitor
    _objects: dict[str, Any]
    _parent: int | None

    def _settle(self) -> None:
        """Wait for a save that is under way, and raise what became of it."""

    def _check_there(self) -> None:
        if not read_key(self._store, MARKER):
            raise LoadError(f"{self.path} is no run: it has no {MARKER}", hint="give the folder that tk.Run was given")

    def _snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(replace(one, path=str(self.path.absolute())) for one in self._archive.snapshots())

    def open(self, snapshot: int | Snapshot | None = None) -> Checkpoint:
        """The model's weights in a snapshot, every byte checked, without resuming and without the lock.

        >>> tk.load_into(model, tk.Run("runs/flowers").open(run.best))             # doctest: +SKIP

        Args:
            snapshot: a snapshot or its sequence number; the newest if None.

        Raises:
            LoadError: there is no such snapshot.
            CorruptCheckpointError: it is damaged.
        """
        self._settle()
        sequence = snapshot.sequence if isinstance(snapshot, Snapshot) else snapshot
        for known in [sequence] if sequence is not None else self._archive.newest_first():
            with contextlib.suppress(KeyNotFoundError):  # pruned by another process since it was listed
                loaded = self._archive.load(known)
                break
        else:
            raise LoadError(
                f"{self.path} has no snapshot {sequence or ''}".rstrip(), hint="`torchkeep runs` lists them"
            )
        body, lazy = loaded.body, loaded.lazy
        if "model" not in body.state:
            held = ", ".join(tracked_in(body))
            raise LoadError(
                f"snapshot {body.sequence} of {self.path} holds no model, only {held}", hint="save it as model="
            )
        weights = {name.removeprefix("model/"): tensor for name, tensor in lazy.items() if name.startswith("model/")}
        file = f"{self.path}, snapshot {body.sequence}"
        tree, frozen = extra_state_of(body, lazy), frozen_of(body)
        origins = origins_in(body)
        return Checkpoint(
            file,
            "torchkeep_run",
            weights,
            tree=tree,
            frozen=frozen,
            optimizers=optimizers_in(body, lazy),
            origins=origins,
            about=with_parents(About(), map(Parent, dict.fromkeys(one.file for one in origins.values()))),
            surgery=surgery_of(body),
            facts=_facts(body),
        )

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The intact snapshots, oldest first."""
        self._settle()
        return self._snapshots()

    @property
    def best(self) -> Snapshot | None:
        """The snapshot with the best value of the monitored metric; None if it was never logged."""
        return self._monitor.best(self.snapshots)

    @property
    def history(self) -> History:
        """What was logged, without the records of abandoned branches."""
        return self._journal.read()

    def setting(self, *, unit: str = "epoch") -> Setting:
        """What its snapshots say beside the curves: what is trained, weight decay, freeze phases, where they lie.

        Args:
            unit: what places are counted in, as the curves are: `epoch` or `step`.

        Raises:
            LoadError: there is no run in this folder.
        """
        self._settle()
        self._check_there()
        bodies = {}
        for sequence in self._archive.sequences():
            with contextlib.suppress(KeyNotFoundError, CorruptCheckpointError):
                bodies[sequence] = self._archive.body(sequence)
        newest = self._parent if self._parent in bodies else max(bodies, default=0)
        model = self._objects.get("model")
        return setting_from(branch(bodies, newest or 0), model, unit)

    def digests(self, snapshot: int | None = None) -> dict[str, str]:
        """BLAKE3 of every tensor of a snapshot by full name, of the newest intact one if None.

        Raises:
            LoadError: there is no such snapshot.
        """
        self._settle()
        for sequence in [snapshot] if snapshot is not None else self._archive.newest_first():
            with contextlib.suppress(KeyNotFoundError, CorruptCheckpointError):
                return {entry.name: entry.digest for entry in self._archive.body(sequence).entries}
        raise LoadError(
            f"{self.path} has no intact snapshot {snapshot or ''}".rstrip(), hint="`torchkeep runs` lists them"
        )

    def content(self, snapshot: int, *, without: Collection[str] = ()) -> dict[str, str]:
        """Everything in a snapshot as digests: tensors by full name, and what is no tensor by its tracked object.

        Args:
            snapshot: its sequence number.
            without: global generators to leave out: `torch`, `cuda`, `python`, `numpy`.

        Raises:
            LoadError: there is no such snapshot.
            CorruptCheckpointError: its manifest is damaged.
        """
        tensors = self.digests(snapshot)
        state = self._archive.body(snapshot).state
        if without:
            of_these = re.compile(rf"(^rng/|\.start\.global\.)({'|'.join(without)})(\.|$)")
            tensors = {name: digest for name, digest in tensors.items() if not of_these.search(name)}
            state = {name: _without(part, without) if name in {"rng", "data"} else part for name, part in state.items()}
        return tensors | {
            f"{name}/#state": digest_bytes(msgspec.json.encode(part, order="sorted")) for name, part in state.items()
        }

    def summary(self) -> RunSummary:
        """All of the above in one table.

        Raises:
            LoadError: there is no run in this folder.
        """
        self._settle()
        self._check_there()
        damaged = tuple(f"snapshot {number}: {why}" for number, why in self._archive.unreadable().items())
        damaged += self._archive.missing_packs()
        return RunSummary(str(self.path), self.snapshots, self.best, len(self.history), damaged, self.tags)

    @property
    def tags(self) -> dict[str, int]:
        """The names that were given to snapshots, each with its sequence number."""
        self._settle()
        there = set(self._archive.sequences())
        return {name: sequence for name, sequence in read_tags(self._store)[0].items() if sequence in there}


def _facts(body: Body) -> FileFacts:
    """What a manifest says of the model's tensors, as a file would say it."""
    entries = {entry.name.removeprefix("model/"): entry for entry in body.entries if entry.name.startswith("model/")}
    part = body.state["model"]
    buffers = list(part.get("buffers", ()))
    return FileFacts(
        kind="weights",
        digests={name: entry.digest for name, entry in entries.items() if entry.pack >= 0},
        tied={name: entry.tied.removeprefix("model/") for name, entry in entries.items() if entry.tied},
        buffers=buffers,
        parameters=[name for name in entries if name not in set(buffers)] if "buffers" in part else [],
    )


def _without(part: Any, generators: Collection[str]) -> Any:
    """What is saved of generators and positions, without the states of some global generators."""
    if not isinstance(part, dict):
        return part
    return {key: _without(child, generators) for key, child in part.items() if key not in generators}
