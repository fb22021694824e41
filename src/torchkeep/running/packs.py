"""Packs of a run, written: what is new according to a plan, or what probably is while it is hashed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from blake3 import blake3

from ..core.digests import BIG, Ahead, digest_bytes
from ..core.facts import KEY, FileFacts
from ..core.manifest import pack_id, unseal
from ..core.memory import tensor_bytes
from ..core.pieces import hot_blocks
from ..core.source import Buffer, Head, read_all
from ..core.tensors import TensorSpec
from ..errors import CorruptCheckpointError, KeyNotFoundError, NoSpaceError, SaveError
from ..formats.layout import Layout, lay_out, without_code
from .packing import Content, Given, PackPlan, Place, content_of
from .stored import PACKS, Stored, pack_key

CONDEMNED = "condemned.json"
_AGAIN = "again"  # in the header of a pack: how often one with these tensors was condemned and written anew


@dataclass(frozen=True)
class Pack:
    """A pack that a save has written; with no name if it has not.

    Attributes:
        ident: its id.
        places: where the tensors in it lie.
        nbytes: of the file.
        fresh: whether it is there by this save alone.
    """

    ident: str = ""
    places: Mapping[Content, Place] = field(default_factory=dict)
    nbytes: int = 0
    fresh: bool = False


NO_PACK = Pack()


class Packs(Stored):
    """The packs of a run, and how more of them come to be.

    Attributes:
        stream_from: bytes; less that may be new than this is written when all of it is hashed.
    """

    stream_from = 4 << 20

    def _order(self, values: Mapping[str, torch.Tensor]) -> list[str]:
        """In which order to hash: what probably is new as it will be written, then the rest, the largest first."""
        likely = [name for name in values if name not in self._settled]
        likely.sort(key=lambda name: -values[name].dtype.itemsize)
        return likely + sorted(values.keys() & self._settled, key=lambda name: -values[name].nbytes)

    def _stream(self, given: Given, ahead: Ahead, usable: set[str]) -> Pack:
        """Write what is new among what changed last time too, while the rest is still being hashed.

        Nothing is decided by that but the order of the work: of every tensor the digest is known before its bytes go.
        What else turns out to be new is left to a second pack.
        """
        put = getattr(self._store, "put_named", None)
        likely = [name for name in given.values if name not in given.digests and name not in self._settled]
        specs = {name: given.members[name].spec for name in likely}
        if put is None or sum(spec.nbytes for spec in specs.values()) < self.stream_from:
            return NO_PACK
        most = _layout(specs)
        stream = _Stream(given, ahead, specs, most, lambda content: self._may_have(content, usable))
        pieces = stream.pieces()
        first = next(pieces, None)
        if first is None:
            return NO_PACK
        try:
            written = put(
                PACKS,
                lambda: pack_key(stream.ident).removeprefix(PACKS),
                itertools.chain([first], pieces),
                nbytes=most.total,
                head=Head(len(most.header), stream.header),
            )
        except NoSpaceError:  # so much was reserved for what may be new; what is new may fit
            return NO_PACK
        ident, contents = stream.ident, stream.contents
        if not written and not self._intact(ident, contents):
            self._damaged_packs.add(ident)
            return NO_PACK
        self._damaged_packs.discard(ident)
        self._verified.setdefault(ident, set()).update(contents)
        places = {content: Place(ident, name) for name, content in contents.items()}
        return Pack(ident, places, stream.nbytes, written)

    def _write_pack(self, given: Given, plan: PackPlan) -> Pack:
        """Put what a plan says is new."""
        specs = {name: given.members[name].spec for name in plan.new}
        condemned = self.condemned()
        for again in itertools.count():
            layout = _layout(specs, again=again)  # another header, so another name
            ident = pack_id(layout.header[8:], [plan.digests[name] for name in layout.order])
            if ident not in condemned:
                break

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
        places = {plan.contents[name]: Place(ident, name) for name in plan.new}
        return Pack(ident, places, layout.total, put and not repair)

    def _drop(self, packs: Sequence[Pack]) -> None:
        """Take back packs that nothing names: the disk may be full."""
        for pack in packs:
            if pack.fresh:
                with contextlib.suppress(SaveError):
                    self._store.delete(pack_key(pack.ident))

    def _usable(self) -> set[str]:
        """Packs that are there and whole, as far as is known."""
        self.snapshots()
        return (self.named() & self.packs()) - self._damaged_packs - self.condemned().keys()

    def _may_have(self, content: Content, usable: set[str]) -> bool:
        """Whether the run has a tensor, or has it perhaps: what was not verified yet is for `_found` to decide."""
        place = self._known.get(content)
        return place is not None and place.pack in usable

    def _found(self, contents: Mapping[str, Content], usable: set[str]) -> dict[Content, Place]:
        """Where the run has these tensors already, in packs that are there and whole.

        What this process has neither written nor verified is read once and hashed before it is relied on.
        """
        found = {content: self._known[content] for content in set(contents.values()) if content in self._known}
        found = {content: place for content, place in found.items() if place.pack in usable}
        unverified: dict[str, dict[str, Content]] = {}
        for content, place in found.items():
            if place.key not in self._verified.get(place.pack, ()):
                unverified.setdefault(place.pack, {})[place.key] = content
        self._damaged_packs |= {ident for ident, keys in unverified.items() if not self._intact(ident, keys)}
        return {content: place for content, place in found.items() if place.pack not in self._damaged_packs}

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


class _Stream:
    """The bytes of a pack whose tensors are chosen as they come, and then its header and its name."""

    def __init__(
        self,
        given: Given,
        ahead: Ahead,
        specs: Mapping[str, TensorSpec],
        most: Layout,
        is_had: Callable[[Content], bool],
    ) -> None:
        self._given = given
        self._ahead = ahead
        self._specs = specs
        self._most = most
        self._is_had = is_had
        self.contents: dict[str, Content] = {}
        self.ident = ""
        self.nbytes = len(most.header)

    def pieces(self) -> Iterator[Buffer]:
        """The bytes of what is new, in the order of its layout."""
        taken: set[Content] = set()
        for name in self._most.order:
            value = self._given.values[name]
            if value.nbytes >= BIG:
                digest = self._ahead.digest(name)
                pieces: Iterator[Buffer] = _checked(name, self._given, digest)
            else:  # a copy is what was hashed, whatever others do to the tensor
                own = tensor_bytes(value) if name in self._given.private else bytes(tensor_bytes(value))
                digest = self._ahead.tell(name, digest_bytes(own))
                pieces = iter([own] if len(own) else [])
            content = content_of(digest, self._specs[name])
            if content in taken or self._is_had(content):
                continue
            taken.add(content)
            self.contents[name] = content
            self.nbytes += value.nbytes
            yield from pieces
        if self.contents:
            yield b""
            self._ahead.digests()  # of all the others, while the disk is busy

    def header(self) -> bytes:
        """The header of what came, as long as that of all that could have come."""
        specs = {name: spec for name, spec in self._specs.items() if name in self.contents}
        layout = _layout(specs, room=len(self._most.header))
        self.ident = pack_id(layout.header[8:], [self.contents[name][0] for name in layout.order])
        return layout.header


def _layout(specs: Mapping[str, TensorSpec], *, again: int = 0, room: int = 0) -> Layout:
    facts = {"format": "pt"}
    odd = without_code(specs)
    if odd:
        facts[KEY] = msgspec.json.encode(FileFacts(kind="pack", dtypes=odd)).decode()
    if again:
        facts[_AGAIN] = str(again)
    return lay_out(specs, facts, room=room)


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
