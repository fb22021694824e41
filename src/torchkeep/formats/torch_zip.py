"""The zip files that `torch.save` writes since 1.6 (1.4 and 1.5 when asked), also when they were packed anew."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import StorageRef
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnknownFormatError
from ._assemble import Contents, Hint, checkpoint_from
from ._directory import DEFLATED
from ._pause import collector_paused
from ._pickle import Dialect, Unpickled, Use, truncation_is_corruption, unpickle
from ._torch import TensorReader, with_dangers
from ._zip import Archive, is_zip, read_archive

_SMALL = 1 << 16
_PICKLE = "data.pkl"
_KNOWN_RECORDS = frozenset(
    {_PICKLE, "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
)


class TorchZip:
    """Reads zip checkpoints of torch 1.4 and later."""

    name = "torch_zip"

    def sniff(self, probe: Probe) -> bool:
        """Every zip file is taken here, so that one that is no checkpoint gets a good message: this is asked last."""
        return is_zip(probe.head)

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the directory and the pickle, and none of the storages.

        Raises:
            CorruptCheckpointError: the archive or the pickle is damaged or contradicts itself.
            UnknownFormatError: it is a zip file of something else.
        """
        archive = read_archive(source, limits)
        records = Records(archive, _root(source, archive))
        records.read_small()
        seen: dict[Global, Use] = {}
        reader = TensorReader(source, records.place, limits, swapped=records.swapped)
        found = records.unpickle(_PICKLE, reader, limits, seen)
        contents = Contents(
            found.value,
            seen,
            hints=_hints(records),
            findings=(*archive.findings, *records.findings, *reader.findings, *records.strangers()),
            byte_order="big" if records.swapped else "little",
            metadata={f"source:{name}": text for name, text in reader.sources.items()},
        )
        return checkpoint_from(source.name, self.name, contents, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes).

        Archives without checksums give nothing.
        """
        yield from read_archive(source, limits).verify()


class Records:
    """The records below one folder of an archive, and the storages among them.

    Attributes:
        root: the folder, with its slash; empty where the records lie at the top.
        swapped: whether the file was written on a machine of the other byte order.
        small: what the small records beside the pickle say.
        keys: the storages that were asked for, in that order.
    """

    def __init__(self, archive: Archive, root: str, storages: str = "data/") -> None:
        self.archive = archive
        self.root = root
        self.names = frozenset(name.removeprefix(root) for name in archive.entries if name.startswith(root))
        self.storages = storages
        self.findings: list[Finding] = []
        self.keys: list[str] = []
        self.swapped = False
        self.small: dict[str, bytes] = {}

    def read_small(self) -> None:
        """Find out in which order the bytes of elements are, and where the storages are.

        Raises:
            CorruptCheckpointError: the byte order is neither of the two there are.
        """
        names = [name for name in _KNOWN_RECORDS - {_PICKLE} if name in self.names]
        self.small = {name: self.read(name, _SMALL).strip() for name in names}
        order = self.small.get("byteorder", b"little")
        if order not in {b"little", b"big"}:
            raise CorruptCheckpointError(
                f"has byte order {order[:40]!r}", file=self.archive.source.name, place="byteorder"
            )
        self.swapped = order == b"big"
        if any(name.startswith("tensors/") for name in self.names):  # torch 1.4
            self.storages = "tensors/"

    def read(self, name: str, most: int) -> bytes:
        """A record whole, with its checksum checked."""
        return self.archive.read(self.root + name, most)

    def unpickle(
        self,
        name: str,
        reader: TensorReader,
        limits: Limits,
        seen: dict[Global, Use],
        dialect: Dialect | None = None,
    ) -> Unpickled:
        """The object in one of the records, by the reader's own dialect if no other is given."""
        data = self.read(name, limits.pickle_bytes)
        file = self.archive.source.name
        try:
            found = unpickle(data, 0, dialect or reader.dialect(), limits, file=file, stream=name, seen=seen)
        except OpenError as error:
            raise with_dangers(error, seen)  # noqa: B904 - it is the same error
        if found.end != len(data):
            message = f"{len(data) - found.end:,} bytes follow the end of the pickle"
            self.findings.append(Finding("trailing-data", "warning", message, f"{name}, byte {found.end}"))
        return found

    def place_as(self, pattern: str) -> Callable[[str, int], StorageRef]:
        """`place` for records whose names are made of the keys of storages in another way."""
        return lambda key, nbytes: self.place(pattern.format(key), nbytes)

    def place(self, key: str, nbytes: int) -> StorageRef:
        """Where the bytes of a storage are."""
        self.keys.append(key)
        name = self.storages + key
        if name not in self.names:
            message = f"record {name[:110]} is missing"
            self.findings.append(Finding("missing-storage", "danger", message, _PICKLE))
            return StorageRef(nbytes, None, f"its {message}")
        ref = self.archive.storage(self.root + name)
        if ref.nbytes != nbytes:
            raise CorruptCheckpointError(
                f"declares storage {key!r} with {nbytes:,} bytes, its record has {ref.nbytes:,}"
            )
        return ref

    def strangers(self) -> list[Finding]:
        """Records that no checkpoint needs, and records that are compressed."""
        used = {self.storages + key for key in self.keys}
        odd = [name for name in self.names if name not in _KNOWN_RECORDS and name not in used and name[-1:] != "/"]
        odd += [name for name in self.archive.entries if not name.startswith(self.root)]
        found = []
        if odd:
            shown = ", ".join(repr(name[:60]) for name in sorted(odd)[:5])
            message = f"records that the checkpoint does not use: {len(odd):,}, such as {shown}"
            found.append(Finding("extra-record", "info", message))
        packed = sum(self.archive.entries[self.root + name].method == DEFLATED for name in self.names)
        if packed:
            message = f"{packed:,} records are compressed: they are inflated when they are read, and not mapped"
            found.append(Finding("compressed", "info", message))
        return found


