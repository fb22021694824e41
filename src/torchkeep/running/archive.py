"""Snapshots in a store: packs and manifests, written so that one link makes a snapshot true. Knows no live objects."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from ..core.digests import Ahead
from ..core.manifest import FORMAT_VERSION, Body, HistoryMark, encode_manifest
from ..core.source import read_all
from ..core.threads import THREADS
from ..core.version import PRODUCER
from ..errors import CommitUnknownError, KeyNotFoundError, SaveError
from .packing import Given, content_of, entries_of, plan_pack
from .packs import NO_PACK, Packs
from .stored import manifest_key

MARKER = "torchkeep.json"
MARKER_BYTES = b'{"format":"torchkeep-run","version":1,"features":[]}\n'


@dataclass(frozen=True)
class Committed:
    """What a commit wrote."""

    body: Body
    bytes_written: int
    tensors_written: int
    engine: str


class Archive(Packs):
    """The packs and manifests of one run."""

    def mark(self) -> None:
        """Make the store a run, or check that it is one this version can write."""
        try:
            source = self._store.source(MARKER)
        except KeyNotFoundError:
            self._store.put(MARKER, [MARKER_BYTES])
            return
        check_marker(read_all(source))

    def commit(
        self,
        given: Given,
        state: dict[str, Any],
        *,
        step: int,
        parent: int,
        history: HistoryMark,
        metrics: dict[str, Any],
        seconds: float = 0.0,
        threads: int = THREADS,
    ) -> Committed:
        """Write what is new, then the manifest. The link of the manifest is the commit point."""
        unread = {name: value for name, value in given.values.items() if name not in given.digests}
        # What is found in the run stays until the manifest names it.
        with self.guarded(exclusive=False), Ahead(unread, self._order(unread), threads) as ahead:
            usable = self._usable()
            packs = [self._stream(given, ahead, usable)]
            found = {**given.digests, **ahead.digests()}
            digests = {name: found[name] for name in given.values}
            contents = {name: content_of(digest, given.members[name].spec) for name, digest in digests.items()}
            plan = plan_pack(contents, digests, {**self._found(contents, usable), **packs[0].places})
            packs.append(self._write_pack(given, plan) if plan.new else NO_PACK)
            engine = getattr(self._store, "engine", "") if any(pack.ident for pack in packs) else ""
            entries, named = entries_of(given.members, plan, packs[1].ident)
            body = Body(
                version=FORMAT_VERSION,
                sequence=0,
                parent=parent,
                step=step,
                created=time.time(),
                packs=named,
                entries=entries,
                state=state,
                history=history,
                metrics=metrics,
                producer=PRODUCER,
                seconds=seconds,
            )
            try:
                body, manifest = self._put_manifest(body)
            except CommitUnknownError:
                raise
            except SaveError:
                self._drop(packs)
                raise
        self._register(body)
        self._opened.update(body.packs)
        return Committed(
            body,
            sum(pack.nbytes for pack in packs) + manifest,
            len(plan.new) + len(packs[0].places),
            engine if isinstance(engine, str) else "",  # a store of others may call something else so
        )

    def _put_manifest(self, body: Body) -> tuple[Body, int]:
        """Commit under the next free number; a damaged manifest keeps its own."""
        while True:
            body = msgspec.structs.replace(body, sequence=max(self.sequences(), default=0) + 1)
            data = encode_manifest(body)
            if self._store.put(manifest_key(body.sequence), [data], nbytes=len(data)):
                return body, len(data)


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
