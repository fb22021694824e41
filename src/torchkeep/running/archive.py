"""Snapshots in a store: packs and manifests, written so that one link makes a snapshot true. Knows no live objects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from ..core.digests import digest_tensors, tensor_bytes
from ..core.facts import KEY, FileFacts
from ..core.limits import Limits
from ..core.live import spec_of, tied_names
from ..core.manifest import FORMAT_VERSION, Body, Entry, HistoryMark, decode_manifest, encode_manifest, pack_id
from ..core.snapshot import Snapshot, snapshot_of, spec_of_entry
from ..core.source import Buffer, read_all
from ..core.tensors import LazyTensor, TensorSpec, dtype_name
from ..core.version import PRODUCER
from ..errors import CorruptCheckpointError, KeyNotFoundError, OpenError, SaveError
from ..formats.layout import lay_out, without_code
from ..formats.safetensors import Safetensors
from ..stores import Store

MARKER = "torchkeep.json"
MARKER_BYTES = b'{"format":"torchkeep-run","version":1,"features":[]}\n'
SNAPSHOTS, PACKS = "snapshots/", "packs/"

Content = tuple[str, str, tuple[int, ...]]
"""What makes two stored tensors the same: digest, dtype, shape."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a pack, empty for the one that is about to be written, and the key in it."""

    pack: str
    key: str


@dataclass(frozen=True)
class PackPlan:
    """Which tensors a save has to write and where it finds the others.

    Attributes:
        places: full name -> place, for every tensor that is not tied to another.
        new: full names to write into one new pack.
        digests: full name -> BLAKE3, those of tied names left out.
    """

    places: Mapping[str, Place]
    new: tuple[str, ...]
    digests: Mapping[str, str]


def plan_pack(specs: Mapping[str, TensorSpec], digests: Mapping[str, str], known: Mapping[Content, Place]) -> PackPlan:
    """Decide from digests alone what is new in the run; equal tensors of one save are written once."""
    places: dict[str, Place] = {}
    fresh: dict[Content, Place] = {}
    new = []
    for name, digest in digests.items():
        content = (digest, dtype_name(specs[name].dtype), specs[name].shape)
        if content not in known and content not in fresh:
            fresh[content] = Place("", name)
            new.append(name)
        places[name] = known.get(content) or fresh[content]
    return PackPlan(places, tuple(new), digests)


@dataclass(frozen=True)
class Committed:
    """What a commit wrote."""

    body: Body
    bytes_written: int
    tensors_written: int