def _root(source: Source, archive: Archive) -> str:
    """The folder that everything is in, with its slash; raises when this is not what torch.save writes."""
    names = list(archive.entries)
    with_pickle = [name for name in names if posixpath.basename(name) == _PICKLE and not name.startswith("__MACOSX/")]
    top = min((name.count("/") for name in with_pickle), default=0)
    with_pickle = [name for name in with_pickle if name.count("/") == top]
    if not with_pickle:
        listed = ", ".join(repr(name[:60]) for name in names[:5])
        raise UnknownFormatError(
            f"is a zip file that torch.save did not write; it holds {listed}",
            file=source.name,
            hint="if the checkpoint is inside, unpack the file first",
        )
    if len(with_pickle) > 1:
        raise CorruptCheckpointError(
            f"has {len(with_pickle)} root folders where torch writes one: {', '.join(map(repr, with_pickle[:5]))}",
            file=source.name,
            hint="readers disagree on such files; do not use it",
        )
    return with_pickle[0].removesuffix(_PICKLE)


def _hints(records: Records) -> tuple[Hint, ...]:
    """What the records tell of the torch that wrote them."""
    version = records.small.get("version", b"")
    if ".format_version" in records.names:
        return (Hint("it has a .format_version record", (2, 7)),)
    if "byteorder" in records.names:
        return (Hint("it has a byteorder record and no .format_version", (2, 1), (2, 6)),)
    addresses = any(key.isdigit() and len(key) > 7 for key in records.keys)
    if records.storages == "tensors/" or version == b"1":
        return (Hint("its storages are in tensors/ or its archive version is 1", (1, 4), (1, 4)),)
    if version == b"2":
        return (Hint("its archive version is 2", (1, 5), (1, 5)),)
    if addresses:
        return (Hint("its storages are named by address and its archive version is 3", (1, 6), (1, 8)),)
    if not records.keys:
        return (Hint("it is a zip without a byteorder record", (1, 6), (2, 0)),)
    if records.root != "archive/":
        return (Hint("its storages are numbered, its root is named after the file, no byteorder", (1, 13), (2, 0)),)
    return (Hint("its storages are numbered and it has no byteorder record", (1, 9), (2, 0)),)
