"""The files that `torch.save` writes since 1.6 (1.5 when asked): a stored zip of a pickle and its storages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import StorageRef
from ..core.tree import Global
from ..errors import (
    CorruptCheckpointError,
    OpenError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedFeatureError,
)
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Use, truncation_is_corruption, unpickle
from ._torch import TensorReader, with_dangers
from ._zip import STORED, Archive, Entry, check_crcs, checksum_holds, read_archive

_SMALL = 1 << 16
_KNOWN_RECORDS = frozenset(
    {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
)
_OTHER_LAYOUTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(.*/)?\.data/extern_modules"), "a torch.package archive"),
    (
        re.compile(r"serialized_exported_program\.json|[^/]+/(archive_format|models/.*\.json)"),
        "a program of torch.export",
    ),
    (re.compile(r"[^/]+/(constants\.pkl|bytecode\.pkl|model\.json|code/.*)"), "a TorchScript archive"),
)


class TorchZip:
    """Reads zip checkpoints of torch 1.5 and later."""

    name = "torch_zip"

    def sniff(self, probe: Probe) -> bool:
        """Every zip file is taken here, so that one that is no checkpoint gets a good message."""
        return probe.head[:4] in {b"PK\3\4", b"PK\5\6"}

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the directory and the pickle, and none of the storages.

        Raises:
            CorruptCheckpointError: the archive or the pickle is damaged or contradicts itself.
            UnsupportedFeatureError: it is another kind of archive that torch writes, or holds unusual tensors.
            UnknownFormatError: it is a zip file of something else.
        """
        archive = read_archive(source, limits)
        root = _root(source, archive)
        records = _Records(source, archive, root)
        version, alignment = _check_small_records(records)
        seen: dict[Global, Use] = {}
        reader = TensorReader(source, records.place)
        data = records.read("data.pkl", limits.pickle_bytes)
        try:
            found = unpickle(data, 0, reader.dialect(), limits, file=source.name, stream="data.pkl", seen=seen)
        except OpenError as error:
            raise with_dangers(error, seen)  # noqa: B904 - it is the same error
        if found.end != len(data):
            message = f"{len(data) - found.end:,} bytes follow the end of the pickle"
            records.findings.append(Finding("trailing-data", "warning", message, f"data.pkl, byte {found.end}"))
        contents = Contents(
            found.value,
            seen,
            hints=_hints(records, version, alignment),
            findings=(*archive.findings, *records.findings, *records.strangers()),
            metadata={f"source:{name}": text for name, text in reader.sources.items()},
        )
        return checkpoint_from(source.name, self.name, contents, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes).

        Archives without checksums give nothing.
        """
        archive = read_archive(source, limits)
        if archive.checksums:
            yield from check_crcs(source, archive.entries.values())


class _Records:
    """The records below the one root folder of an archive."""

    def __init__(self, source: Source, archive: Archive, root: str) -> None:
        self.source = source
        self.root = root
        self.checksums = archive.checksums
        self.entries = {name.removeprefix(root): entry for name, entry in archive.entries.items()}
        self.findings: list[Finding] = []
        self.keys: list[str] = []

    def read(self, name: str, most: int) -> bytes:
        """A record whole, with its checksum checked."""
        entry = self.entries[name]
        if entry.nbytes > most:
            raise UnsafeCheckpointError(f"has {entry.nbytes:,} bytes", file=self.source.name, place=name)
        if self.checksums and not checksum_holds(self.source, entry):
            raise CorruptCheckpointError(
                "is damaged: its checksum is wrong", file=self.source.name, place=name, hint="fetch the file again"
            )
        return bytes(self.source.read(entry.offset, entry.nbytes))

    def place(self, key: str, nbytes: int) -> StorageRef:
        """Where the bytes of a storage are."""
        self.keys.append(key)
        entry = self.entries.get(f"data/{key}")
        if entry is None:
            problem = f"its record data/{key[:100]} is missing"
            self.findings.append(
                Finding("missing-storage", "danger", f"record data/{key[:100]} is missing", "data.pkl")
            )
            return StorageRef(nbytes, None, problem)
        if entry.nbytes != nbytes:
            raise CorruptCheckpointError(
                f"declares storage {key!r} with {nbytes:,} bytes, its record has {entry.nbytes:,}"
            )
        return StorageRef(nbytes, entry.offset)

    def strangers(self) -> list[Finding]:
        """Records that no checkpoint needs."""
        used = {f"data/{key}" for key in self.keys}
        odd = [name for name in self.entries if name not in _KNOWN_RECORDS and name not in used and name[-1:] != "/"]
        if not odd:
            return []
        shown = ", ".join(repr(name[:60]) for name in odd[:5])
        return [
            Finding("extra-record", "info", f"records that the checkpoint does not use: {len(odd):,}, such as {shown}")
        ]


def _root(source: Source, archive: Archive) -> str:
    """The folder that everything is in, with its slash; raises when this is not what torch.save writes."""
    names = list(archive.entries)
    for pattern, what in _OTHER_LAYOUTS:
        if any(map(pattern.fullmatch, names)):
            raise UnsupportedFeatureError(
                f"is {what}, which torchkeep does not read yet",
                file=source.name,
                hint="load it with torch and save the state dict of the model",
            )
    if all(name.endswith(".npy") for name in names):
        raise UnsupportedFeatureError("is a NumPy archive (.npz), which torchkeep does not read yet", file=source.name)
    roots = sorted({name.split("/", 1)[0] for name in names})
    with_pickle = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if not with_pickle:
        listed = ", ".join(repr(name[:60]) for name in names[:5])
        raise UnknownFormatError(
            f"is a zip file that torch.save did not write; it holds {listed}",
            file=source.name,
            hint="if the checkpoint is inside, unpack the file first",
        )
    if len(roots) > 1:
        raise CorruptCheckpointError(
            f"has {len(roots)} root folders where torch writes one: {', '.join(map(repr, roots[:5]))}",
            file=source.name,
            hint="readers disagree on such files; do not use it",
        )
    root = roots[0] + "/"
    if any(name.startswith(root + "tensors/") for name in names):
        raise UnsupportedFeatureError(
            "is a zip of torch 1.4 (its storages are in tensors/), which torchkeep does not read yet", file=source.name
        )
    _check_stored(source, archive.entries.values())
    return root


def _check_stored(source: Source, entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.method != STORED:
            raise UnsupportedFeatureError(
                f"has compressed records ({entry.name[:100]!r}), which cannot be read lazily",
                file=source.name,
                hint="unpack it and pack it again without compression: zip -0 -r new.pth folder",
            )


def _check_small_records(records: _Records) -> tuple[str, bool]:
    """The archive's version, and whether it tells its alignment; a big-endian file is refused."""
    small = {
        name: records.read(name, _SMALL).strip() for name in _KNOWN_RECORDS - {"data.pkl"} if name in records.entries
    }
    order = small.get("byteorder", b"little")
    if order == b"big":
        raise UnsupportedFeatureError(
            "was written on a big-endian machine, which torchkeep does not read yet", file=records.source.name
        )
    if order != b"little":
        raise CorruptCheckpointError(f"has byte order {order[:40]!r}", file=records.source.name, place="byteorder")
    return small.get("version", b"").decode("ascii", "replace"), ".format_version" in small


def _hints(records: _Records, version: str, format_version: bool) -> tuple[Hint, ...]:
    """What the records tell of the torch that wrote them."""
    if format_version:
        return (Hint("it has a .format_version record", (2, 7)),)
    if "byteorder" in records.entries:
        return (Hint("it has a byteorder record and no .format_version", (2, 1), (2, 6)),)
    addresses = any(key.isdigit() and len(key) > 7 for key in records.keys)
    if version == "2":
        return (Hint("its archive version is 2", (1, 5), (1, 5)),)
    if addresses:
        return (Hint("its storages are named by address and its archive version is 3", (1, 6), (1, 8)),)
    if not records.keys:
        return (Hint("it is a zip without a byteorder record", (1, 6), (2, 0)),)
    if records.root != "archive/":
        return (Hint("its storages are numbered, its root is named after the file, no byteorder", (1, 13), (2, 0)),)
    return (Hint("its storages are numbered and it has no byteorder record", (1, 9), (2, 0)),)