class Archive:
    """The packs and manifests of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Content, Place] = {}
        self._damaged_packs: set[str] = set()
        self._verified: set[Place] = set()
        self._snapshots: dict[int, Snapshot] = {}
        self._unreadable: dict[int, str] = {}
        self._counted: set[str] = set()

    def mark(self) -> None:
        """Make the store a run, or check that it is one this version can write."""
        try:
            source = self._store.source(MARKER)
        except KeyNotFoundError:
            self._store.put(MARKER, [MARKER_BYTES])
            return
        check_marker(read_all(source))

    def sequences(self) -> list[int]:
        """Numbers of all snapshots, damaged ones included, in ascending order."""
        names = (key.removeprefix(SNAPSHOTS).removesuffix(".json") for key in self._store.keys(SNAPSHOTS))
        return sorted(int(name) for name in names if name.isdecimal())

    def body(self, sequence: int) -> Body:
        """The manifest of a snapshot, its digest checked.

        Raises:
            CorruptCheckpointError: it is damaged.
        """
        source = self._store.source(f"{SNAPSHOTS}{sequence}.json")
        body = decode_manifest(read_all(source), file=source.name)
        if body.sequence != sequence:
            raise CorruptCheckpointError(f"says it is snapshot {body.sequence}", file=source.name)
        return body

    def packs(self) -> set[str]:
        """Ids of the packs that are there."""
        return {key.removeprefix(PACKS).removesuffix(".safetensors") for key in self._store.keys(PACKS)}

    def snapshots(self) -> tuple[Snapshot, ...]:
        """The intact snapshots, oldest first; each manifest is read once, a damaged one again."""
        for sequence in self.sequences():
            if sequence not in self._snapshots:
                try:
                    self._register(self.body(sequence))
                    self._unreadable.pop(sequence, None)
                except CorruptCheckpointError as error:
                    self._unreadable[sequence] = error.brief
        return tuple(self._snapshots[sequence] for sequence in sorted(self._snapshots))

    def unreadable(self) -> dict[int, str]:
        """For each damaged manifest the reason."""
        self.snapshots()
        return self._unreadable

    def _register(self, body: Body) -> None:
        """Remember a snapshot, and where its tensors lie for later ones that have the same."""
        self._snapshots[body.sequence] = snapshot_of(body, self._counted)
        for entry in body.entries:
            if entry.pack >= 0:
                place = Place(body.packs[entry.pack], entry.key or entry.name)
                self._known.setdefault((entry.digest, entry.dtype, tuple(entry.shape)), place)

    def commit(
        self,
        tensors: Mapping[str, torch.Tensor],
        state: dict[str, Any],
        *,
        step: int,
        parent: int,
        history: HistoryMark,
        metrics: dict[str, Any],
    ) -> Committed:
        """Write what is new, then the manifest. The link of the manifest is the commit point."""
        tied = tied_names(tensors)
        own = {name: tensor for name, tensor in tensors.items() if name not in tied and tensor.device.type != "meta"}
        digests = dict(zip(own, digest_tensors(list(own.values())), strict=True))
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        plan = plan_pack(specs, digests, self._usable(specs, digests))
        pack, written = self._write_pack({name: own[name] for name in plan.new}, digests) if plan.new else ("", 0)
        entries, packs = _entries(tensors, tied, plan, pack)
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
        body, manifest = self._put_manifest(body)
        self._register(body)
        return Committed(body, written + manifest, len(plan.new))

    def _put_manifest(self, body: Body) -> tuple[Body, int]:
        """Commit under the next free number; a damaged manifest keeps its own."""
        while True:
            body = msgspec.structs.replace(body, sequence=max(self.sequences(), default=0) + 1)
            data = encode_manifest(body)
            if self._store.put(f"{SNAPSHOTS}{body.sequence}.json", [data], nbytes=len(data)):
                return body, len(data)

    def _write_pack(self, tensors: Mapping[str, torch.Tensor], digests: Mapping[str, str]) -> tuple[str, int]:
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        odd = without_code(specs)
        facts = {KEY: msgspec.json.encode(FileFacts(kind="pack", dtypes=odd)).decode()} if odd else {}
        layout = lay_out(specs, {"format": "pt", **facts})
        ident = pack_id(layout.header[8:], [digests[name] for name in layout.order])

        def pieces() -> Iterator[Buffer]:
            yield layout.header
            for name in layout.order:
                yield tensor_bytes(tensors[name])

        # A pack of this name has these very bytes, so one that is there is fine, unless it is known to be damaged.
        repair = ident in self._damaged_packs
        self._store.put(pack_key(ident), pieces(), nbytes=layout.total, replace=repair)
        self._damaged_packs.discard(ident)
        self._verified.update(Place(ident, name) for name in tensors)
        return ident, layout.total

    def _usable(self, specs: Mapping[str, TensorSpec], digests: Mapping[str, str]) -> dict[Content, Place]:
        """Where the run has these tensors already, in packs that are there and whole.

        What this process has neither written nor verified is read once and hashed before it is relied on.
        """
        self.snapshots()
        wanted = {(digest, dtype_name(specs[name].dtype), specs[name].shape) for name, digest in digests.items()}
        found = {content: self._known[content] for content in wanted if content in self._known}
        unverified: dict[str, dict[str, Content]] = {}
        for content, place in found.items():
            if place not in self._verified:
                unverified.setdefault(place.pack, {})[place.key] = content
        self._damaged_packs |= {place.pack for place in found.values()} - self.packs()
        self._damaged_packs |= {
            ident
            for ident, contents in unverified.items()
            if ident not in self._damaged_packs and not self._intact(ident, contents)
        }
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
            self._verified.update(Place(ident, key) for key in contents)
        return same

    def missing_packs(self) -> tuple[str, ...]:
        """For each pack that is not there, the snapshots that need it; whether packs are whole, only verify tells."""
        there = self.packs()
        needed: dict[str, list[str]] = {}
        for snapshot in self.snapshots():
            for ident in snapshot.packs:
                if ident not in there:
                    needed.setdefault(ident, []).append(str(snapshot.sequence))
        return tuple(
            f"pack {ident[:12]}... is missing; snapshots {', '.join(who)} need it" for ident, who in needed.items()
        )

    def lazy(self, body: Body) -> dict[str, LazyTensor]:
        """The tensors of a snapshot by full name, none of them read."""
        opened = {ident: self._open(ident, body) for ident in body.packs}
        return {
            entry.name: opened[body.packs[entry.pack]][entry.key or entry.name].replace(
                requires_grad=entry.requires_grad, device=entry.device
            )
            for entry in body.entries
            if entry.pack >= 0
        }

    def tensors(self, body: Body) -> dict[str, torch.Tensor]:
        """Every tensor of a snapshot, its digest checked. They are views of the mapped packs: copy before writing.

        Raises:
            CorruptCheckpointError: a pack is missing or damaged; it names the pack and the tensors.
        """
        opened = {ident: self._open(ident, body) for ident in body.packs}
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
        self._verified.update(Place(body.packs[entry.pack], entry.key or entry.name) for entry in stored)
        return out

    def _open(self, ident: str, body: Body) -> Mapping[str, LazyTensor]:
        try:
            return Safetensors().open(self._store.source(pack_key(ident)), Limits())
        except (KeyNotFoundError, OpenError) as error:
            names = [entry.name for entry in body.entries if entry.pack >= 0 and body.packs[entry.pack] == ident]
            reason = "is missing" if isinstance(error, KeyNotFoundError) else f"cannot be read ({error.brief})"
            raise self._damage(ident, names, reason) from error

    def _damage(self, ident: str, names: Sequence[str], reason: str) -> CorruptCheckpointError:
        self._damaged_packs.add(ident)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return CorruptCheckpointError(
            f"{reason}; it is needed for {listed}",
            file=pack_key(ident),
            hint="`torchkeep verify` on the run lists all damage; an older snapshot may be whole",
        )


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


def _entries(
    tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str], plan: PackPlan, pack: str
) -> tuple[list[Entry], list[str]]:
    """The entries of a manifest, and the packs that they index; `pack` is the one that was just written."""
    packs: dict[str, int] = {}
    entries = []
    for name, tensor in tensors.items():
        origin = tied.get(name, name)
        place = plan.places.get(origin)  # None for a tensor on the meta device, which has no bytes
        entries.append(
            Entry(
                name=name,
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
                digest=plan.digests.get(origin, ""),
                pack=packs.setdefault(place.pack or pack, len(packs)) if place else -1,
                key="" if place is None or place.key == name else place.key,
                requires_grad=tensor.requires_grad,
                tied=tied.get(name, ""),
                device=str(tensor.device),
            )
        )
    return entries, list(packs)
