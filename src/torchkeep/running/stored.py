"""What a store has of a run, read: snapshots, and the packs that they name. Knows no live objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..core.digests import digest_tensors
from ..core.limits import Limits
from ..core.manifest import Body, HistoryMark, decode_manifest
from ..core.snapshot import Snapshot, snapshot_of, spec_of_entry
from ..core.source import read_all
from ..core.tensors import LazyTensor
from ..errors import CorruptCheckpointError, KeyNotFoundError, OpenError
from ..formats.safetensors import Safetensors
from ..stores import Store
from .packing import Content, Place

SNAPSHOTS, PACKS = "snapshots/", "packs/"
NO_HISTORY = HistoryMark(0, 0, "")


@dataclass(frozen=True)
class Loaded:
    """A snapshot that was read: its manifest, and its tensors by full name, not read and read."""

    body: Body
    lazy: Mapping[str, LazyTensor]
    tensors: dict[str, torch.Tensor]


class Stored:
    """The snapshots and packs of one run, as far as they are there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Content, Place] = {}
        self._damaged_packs: set[str] = set()
        self._verified: dict[str, set[str]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._marks: dict[int, HistoryMark] = {}
        self._unreadable: dict[int, str] = {}
        self._counted: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._opened: set[str] = set()
        self._seen: set[str] = set()
        self._settled: set[str] = set()  # full names of what the last save that changed something found in the run

    def guarded(self, *, exclusive: bool) -> AbstractContextManager[None]:
        """Keep saving (shared) and removing (exclusive) apart, where the store can; else the grace period has to."""
        guard = getattr(self._store, "guard", None)
        return nullcontext() if guard is None else guard(exclusive)

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

    def mark_of(self, sequence: int) -> HistoryMark:
        """How much of the history belongs to a snapshot; nothing where it was not read or is gone."""
        return self._marks.get(sequence, NO_HISTORY)

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
        self._marks[body.sequence] = body.history
        if not self._seen.issuperset(body.packs):
            old = [ident in self._seen for ident in body.packs]
            self._settled = {entry.name for entry in body.entries if entry.pack >= 0 and old[entry.pack]}
            self._seen.update(body.packs)
        for entry in body.entries:
            if entry.pack >= 0:
                place = Place(body.packs[entry.pack], entry.key or entry.name)
                self._known[entry.digest, entry.dtype, tuple(entry.shape)] = place

    def _forget(self, gone: set[int]) -> None:
        """Snapshots were pruned: what was known of packs that no other one names is known no longer."""
        for sequence in gone:
            self._snapshots.pop(sequence, None)
            self._marks.pop(sequence, None)
            self._unreadable.pop(sequence, None)
        if gone:
            named = self.named()
            self._known = {content: place for content, place in self._known.items() if place.pack in named}
            self._verified = {ident: keys for ident, keys in self._verified.items() if ident in named}
            self._sizes = {ident: size for ident, size in self._sizes.items() if ident in named}
            self._damaged_packs &= named
            self._opened &= named
            self._counted = {digest for digest, _, _ in self._known}

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
