"""Snapshots in a store: packs and manifests, written so that one link makes a snapshot true. Knows no live objects."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from blake3 import blake3

from ..core.digests import digest_tensors
from ..core.facts import KEY, FileFacts
from ..core.limits import Limits
from ..core.manifest import FORMAT_VERSION, Body, HistoryMark, decode_manifest, encode_manifest, pack_id, unseal
from ..core.pieces import hot_blocks
from ..core.snapshot import Snapshot, snapshot_of, spec_of_entry
from ..core.source import Buffer, read_all
from ..core.tensors import LazyTensor
from ..core.threads import THREADS
from ..core.version import PRODUCER
from ..errors import CommitUnknownError, CorruptCheckpointError, KeyNotFoundError, OpenError, SaveError
from ..formats.layout import lay_out, without_code
from ..formats.safetensors import Safetensors
from ..stores import Store
from .packing import Content, Given, PackPlan, Place, content_of, entries_of, plan_pack

MARKER = "torchkeep.json"
MARKER_BYTES = b'{"format":"torchkeep-run","version":1,"features":[]}\n'
SNAPSHOTS, PACKS = "snapshots/", "packs/"
CONDEMNED = "condemned.json"
AGAIN = "again"  # in the header of a pack: how often one with these tensors was condemned and written anew


@dataclass(frozen=True)
class Committed:
    """What a commit wrote."""

    body: Body
    bytes_written: int
    tensors_written: int
    engine: str


@dataclass(frozen=True)
class Loaded:
    """A snapshot that was read: its manifest, and its tensors by full name, not read and read."""

    body: Body
    lazy: Mapping[str, LazyTensor]
    tensors: dict[str, torch.Tensor]


class Archive:
    """The packs and manifests of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Content, Place] = {}
        self._damaged_packs: set[str] = set()
        self._verified: dict[str, set[str]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._unreadable: dict[int, str] = {}
        self._counted: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._opened: set[str] = set()

    def guarded(self, *, exclusive: bool) -> AbstractContextManager[None]:
        """Keep saving (shared) and removing (exclusive) apart, where the store can; else the grace period has to."""
        guard = getattr(self._store, "guard", None)
        return nullcontext() if guard is None else guard(exclusive)

    def mark(self) -> None:
        """Make the store a run, or check that it is one this version can write."""
        try:
            source = self._store.source(MARKER)
        except KeyNotFoundError:
            self._store.put(MARKER, [MARKER_BYTES])
            return
        check_marker(read_all(source))

    def newest_first(self) -> Iterator[int]:
        """Numbers of all snapshots. At the end it looks again for what was committed meanwhile."""
        seen: set[int] = set()
        while fresh := [sequence for sequence in reversed(self.sequences()) if sequence not in seen]:
            seen.update(fresh)
            yield from fresh

    def sequences(self) -> list[int]:
        """Numbers of all snapshots, damaged ones included, in ascending order."""
        names = (key.removeprefix(SNAPSHOTS).removesuffix(".json") for key in self._store.keys(SNAPSHOTS))
        return sorted(int(name) for name in names if name.isdecimal())

    def body(self, sequence: int) -> Body:
        """The manifest of a snapshot, its digest checked.

        Raises:
            KeyNotFoundError: it is not there, or not any more.
            CorruptCheckpointError: it is damaged.
        """
        source = self._store.source(manifest_key(sequence))
        body = decode_manifest(read_all(source), file=source.name)
        if body.sequence != sequence:
            raise CorruptCheckpointError(f"says it is snapshot {body.sequence}", file=source.name)
        return body

    def packs(self) -> set[str]:
        """Ids of the packs that are there."""
        return {key.removeprefix(PACKS).removesuffix(".safetensors") for key in self._store.keys(PACKS)}

    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots whose manifests are intact, oldest first; each is read once, a damaged one again."""
        there = self.sequences()
        self._forget((self._snapshots.keys() | self._unreadable.keys()) - set(there))
        for sequence in there:
            if sequence not in self._snapshots:
                self._unreadable.pop(sequence, None)
                try:
                    self._register(self.body(sequence))
                except KeyNotFoundError:  # pruned since it was listed
                    continue
                except CorruptCheckpointError as error:
                    self._unreadable[sequence] = error.brief
        return tuple(self._snapshots[sequence] for sequence in sorted(self._snapshots))

    def unreadable(self) -> dict[int, str]:
        """For each damaged manifest the reason."""
        self.snapshots()
        return dict(self._unreadable)

    def named(self) -> set[str]:
        """Ids of the packs that the readable manifests name."""
        return {ident for snapshot in self._snapshots.values() for ident in snapshot.packs}

    def _register(self, body: Body) -> None:
        """Remember a snapshot, and where its tensors lie for later ones that have the same; the newest place counts."""
        self._snapshots[body.sequence] = snapshot_of(body, self._counted)
        for entry in body.entries:
            if entry.pack >= 0:
                place = Place(body.packs[entry.pack], entry.key or entry.name)
                self._known[entry.digest, entry.dtype, tuple(entry.shape)] = place

    def _forget(self, gone: set[int]) -> None:
        """Snapshots were pruned: what was known of packs that no other one names is known no longer."""
        for sequence in gone:
            self._snapshots.pop(sequence, None)
            self._unreadable.pop(sequence, None)
        if gone:
            named = self.named()
            self._known = {content: place for content, place in self._known.items() if place.pack in named}
            self._verified = {ident: keys for ident, keys in self._verified.items() if ident in named}
            self._sizes = {ident: size for ident, size in self._sizes.items() if ident in named}
            self._damaged_packs &= named
            self._opened &= named
            self._counted = {digest for digest, _, _ in self._known}

    def commit(
        self,
        given: Given,
        state: dict[str, Any],
        *,
        step: int,
        parent: int,
        history: HistoryMark,
        metrics: dict[str, Any],
        threads: int = THREADS,
    ) -> Committed:
        """Write what is new, then the manifest. The link of the manifest is the commit point."""
        digests = _digests(given, threads)
        with self.guarded(exclusive=False):  # what is found in the run stays until the manifest names it
            contents = {name: content_of(digest, given.members[name].spec) for name, digest in digests.items()}
            plan = plan_pack(contents, digests, self._usable(contents))
            pack, written, fresh = self._write_pack(given, plan) if plan.new else ("", 0, False)
            engine = getattr(self._store, "engine", "") if plan.new else ""
            engine = engine if isinstance(engine, str) else ""  # a store of others may call something else so
            entries, packs = entries_of(given.members, plan, pack)
            body = Body(
                version=FORMAT_VERSION,
                sequence=0,
                parent=parent,
                step=step,
                created=time.time(),
                packs=packs,
                entries=entries,
                state=state,
                history=history,
                metrics=metrics,
                producer=PRODUCER,
            )
            try:
                body, manifest = self._put_manifest(body)
            except CommitUnknownError:
                raise
            except SaveError:
                if fresh:  # nothing names it, and the disk may be full
                    with contextlib.suppress(SaveError):
                        self._store.delete(pack_key(pack))
                raise
        self._register(body)
        self._opened.update(body.packs)
        return Committed(body, written + manifest, len(plan.new), engine)

    def _put_manifest(self, body: Body) -> tuple[Body, int]:
        """Commit under the next free number; a damaged manifest keeps its own."""
        while True:
            body = msgspec.structs.replace(body, sequence=max(self.sequences(), default=0) + 1)
            data = encode_manifest(body)
            if self._store.put(manifest_key(body.sequence), [data], nbytes=len(data)):
                return body, len(data)

    def _write_pack(self, given: Given, plan: PackPlan) -> tuple[str, int, bool]:
        """Put a pack; says its id, its size and whether it is there by this call alone."""
        specs = {name: given.members[name].spec for name in plan.new}
        odd = without_code(specs)
        facts = {"format": "pt"}
        if odd:
            facts[KEY] = msgspec.json.encode(FileFacts(kind="pack", dtypes=odd)).decode()
        condemned = self.condemned()
        while True:
            layout = lay_out(specs, facts)
            ident = pack_id(layout.header[8:], [plan.digests[name] for name in layout.order])
            if ident not in condemned:
                break
            facts[AGAIN] = f"{int(facts.get(AGAIN, '0')) + 1}"  # another header, so another name

        def pieces() -> Iterator[Buffer]:
            yield layout.header
            for name in layout.order:
                yield from _checked(name, given, plan.digests[name])

        # A pack of this name had these very bytes when it was written; one that is there is kept if it still has them.
        repair = ident in self._damaged_packs
        put = self._store.put(pack_key(ident), pieces(), nbytes=layout.total, replace=repair)
        if not put and not self._intact(ident, {name: plan.contents[name] for name in plan.new}):
            self._store.put(pack_key(ident), pieces(), nbytes=layout.total, replace=True)
        self._damaged_packs.discard(ident)
        self._verified.setdefault(ident, set()).update(plan.new)
        return ident, layout.total, put and not repair

    def _usable(self, contents: Mapping[str, Content]) -> dict[Content, Place]:
        """Where the run has these tensors already, in packs that are there and whole.

        What this process has neither written nor verified is read once and hashed before it is relied on.
        """
        self.snapshots()
        usable = (self.named() & self.packs()) - self._damaged_packs - self.condemned().keys()
        found = {content: self._known[content] for content in set(contents.values()) if content in self._known}
        found = {content: place for content, place in found.items() if place.pack in usable}
        unverified: dict[str, dict[str, Content]] = {}
        for content, place in found.items():
            if place.key not in self._verified.get(place.pack, ()):
                unverified.setdefault(place.pack, {})[place.key] = content
        self._damaged_packs |= {ident for ident, keys in unverified.items() if not self._intact(ident, keys)}
        return {content: place for content, place in found.items() if place.pack not in self._damaged_packs}

    def _intact(self, ident: str, contents: Mapping[str, Content]) -> bool:
        """Whether a pack holds what it should under these keys."""
        try:
            lazy = Safetensors().open(self._store.source(pack_key(ident)), Limits())
            tensors = [lazy[key].load() for key in contents]
        except (KeyError, KeyNotFoundError, OpenError):
            return False
        same = digest_tensors(tensors) == [digest for digest, _, _ in contents.values()]
        if same:
            self._verified.setdefault(ident, set()).update(contents)
        return same

    def condemned(self) -> dict[str, float]:
        """Packs that a collection has marked and a later one removes: id -> when, in seconds since 1970.

        Only where the store has no guard: there a save must not rely on them.
        """
        if hasattr(self._store, "guard"):
            return {}
        try:
            data = read_all(self._store.source(CONDEMNED))
        except KeyNotFoundError:
            return {}
        try:
            return msgspec.json.decode(unseal(data, file=CONDEMNED), type=dict[str, float])
        except (CorruptCheckpointError, msgspec.DecodeError, ValueError):
            return {}  # a collection that finds it so waits the whole grace period again

    def size(self, ident: str) -> int:
        """Bytes of a pack; 0 if it is not there."""
        if ident not in self._sizes:
            try:
                self._sizes[ident] = self._store.source(pack_key(ident)).size
            except KeyNotFoundError:
                return 0
        return self._sizes[ident]

    def missing(self) -> dict[int, list[str]]:
        """For each snapshot with packs that are not there, their ids; whether packs are whole, only verify tells."""
        snapshots, there = self.snapshots(), self.packs()
        found = {one.sequence: [ident for ident in one.packs if ident not in there] for one in snapshots}
        still = set(self.sequences())  # of a snapshot that was pruned meanwhile the packs may be gone rightly
        return {sequence: idents for sequence, idents in found.items() if idents and sequence in still}

    def missing_packs(self) -> tuple[str, ...]:
        """For each pack that is not there, the snapshots that need it, as text."""
        needed: dict[str, list[str]] = {}
        for sequence, idents in self.missing().items():
            for ident in idents:
                needed.setdefault(ident, []).append(str(sequence))
        return tuple(
            f"pack {ident[:12]}... is missing; snapshots {', '.join(who)} need it" for ident, who in needed.items()
        )

    def opens(self, snapshot: Snapshot) -> bool:
        """Whether all packs of a snapshot can be opened; their tensors are not read."""
        try:
            for ident in set(snapshot.packs) - self._opened:
                Safetensors().open(self._store.source(pack_key(ident)), Limits())
                self._opened.add(ident)
        except (KeyNotFoundError, OpenError):
            return False
        return True

    def load(self, sequence: int) -> Loaded:
        """A snapshot with its tensors, each digest checked. They are views of the mapped packs: copy before writing.

        Raises:
            KeyNotFoundError: it is not there, or was pruned while it was read.
            CorruptCheckpointError: it is damaged; what is said names the pack and the tensors.
        """
        body = self.body(sequence)
        try:
            opened = {ident: self._open(ident, body) for ident in body.packs}
            return Loaded(body, _lazy(body, opened), self._tensors(body, opened))
        except CorruptCheckpointError:
            self._store.source(manifest_key(sequence))  # where it is gone its packs may be: pruned, not damaged
            raise

    def _tensors(self, body: Body, opened: Mapping[str, Mapping[str, LazyTensor]]) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for entry in body.entries:
            spec = spec_of_entry(entry.dtype, entry.shape)
            if entry.pack < 0:
                out[entry.name] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                continue
            ident = body.packs[entry.pack]
            lazy = opened[ident].get(entry.key or entry.name)
            if lazy is None or lazy.spec != spec:
                raise self._damage(ident, [entry.name], "does not hold what the snapshot names")
            out[entry.name] = lazy.load()
        stored = [entry for entry in body.entries if entry.pack >= 0]
        found = digest_tensors([out[entry.name] for entry in stored])
        wrong = [entry for entry, digest in zip(stored, found, strict=True) if entry.digest != digest]
        damaged = [body.packs[entry.pack] for entry in wrong]
        self._damaged_packs.update(damaged)
        if wrong:
            raise self._damage(damaged[0], [entry.name for entry in wrong], "has other bytes than were written")
        for entry in stored:
            self._verified.setdefault(body.packs[entry.pack], set()).add(entry.key or entry.name)
        return out

    def _open(self, ident: str, body: Body) -> Mapping[str, LazyTensor]:
        names = [entry.name for entry in body.entries if entry.pack >= 0 and body.packs[entry.pack] == ident]
        try:
            return Safetensors().open(self._store.source(pack_key(ident)), Limits())
        except KeyNotFoundError as error:
            raise _bad_pack(ident, names, "is missing") from error
        except OpenError as error:
            raise self._damage(ident, names, f"cannot be read ({error.brief})") from error

    def _damage(self, ident: str, names: Sequence[str], reason: str) -> CorruptCheckpointError:
        self._damaged_packs.add(ident)
        return _bad_pack(ident, names, reason)


def _digests(given: Given, threads: int) -> dict[str, str]:
    """The digest of every value: those that are known, and the others by reading them."""
    unread = [name for name in given.values if name not in given.digests]
    found = dict(zip(unread, digest_tensors([given.values[name] for name in unread], threads), strict=True))
    return {name: found.get(name) or given.digests[name] for name in given.values}


def _checked(name: str, given: Given, digest: str) -> Iterator[Buffer]:
    """The bytes of a value. Hashed once more where something else may have written to it since it was hashed.

    Raises:
        SaveError: it is not what was hashed.
    """
    if name in given.private:
        yield from hot_blocks(given.values[name])
        return
    hasher = blake3()
    for block in hot_blocks(given.values[name]):
        yield block
        hasher.update(block)
    if hasher.hexdigest() != digest:
        raise SaveError(
            f"{name} changed while it was being saved; nothing was committed",
            hint="let nothing train while the run saves, or save with blocking=False, which copies first",
        )


def _bad_pack(ident: str, names: Sequence[str], reason: str) -> CorruptCheckpointError:
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return CorruptCheckpointError(
        f"{reason}; it is needed for {listed}",
        file=pack_key(ident),
        hint="`torchkeep verify` on the run lists all damage; an older snapshot may be whole",
    )


def _lazy(body: Body, opened: Mapping[str, Mapping[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """The tensors of a snapshot by full name, none of them read."""
    return {
        entry.name: lazy.replace(requires_grad=entry.requires_grad, device=entry.device)
        for entry in body.entries
        if entry.pack >= 0 and (lazy := opened[body.packs[entry.pack]].get(entry.key or entry.name)) is not None
    }


def manifest_key(sequence: int) -> str:
    """The key of a manifest in the store."""
    return f"{SNAPSHOTS}{sequence}.json"


def pack_key(ident: str) -> str:
    """The key of a pack in the store."""
    return f"{PACKS}{ident}.safetensors"


def check_marker(data: bytes) -> None:
    """Refuse a folder that is no run, or a run of a later version.

    Raises:
        SaveError: it is not ours to write into.
    """
    try:
        marker = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError) as error:
        raise SaveError(
            f"{MARKER} is damaged: {error}",
            hint=f"`torchkeep verify` it; if all else is intact, write this into {MARKER}: {MARKER_BYTES.decode()}",
        ) from error
    if marker.get("format") != "torchkeep-run" or marker.get("version") != FORMAT_VERSION or marker.get("features"):
        raise SaveError(f"{MARKER} names a format that this torchkeep cannot write: {marker}", hint="upgrade torchkeep")
