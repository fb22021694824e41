"""The files that `torch.save` wrote by default until 1.5: five pickles in a row, then the storages one after another.

Pickles: magic number, protocol, system information, the object, the list of storage keys. Then for each key the
number of elements and the elements. How long a storage is stands in the object only, so it has to be read before
any byte of data can be found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import StorageRef
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnsupportedFeatureError
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, TruncatedStreamError, Unpickled, Use, truncation_is_corruption
from ._stream import unpickle_at
from ._torch import TensorReader, with_dangers

MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_FORMS = (MAGIC.to_bytes(10, "little"), b"L%dL\n" % MAGIC)
PROTOCOL = 1001
_MOST_SAVES = 1000
_UNLISTED = "the file does not list this storage"


def _begins_a_save(head: bytes) -> bool:
    """Whether these bytes are torch's magic number, pickled by any protocol."""
    return any(form in head[:64] for form in _MAGIC_FORMS) and head[:1] in {b"\x80", b"L"}


class TorchLegacy:
    """Reads the container of torch 0.1.8 to 1.5, which later versions write when asked to."""

    name = "torch_legacy"

    def sniff(self, probe: Probe) -> bool:
        """Whether the file begins with torch's magic number, pickled by any protocol."""
        return _begins_a_save(probe.head)

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the five pickles and find the storages, without reading them.

        A file that was cut within the storages still opens; its findings say so, and tensors that are cut off say so
        when they are loaded. Several saves into one file are read one after another: as one dict where they are dicts
        without a common key, else as a list.

        Raises:
            CorruptCheckpointError: the pickles are damaged, or storages are not of the size that they declare.
        """
        reading = _Reading(source, limits)
        try:
            saves = reading.saves()
        except OpenError as error:
            raise with_dangers(error, reading.seen)  # noqa: B904 - it is the same error
        contents = Contents(
            joined(saves),
            reading.seen,
            hints=_hints(reading.seen),
            findings=tuple(reading.findings),
            metadata={f"source:{name}": text for name, text in reading.sources.items()},
        )
        return checkpoint_from(source.name, self.name, contents, limits)


def salvage_legacy(source: Source, limits: Limits) -> Checkpoint:
    """The first save of a broken file: storages are placed up to where they are damaged or cut.

    Raises:
        CorruptCheckpointError: the object's pickle is damaged, so nobody knows what was in the file.
    """
    with truncation_is_corruption():
        reading = _Reading(source, limits)
        tree, tensors, storages, end = reading.pickles(0)
        try:
            reading.place(tensors, storages, end)
        except CorruptCheckpointError as error:
            reading.findings.append(Finding("odd-structure", "danger", error.message, error.place))
            tensors.settle_views()
    for ref in storages.declared.values():
        if ref.offset is None:
            ref.problem = f"lost: {ref.problem}"
    tensors.settle_views()
    contents = Contents(tree, reading.seen, findings=tuple(reading.findings))
    return checkpoint_from(source.name, TorchLegacy.name, contents, limits)


@dataclass(slots=True)
class _Storages:
    """The storages that the object declares, by key."""

    declared: dict[str, StorageRef] = field(default_factory=dict)

    def place(self, key: str, nbytes: int) -> StorageRef:
        """Remember a storage; where it is is known later."""
        self.declared[key] = ref = StorageRef(nbytes, None, _UNLISTED)
        return ref


class _Reading:
    """One reading of a file: the names that were met and what was odd."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.seen: dict[Global, Use] = {}
        self.findings: list[Finding] = []
        self.sources: dict[str, str] = {}

    def saves(self) -> list[Any]:
        """The object of each save in the file; nearly always there is one."""
        tree, end = self._save(0)
        trees = [tree]
        while end is not None and end < self.source.size:
            head = bytes(self.source.read(end, min(64, self.source.size - end)))
            if len(trees) == _MOST_SAVES or not _begins_a_save(head):
                self._trailing(end, "something")
                break
            try:
                tree, after = self._save(end)
            except OpenError as error:
                self._trailing(end, f"another save, which cannot be read ({error.brief})")
                break
            trees.append(tree)
            end = after
        if len(trees) > 1:
            message = f"holds {len(trees)} saves one after another; torch.load reads the first alone"
            self.findings.append(Finding("several-saves", "info", message))
        return trees

    def _save(self, start: int) -> tuple[Any, int | None]:
        """The object of one save, and where it ends; None where the file is cut."""
        tree, tensors, storages, end = self.pickles(start)
        self.sources.update(tensors.sources)
        self.findings += tensors.findings
        return tree, self.place(tensors, storages, end)

    def fail(self, what: str, place: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            what, file=self.source.name, place=place, hint="fetch or copy the file again and compare its size"
        )

    def pickles(self, start: int) -> tuple[Any, TensorReader, _Storages, int]:
        """The object, what made its tensors, the storages it declares, and where the object's pickle ended."""
        magic = self._plain(start, "magic number")
        if type(magic.value) is not int or magic.value != MAGIC:
            raise self.fail("does not begin with torch's magic number", f"byte {start}")
        protocol = self._plain(magic.end, "protocol")
        if protocol.value != PROTOCOL:
            raise UnsupportedFeatureError(
                f"is of protocol {str(protocol.value)[:40]}; torch only ever wrote {PROTOCOL}", file=self.source.name
            )
        system = self._plain(protocol.end, "system information")
        storages = _Storages()
        tensors = TensorReader(self.source, storages.place, self.limits)

        def dialect() -> Dialect:
            nonlocal storages, tensors
            storages = _Storages()  # reading starts afresh when a larger window is needed
            tensors = TensorReader(self.source, storages.place, self.limits)
            return tensors.dialect()

        found = self._unpickle(system.end, "object", dialect)
        return found.value, tensors, storages, found.end

    def _plain(self, start: int, stream: str) -> Unpickled:
        return self._unpickle(start, stream, Dialect)

    def _unpickle(self, start: int, stream: str, dialect: Callable[[], Dialect]) -> Unpickled:
        return unpickle_at(self.source, start, dialect, self.limits, stream=stream, seen=self.seen)

    def _keys(self, start: int, declared: dict[str, StorageRef]) -> tuple[list[str], int | None]:
        """The storage keys in the order of the file, and where the storages begin; None where the file is cut."""
        try:
            found = self._plain(start, "storage keys")
        except TruncatedStreamError:
            return [], None
        keys = found.value
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise self.fail("has a list of storage keys that is none", "storage keys")
        if len(set(keys)) != len(keys):
            raise self.fail("lists a storage twice", "storage keys")
        for key in keys:
            if key not in declared:
                raise self.fail(f"lists storage {key[:100]!r}, which the object does not have", "storage keys")
        return keys, found.end

    def place(self, tensors: TensorReader, storages: _Storages, start: int) -> int | None:
        """Find the bytes of each storage; returns where the last one ends, None where the file is cut."""
        keys, position = self._keys(start, storages.declared)
        for key in keys:
            ref = storages.declared[key]
            position = self._place_one(key, ref, tensors.item_sizes[key], position)
        tensors.settle_views()
        lost = [key for key, ref in storages.declared.items() if ref.offset is None]
        if position is None:
            self._truncated(lost, storages)
            tensors.settle_views()
            return None
        if lost:
            message = f"{len(lost)} storages are not in the file, such as {lost[0][:100]!r}"
            self.findings.append(Finding("missing-storage", "danger", message, "storage keys"))
        return position

    def _truncated(self, lost: list[str], storages: _Storages) -> None:
        size, count = self.source.size, len(storages.declared)
        message = f"is truncated at byte {size:,}: {len(lost)} of {count} storages are not complete"
        self.findings.append(Finding("truncated", "danger", message, f"byte {size}"))
        for key in lost:
            problem = f"the file is truncated at byte {size:,}, before the end of this storage"
            storages.declared[key].problem = problem

    def _place_one(self, key: str, ref: StorageRef, itemsize: int, position: int | None) -> int | None:
        if position is None or position + 8 > self.source.size:
            return None
        count = int.from_bytes(self.source.read(position, 8), "little", signed=True)
        if count * itemsize != ref.nbytes:
            raise self.fail(
                f"storage {key[:100]!r} has {count:,} elements of {itemsize} bytes; "
                f"the object declares {ref.nbytes:,} bytes",
                f"byte {position}",
            )
        end = position + 8 + ref.nbytes
        if end > self.source.size:
            return None
        ref.offset = position + 8
        return end

    def _trailing(self, end: int, what: str) -> None:
        rest = self.source.size - end
        if bytes(self.source.read(end, min(2, rest))) == b"PK":
            what = "a zip archive"
        message = f"{rest:,} bytes follow the checkpoint: {what}"
        self.findings.append(Finding("trailing-data", "warning", message, f"byte {end}"))


def joined(saves: list[Any]) -> Any:
    """Several saves as one object: dicts without a common key as one dict, others as a list."""
    if len(saves) == 1:
        return saves[0]
    keys = [key for save in saves if isinstance(save, dict) for key in save]
    if all(isinstance(save, dict) for save in saves) and len(set(keys)) == len(keys):
        return {key: value for save in saves for key, value in save.items()}
    return saves


def _hints(seen: dict[Global, Use]) -> tuple[Hint, ...]:
    first = Global("torch._utils", "_rebuild_tensor")
    if first in seen and Global("torch._utils", "_rebuild_tensor_v2") not in seen:
        return (Hint("its tensors are rebuilt by the first _rebuild_tensor", high=(0, 3)),)
    return (Hint("it has the container that was the default until torch 1.5, and that later ones can still write"),)
