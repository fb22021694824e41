"""Archives of torch.package: pickles, the storages that they share, and the source text of their classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..core import tree as trees
from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tree import Global
from ..errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFeatureError
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, Use, truncation_is_corruption
from ._torch import TensorReader
from ._zip import Archive, find_record, is_zip, read_archive
from .torch_zip import Records

_MARK = re.compile(r"((?:[^/]+/)?)\.data/extern_modules")
_MANGLED = re.compile(r"^<torch_package_\d+>\.")


class TorchPackage:
    """Reads packages; the source in them is text and stays text."""

    name = "torch_package"

    def sniff(self, probe: Probe) -> bool:
        """A zip with the list of modules that a package does not carry itself."""
        return is_zip(probe.head) and any(_MARK.fullmatch(name) for name in probe.entries or ())

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read every pickle of the package: the object itself where there is one, else a dict by record name.

        Raises:
            CorruptCheckpointError: the archive or a pickle is damaged or contradicts itself.
        """
        archive = read_archive(source, limits)
        root = find_record(archive, _MARK, "package of torch.package")[1]
        records = Records(archive, root, ".data/")
        records.read_small()
        seen: dict[Global, Use] = {}
        reader = TensorReader(source, records.place_as("{}.storage"), limits, swapped=records.swapped)
        names = sorted(name for name in records.names if name.endswith(".pkl"))
        objects = {name: records.unpickle(name, reader, limits, seen, _dialect(reader)).value for name in names}
        tree: Any = objects[names[0]] if len(names) == 1 else objects
        _unmangle(tree, limits)
        python = [name for name in records.names if name.endswith(".py")]
        contents = Contents(
            tree,
            seen,
            hints=(Hint("it is a package of torch.package", (1, 9)),),
            findings=(*archive.findings, *records.findings, *reader.findings),
            byte_order="big" if records.swapped else "little",
            metadata=_sources(archive, root, python, limits),
        )
        return checkpoint_from(source.name, self.name, contents, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes)."""
        yield from read_archive(source, limits).verify()


def _dialect(reader: TensorReader) -> Dialect:
    """Keys of storages are numbers here, and objects may ask a module of the package to build them."""
    known = reader.dialect()

    def persistent(ident: Any) -> Any:
        if type(ident) is tuple and len(ident) == 5 and ident[0] == "storage" and type(ident[2]) is int:
            return reader.persistent((ident[0], ident[1], str(ident[2])[:30], *ident[3:]))
        if type(ident) is tuple and ident and ident[0] == "reduce_package":
            raise UnsupportedFeatureError(
                "has objects that a module of the package builds, such as graph modules of torch.fx",
                hint="import it with torch.package if you trust it, and save the state dict",
            )
        raise CorruptCheckpointError("has a persistent id of a form that torch.package never wrote")

    return replace(known, persistent=persistent)


def _unmangle(root: Any, limits: Limits) -> None:
    """Take the name of the importer off the classes of a package that was packed out of another one."""
    for record in trees.records(root, limits):
        if isinstance(record.cls, Global) and _MANGLED.match(record.cls.module):
            record.cls = Global(_MANGLED.sub("", record.cls.module), record.cls.name)


def _sources(archive: Archive, root: str, names: list[str], limits: Limits) -> dict[str, str]:
    """The text of every module in the package, by its dotted name."""
    total = sum(archive.entries[root + name].nbytes for name in names)
    if total > limits.pickle_bytes:
        raise UnsafeCheckpointError(f"has {total:,} bytes of source (Limits.pickle_bytes)", file=archive.source.name)
    texts = {name: archive.read(root + name, limits.pickle_bytes).decode("utf-8", "replace") for name in sorted(names)}
    return {f"source:{name.removesuffix('.py').replace('/', '.')}": text for name, text in texts.items()}
