"""Verifying: is every byte of a file or a run as it was written?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .core.digests import digest_bytes
from .core.facts import Graph
from .core.history import decode_history, whole_lines
from .core.limits import Limits
from .core.manifest import Body, pack_id
from .core.memory import tensor_bytes
from .core.report import Damage, VerifyReport
from .core.source import Source, read_all
from .core.spans import Span, gaps, span_text, spans_of, within
from .core.tensors import LazyTensor, dtype_name
from .errors import CheckpointNotFoundError, CorruptCheckpointError, KeyNotFoundError, LoadError, OpenError
from .formats._dispatch import recognise
from .formats.safetensors import Safetensors, read_header, stored_tensors
from .opening import PathLike, as_source
from .running.archive import MARKER, MARKER_BYTES, Archive
from .running.journal import HISTORY
from .running.retention import PRUNED, pruned_spans
from .running.run import local_store
from .running.stored import pack_key
from .running.tags import TAGS, pointed
from .stores import Store
from .writing import Progress


@dataclass
class _Tally:
    """The report while it is being made."""

    path: str
    progress: Progress | None = None
    total: int = 0
    checked: int = 0
    nbytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, nbytes: int, problem: str = "") -> None:
        self.checked += 1
        self.nbytes += nbytes
        if problem:
            self.damaged.append(Damage(what, problem))
        if self.progress is not None:
            self.progress(self.nbytes, max(self.total, self.nbytes))

    def report(self) -> VerifyReport:
        return VerifyReport(
            self.path, self.checked, self.nbytes, tuple(self.damaged), tuple(self.unchecked), tuple(self.notes)
        )


def verify(path: PathLike, *, progress: Progress | None = None) -> VerifyReport:
    """Read every byte of a file or run and compare it with what was written.

    A file that torchkeep wrote and a run are checked by their BLAKE3 digests, every byte of them. A zip of any kind,
    and the chunks of a distributed checkpoint, are checked by the CRC of each record; padding and timestamps between
    the records carry neither data nor checksum. Of shards each is checked in its own way.
    Files that have no checksums cannot be verified: the report says so and is not `ok`.

    Args:
        path: a file or folder in any format that `open` reads, or the folder of a run.
        progress: called with (bytes done, bytes in all).

    Raises:
        OpenError: there is nothing that can be opened. Damage is reported, not raised.
    """
    tally = _Tally(os.fspath(path), progress)
    if (Path(path) / MARKER).exists() or (Path(path) / "snapshots").is_dir():
        _run(tally, local_store(path))
    else:
        _file(tally, as_source(path))
    return tally.report()


def _file(tally: _Tally, source: Source) -> None:
    tally.total = source.size
    part = recognise(source, Limits())
    try:
        ckpt = part.open(source, Limits())
    except CorruptCheckpointError as error:
        tally.add(tally.path, source.size, error.brief)
        return
    check = getattr(part, "verify", None)
    if check is not None:
        for name, ok, nbytes in check(source, Limits()):
            tally.add(name, nbytes, "" if ok else "its checksum is not that of its bytes")
        if not tally.checked:
            tally.unchecked.append("its writer left out the checksums of its records")
    elif ckpt.facts is not None and ckpt.facts.header:
        _digests(tally, ckpt.facts.digests, stored_tensors(source, Limits()))
        if ckpt.facts.graph is not None:
            _graph(tally, source, ckpt.facts.graph)
    else:
        tally.unchecked.append(
            f"a {ckpt.format} file without digests carries nothing to check it against; `torchkeep convert` adds them"
        )
    for finding in ckpt.findings:
        if finding.code in {"truncated", "trailing-data", "missing-storage"}:
            tally.damaged.append(Damage(finding.place or tally.path, finding.message))


def _digests(tally: _Tally, digests: Mapping[str, str], stored: Mapping[str, LazyTensor]) -> None:
    """The header was checked against its own digest when the file was opened; here come the tensors."""
    tally.add("header", 0)
    for name, digest in digests.items():
        if name not in stored:
            tally.add(name, 0, "it is listed and not there")
            continue
        tally.add(name, stored[name].nbytes, "" if _digest(stored[name]) == digest else "its bytes changed")
    for name in sorted(stored.keys() - digests.keys()):
        tally.add(name, stored[name].nbytes, "it has no digest")


def _graph(tally: _Tally, source: Source, graph: Graph) -> None:
    """The file of the graph beside that of the weights; one that is not there is no damage of what is."""
    try:
        beside = source.sibling(graph.name)
    except CheckpointNotFoundError:
        tally.unchecked.append(f"its graph, {graph.name}, is not beside it")
        return
    same = beside.size == graph.nbytes and digest_bytes(read_all(beside)) == graph.digest
    tally.add(graph.name, beside.size, "" if same else "it is not the graph that was saved with this file")


def _digest(tensor: LazyTensor) -> str:
    return digest_bytes(tensor_bytes(tensor.load()))


# -- runs -----------------------------------------------------------------------------------------------------


def _run(tally: _Tally, store: Store) -> None:
    try:
        marker = read_all(store.source(MARKER))
    except KeyNotFoundError:
        raise LoadError(
            f"{tally.path} is neither a run nor a file: it has no {MARKER}",
            hint="give a file, or the folder of a tk.Run",
        ) from None
    tally.add(MARKER, len(marker), "" if marker == MARKER_BYTES else "it is not as it was written")
    archive = Archive(store)
    bodies, unreadable = _manifests(tally, archive)  # first: a pack is there before the manifest that names it
    idents = sorted(archive.packs())
    tally.total = tally.nbytes + sum(archive.size(ident) for ident in idents)
    packs = {ident: _pack(tally, ident, source) for ident in idents if (source := _source(store, pack_key(ident)))}
    for body in bodies.values():
        _entries(tally, archive, body, packs)
    _gaps(tally, spans_of(bodies.keys() | unreadable), _pruned(tally, store))
    _history(tally, store, bodies.values())
    _tags(tally, store, archive, unreadable)
    later = set(archive.sequences()) - bodies.keys() - unreadable
    named = {ident for body in bodies.values() for ident in body.packs}
    for ident in packs.keys() - named:
        if not later:
            tally.notes.append(f"{pack_key(ident)} belongs to no intact snapshot")


def _source(store: Store, key: str) -> Source | None:
    try:
        return store.source(key)
    except KeyNotFoundError:  # removed since it was listed
        return None


def _manifests(tally: _Tally, archive: Archive) -> tuple[dict[int, Body], set[int]]:
    """The manifests that are intact, and the numbers of the others; one that is pruned meanwhile is neither."""
    bodies: dict[int, Body] = {}
    unreadable: set[int] = set()
    for sequence in archive.sequences():
        try:
            bodies[sequence] = archive.body(sequence)
            tally.add(f"snapshot {sequence}", 0)
        except KeyNotFoundError:
            continue
        except OpenError as error:
            unreadable.add(sequence)
            tally.add(f"snapshot {sequence}", 0, error.brief)
    return bodies, unreadable


def _pruned(tally: _Tally | None, store: Store) -> list[Span]:
    spans: list[Span] = []
    problem = ""
    try:
        spans = pruned_spans(store)
    except CorruptCheckpointError as error:
        problem = error.brief
    if tally is not None and (spans or problem):
        tally.add(PRUNED, 0, problem)
    return spans


def _gaps(tally: _Tally, there: list[Span], pruned: list[Span]) -> None:
    """Numbers are given one after another, so one that is missing was pruned or lost."""
    highest = there[-1][1] if there else 0
    for span in gaps([*there, *pruned], highest):
        tally.add(f"snapshot {span_text(span)}", 0, "it is missing, and later ones are there")


def _pack(tally: _Tally, ident: str, source: Source) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Digest, dtype and shape of each tensor of a pack; its name must follow from its bytes."""
    try:
        header = read_header(source, Limits())
        lazy = Safetensors().open(source, Limits())
    except OpenError as error:
        tally.add(pack_key(ident), source.size, error.brief)
        return {}
    order = sorted(header.entries, key=lambda name: header.entries[name].start)
    found = {name: (_digest(lazy[name]), dtype_name(lazy[name].dtype), tuple(lazy[name].shape)) for name in order}
    same = ident == pack_id(header.raw, [found[name][0] for name in order])
    tally.add(pack_key(ident), source.size, "" if same else "its bytes are not those it is named after")
    return found


