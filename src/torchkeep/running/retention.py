"""Letting go of snapshots: prune deletes manifests by policy, collect deletes the packs that no manifest names.

Both work without the writer's lock, while another process saves. Each step leaves whole snapshots behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..core.manifest import seal, unseal
from ..core.retention import Policy
from ..core.retention_report import GarbageReport, PruneReport, Verdict
from ..core.snapshot import Snapshot
from ..core.source import read_all
from ..core.spans import Span, gaps, joined, span_text, spans_of, within
from ..core.table import human_bytes, shorten
from ..errors import CorruptCheckpointError, KeyNotFoundError, NoSpaceError, SelectorError
from ..stores import Store
from .archive import Archive
from .packs import CONDEMNED
from .stored import PACKS, SNAPSHOTS, manifest_key, pack_key
from .tags import TAGS, read_tags

PRUNED = "pruned.json"
GRACE = 3600.0


def pruned_spans(store: Store) -> list[Span]:
    """The numbers of snapshots that were removed on purpose.

    Raises:
        CorruptCheckpointError: the list is damaged.
    """
    try:
        data = read_all(store.source(PRUNED))
    except KeyNotFoundError:
        return []
    try:
        return joined(msgspec.json.decode(unseal(data, file=PRUNED), type=dict[str, list[Span]])["sequences"])
    except (msgspec.DecodeError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"cannot be read: {error}", file=PRUNED) from error


def flush(store: Store, prefix: str) -> None:
    """Make durable what was deleted, where the store can."""
    act = getattr(store, "flush", None)
    if act is not None:
        act(prefix)


# -- prune ----------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """What pruning will do."""

    keep: dict[int, str] = field(default_factory=dict)
    drop: dict[int, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    lost: list[Span] = field(default_factory=list)
    pruned: list[Span] = field(default_factory=list)


def prune(
    archive: Archive,
    store: Store,
    policy: Policy,
    *,
    path: str,
    best: Snapshot | None = None,
    dry_run: bool = False,
    damaged: bool = False,
    strict: bool = True,
) -> PruneReport:
    """Delete the manifests of the snapshots that a policy does not keep.

    The numbers are written down first, so that a gap is known to be meant. Packs stay until they are collected.

    Args:
        archive, store: the run.
        policy: what stays; the newest intact snapshot and the highest number stay whatever it says.
        path: the run, for the report.
        best: the snapshot that the run calls its best, for a note if it goes.
        dry_run: only say what would go.
        damaged: drop damaged snapshots and tags too, and take what is missing as dropped.
        strict: refuse a metric that no snapshot has.

    Raises:
        SelectorError: the policy looks at a metric that no snapshot has.
        CorruptCheckpointError: a tag or the list of what was pruned is damaged.
    """
    archive.snapshots()  # read before the guard, which keeps saves waiting
    with contextlib.nullcontext() if dry_run else archive.guarded(exclusive=True):
        snapshots = {one.sequence: one for one in archive.snapshots()}
        _check_metrics(policy, snapshots.values(), strict)
        plan = _plan(archive, store, policy, snapshots, damaged)
        gone = {ident for sequence in plan.drop if sequence in snapshots for ident in snapshots[sequence].packs}
        needed = {ident for sequence in plan.keep if sequence in snapshots for ident in snapshots[sequence].packs}
        packs = tuple(sorted(gone - needed))
        nbytes = sum(archive.size(ident) for ident in packs)
        if not dry_run:
            _carry_out(store, plan)
            archive.snapshots()  # forgets those that are gone
    steps: dict[int, int | None] = {sequence: one.step for sequence, one in snapshots.items()}
    return PruneReport(
        path=path,
        policy=str(policy),
        removed=tuple(Verdict(sequence, steps.get(sequence), why) for sequence, why in sorted(plan.drop.items())),
        kept=tuple(Verdict(sequence, steps.get(sequence), why) for sequence, why in sorted(plan.keep.items())),
        tags=tuple(sorted(plan.tags)),
        packs=packs,
        nbytes=nbytes,
        dry_run=dry_run,
        notes=tuple(_notes(archive, policy, plan, snapshots, best)),
    )


def _check_metrics(policy: Policy, snapshots: Iterable[Snapshot], strict: bool) -> None:
    logged = {name for snapshot in snapshots for name in snapshot.metrics}
    unknown = policy.metrics - logged
    if strict and unknown:
        raise SelectorError(
            f"no snapshot has the metric {', '.join(map(repr, sorted(unknown)))}",
            hint=f"what was logged before snapshots: {shorten(sorted(logged)) or 'nothing'}",
        )


def _plan(archive: Archive, store: Store, policy: Policy, snapshots: dict[int, Snapshot], damaged: bool) -> _Plan:
    broken = dict(archive.unreadable())
    broken |= {number: f"{len(idents)} of its packs are missing" for number, idents in archive.missing().items()}
    for sequence in sorted(snapshots.keys() - broken.keys(), reverse=True):
        if archive.opens(snapshots[sequence]):
            break  # the newest that is intact; whether the bytes of all of them are, only verify tells
        broken[sequence] = "a pack of it cannot be opened"
    intact = [one for sequence, one in snapshots.items() if sequence not in broken]
    tags, bad_tags = read_tags(store)
    if bad_tags and not damaged:
        raise CorruptCheckpointError(
            "; ".join(bad_tags.values()),
            hint="what it names could be lost: tag again, untag, or prune with damaged=True (--damaged)",
        )
    sizes = {ident: archive.size(ident) for one in intact for ident in one.packs}
    plan = _Plan(keep=policy.explain(intact, tags=tags, sizes=sizes))
    plan.drop = {one.sequence: "no rule keeps it" for one in intact if one.sequence not in plan.keep}
    highest = max(snapshots.keys() | broken.keys(), default=0)
    for sequence, why in broken.items():
        if damaged and sequence != highest:
            plan.drop[sequence] = f"damaged: {why}"
        else:
            plan.keep[sequence] = f"{'the highest number' if damaged else 'left alone'}; damaged: {why}"
    try:
        plan.pruned = pruned_spans(store)
    except CorruptCheckpointError as error:
        if not damaged:
            error.hint = "prune with damaged=True (--damaged) to write it anew"
            raise
    if damaged:
        plan.lost = gaps([*spans_of(snapshots.keys() | broken.keys()), *plan.pruned], highest)
    gone = [*plan.pruned, *spans_of(plan.drop), *plan.lost]
    dangling = (name for name, sequence in tags.items() if sequence not in plan.keep and within(gone, sequence))
    plan.tags = [*bad_tags, *dangling]
    return plan


def _carry_out(store: Store, plan: _Plan) -> None:
    """Each step leaves a run whose snapshots are whole; what comes later is done by the next prune after a crash."""
    pruned = joined([*plan.pruned, *plan.lost, *spans_of(plan.drop)])
    written = pruned == plan.pruned
    with contextlib.suppress(NoSpaceError):  # then what is removed first makes the room
        written = written or _write_down(store, pruned)
    for sequence in sorted(plan.drop):
        store.delete(manifest_key(sequence))
    if plan.drop:
        flush(store, SNAPSHOTS)
    if not written:
        _write_down(store, pruned)
    for name in plan.tags:
        store.delete(f"{TAGS}{name}.json")
    if plan.tags:
        flush(store, TAGS)


def _write_down(store: Store, pruned: list[Span]) -> bool:
    return store.put(PRUNED, [seal(msgspec.json.encode({"sequences": pruned}))], replace=True)


def _notes(
    archive: Archive, policy: Policy, plan: _Plan, snapshots: dict[int, Snapshot], best: Snapshot | None
) -> list[str]:
    notes = []
    if best is not None and best.sequence in plan.drop:
        notes.append(f"snapshot {best.sequence} is the best of the run, and no rule keeps it: keep_best does")
    if plan.lost:
        notes.append(f"missing, and taken as pruned: {shorten(map(span_text, plan.lost))}")
    needed = {ident for sequence in plan.keep if sequence in snapshots for ident in snapshots[sequence].packs}
    taken = sum(archive.size(ident) for ident in needed)
    if policy.limit is not None and taken > policy.limit:
        notes.append(f"what stays takes {human_bytes(taken)}, more than the limit of {human_bytes(policy.limit)}")
    unreadable = sorted(archive.unreadable().keys() & plan.keep.keys())
    if unreadable:
        notes.append(f"gc frees nothing while the manifest is damaged of: {shorten(map(str, unreadable))}")
    return notes


# -- collect --------------------------------------------------------------------------------------------------


def collect(
    archive: Archive,
    store: Store,
    *,
    path: str,
    grace: float = GRACE,
    dry_run: bool = False,
    at_once: Iterable[str] = (),
) -> GarbageReport:
    """Delete the packs that no manifest names, and what a crash left unfinished.

    Args:
        archive, store: the run.
        path: the run, for the report.
        grace: leave what is younger, in seconds. Where the store has no guard, the seconds count from the collection
            that first found a pack unneeded.
        dry_run: only say what would go.
        at_once: ids of packs that need no grace period, where the store has a guard.

    Raises:
        CorruptCheckpointError: a manifest is damaged, so that nobody knows what it names.
    """
    now = time.time()
    no_grace = frozenset(at_once if hasattr(store, "guard") else ())
    archive.snapshots()  # read before the guard, which keeps saves waiting
    with contextlib.nullcontext() if dry_run else archive.guarded(exclusive=True):
        _check_manifests(archive)
        named = archive.named()
        there = archive.packs()
        spare = {pack_key(ident): ident for ident in sorted(there - named)}
        ages = _Ages(store, archive.condemned(), now)
        others: list[str] = getattr(store, "leftovers", list)()
        old = [key for key, ident in spare.items() if ages.of(key, ident) >= (0 if ident in no_grace else grace)]
        old += [key for key in others if ages.of(key, "") >= grace]
        sizes = {key: _size(store, key) for key in (*spare, *others)}
        if not dry_run:
            ages.condemn(spare.values())
            flush(store, SNAPSHOTS)  # a manifest must not come back after a loss of power when its packs do not
            for key in old:
                store.delete(key)
            flush(store, PACKS)
    waiting = [key for key in (*spare, *others) if key not in set(old)]
    return GarbageReport(
        path=path,
        removed=tuple(sorted(old)),
        nbytes=sum(sizes[key] for key in old),
        waiting=tuple(sorted(waiting)),
        waiting_nbytes=sum(sizes[key] for key in waiting),
        kept=len(there & named),
        grace=grace,
        dry_run=dry_run,
    )


def _check_manifests(archive: Archive) -> None:
    unreadable = archive.unreadable()
    if unreadable:
        raise CorruptCheckpointError(
            f"nothing was collected: a damaged manifest may name any pack: {'; '.join(unreadable.values())}",
            hint="bring it back from a copy, or drop the snapshot with run.prune(policy, damaged=True) "
            "(torchkeep prune --damaged); the highest number goes only after another save",
        )


def _size(store: Store, key: str) -> int:
    try:
        return store.source(key).size
    except KeyNotFoundError:
        return 0


class _Ages:
    """How long packs have been unneeded, as far as the store can tell."""

    def __init__(self, store: Store, condemned: dict[str, float], now: float) -> None:
        self.guarded = hasattr(store, "guard")
        self._store, self._condemned, self._now = store, condemned, now

    def of(self, key: str, ident: str) -> float:
        """Seconds: since the file was written where a guard keeps saves out, else since it was condemned."""
        if not self.guarded:
            return self._now - self._condemned.get(ident, self._now)
        age: Any = getattr(self._store, "age", None)
        try:
            return float("inf") if age is None else float(age(key))
        except KeyNotFoundError:
            return 0.0

    def condemn(self, idents: Iterable[str]) -> None:
        """Without a guard: write down what is unneeded. No save relies on it from now on; a later call removes it."""
        if self.guarded:
            return
        found = {ident: self._condemned.get(ident, self._now) for ident in idents}
        if found != self._condemned:
            self._store.put(CONDEMNED, [seal(msgspec.json.encode(found))], replace=True)