def _entries(
    tally: _Tally, archive: Archive, body: Body, packs: dict[str, dict[str, tuple[str, str, tuple[int, ...]]]]
) -> None:
    wrong: dict[str, list[str]] = {}
    for entry in body.entries:
        if entry.pack >= 0:
            ident = body.packs[entry.pack]
            held = packs.get(ident, {}).get(entry.key or entry.name)
            if held != (entry.digest, entry.dtype, tuple(entry.shape)):
                wrong.setdefault(ident, []).append(entry.name)
    if wrong and body.sequence not in archive.sequences():
        return  # it was pruned meanwhile, so its packs may be gone
    for ident, names in wrong.items():
        reason = "is damaged" if ident in packs else "is missing"
        tally.damaged.append(
            Damage(
                f"snapshot {body.sequence}",
                f"{len(names)} tensors, {names[0]} first: pack {ident[:12]}... {reason}",
                tuple(names),
            )
        )


def _history(tally: _Tally, store: Store, bodies: Iterable[Body]) -> None:
    try:
        data = read_all(store.source(HISTORY))
    except KeyNotFoundError:
        data = b""
    changed = [body for body in bodies if not _is_part(data, body)]
    reach = data[: max((body.history.nbytes for body in changed), default=0)].count(b"\n") + 1 if changed else 0
    damaged = decode_history(data).damaged
    lines = [f"line {number} changed after it was written" for number in damaged if number <= reach]
    tally.add(HISTORY, len(data), "; ".join(lines))
    if len(damaged) > len(lines) or whole_lines(data) < len(data):
        tally.notes.append("a crash tore lines of the history before they were safe; they belong to no snapshot")
    for body in changed:
        tally.damaged.append(Damage(HISTORY, f"the part that belongs to snapshot {body.sequence} changed"))


def _is_part(data: bytes, body: Body) -> bool:
    """Whether the history begins with what belongs to a snapshot."""
    part = data[: body.history.nbytes]
    return len(part) == body.history.nbytes and digest_bytes(part) == body.history.digest


def _tags(tally: _Tally, store: Store, archive: Archive, unreadable: set[int]) -> None:
    """What a tag points to must be there, or have been pruned."""
    for key in store.keys(TAGS):
        try:
            sequence = pointed(store, key)
            intact = sequence in archive.sequences() and sequence not in unreadable
            known = intact or within(_pruned(None, store), sequence)
            problem = "" if known else f"it points to snapshot {sequence}, which is not intact"
        except KeyNotFoundError:  # removed since it was listed
            continue
        except CorruptCheckpointError as error:
            problem = error.brief
        tally.add(key, 0, problem)
