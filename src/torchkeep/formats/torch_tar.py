"""The tar files of torch 0.1: sys_info, pickle, tensors and storages, each a member.

`storages` is a row of (key, location, type), element count and elements; `tensors` of (key, storage key, type), sizes,
strides and offset; `pickle` is the object, which refers to both by key. An alpha wrote no locations and no views.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.source import Probe, Slice, Source
from ..core.tensors import StorageRef
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnknownFormatError
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, Use, truncation_is_corruption
from ._stream import unpickle_at
from ._torch import TensorReader, with_dangers

_BLOCK = 512
_MEMBERS = frozenset({"sys_info", "pickle", "tensors", "storages"})
_REGULAR = frozenset({b"0", b"\0"})
_IGNORED = frozenset({b"x", b"g", b"5"})  # extended headers, and the folder itself
_DIMENSIONS = 64


def is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar member."""
    return head[257:262] == b"ustar"


class TorchTar:
    """Reads the container of torch 0.1."""

    name = "torch_tar"

    def sniff(self, probe: Probe) -> bool:
        """Whether it is a tar archive; one that torch did not write gets a message that says so."""
        return is_tar(probe.head)

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the three pickled members; the elements stay where they are.

        Raises:
            CorruptCheckpointError: there are other members than torch writes, or they contradict each other.
        """
        members = read_members(source)
        if not _MEMBERS & members.keys():
            raise UnknownFormatError(
                f"is a tar archive of {', '.join(map(repr, list(members)[:6])) or 'nothing'}, and no checkpoint",
                file=source.name,
                hint="if a checkpoint is inside, unpack the archive and open that",
            )
        missing = _MEMBERS - {"sys_info"} - members.keys()
        if missing or members.keys() - _MEMBERS:
            raise CorruptCheckpointError(
                f"is a tar archive of {', '.join(map(repr, list(members)[:6]))}; torch 0.1 wrote "
                "'sys_info', 'pickle', 'tensors' and 'storages'",
                file=source.name,
                hint="unpack it; if a checkpoint is inside, open that",
            )
        reading = _Reading(source, members, limits)
        try:
            tree = reading.object()
        except OpenError as error:
            error.file = error.file or source.name
            raise with_dangers(error, reading.seen)  # noqa: B904 - it is the same error
        contents = Contents(
            tree,
            reading.seen,
            hints=(Hint("it is a tar archive", high=(0, 1)),),
            findings=tuple(reading.tensors.findings),
            metadata={f"source:{name}": text for name, text in reading.tensors.sources.items()},
        )
        return checkpoint_from(source.name, self.name, contents, limits)


def read_members(source: Source) -> dict[str, tuple[int, int]]:
    """The regular files of a tar archive: name -> (offset, size in bytes).

    Raises:
        CorruptCheckpointError: a header is damaged, or a member is no regular file or leads elsewhere.
    """
    members: dict[str, tuple[int, int]] = {}
    at = 0
    while at + _BLOCK <= source.size:
        header = bytes(source.read(at, _BLOCK))
        if not any(header):
            break
        name, kind, size = _header(header, source.name, at)
        start = at + _BLOCK
        if start + size > source.size:
            raise _bad(source.name, name, f"declares {size:,} bytes, which leave the file; it is truncated")
        if kind in _REGULAR:
            if name in members:
                raise _bad(source.name, name, "is there twice")
            members[name] = (start, size)
        elif kind not in _IGNORED:
            raise _bad(source.name, name, f"is no regular file (type {kind!r}): links lead out of the archive")
        at = start + -(-size // _BLOCK) * _BLOCK
    return members


def _header(header: bytes, file: str, at: int) -> tuple[str, bytes, int]:
    raw = header[:100].split(b"\0", 1)[0]
    try:
        name = raw.decode().removeprefix("./")
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
        total = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise CorruptCheckpointError("has a damaged tar header", file=file, place=f"byte {at}") from None
    if total != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise CorruptCheckpointError("has a tar header with a wrong checksum", file=file, place=f"byte {at}")
    if name.startswith("/") or ".." in name.split("/"):
        raise _bad(file, name, "leads out of the archive")
    return name, header[156:157], size


def _bad(file: str, name: str, what: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{what}", file=file, place=f"member {name[:100]!r}", hint="do not use the file")


@dataclass(slots=True)
class _Cursor:
    """A place in one member, which moves on as it is read."""

    name: str
    source: Slice
    at: int = 0

    def integers(self, count: int, width: int = 8) -> list[int]:
        """The next little-endian integers."""
        data = bytes(self.source.read(self.at, count * width))
        self.at += count * width
        return [int.from_bytes(data[i : i + width], "little", signed=True) for i in range(0, len(data), width)]


@dataclass(slots=True)
class _Storage:
    """What `storages` says of one storage."""

    kind: Any
    location: str
    numel: int
    ref: StorageRef
    view: Any = None


@dataclass(slots=True)
class _Reading:
    """One reading of an archive."""

    source: Source
    members: dict[str, tuple[int, int]]
    limits: Limits
    seen: dict[Global, Use] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    tensors: TensorReader = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = TensorReader(self.source, self._place, self.limits)

    def object(self) -> Any:
        """The saved object, after the storages and tensors that it refers to."""
        self._read_storages()
        self._read_tensors()
        dialect = self.tensors.dialect()
        whole = Dialect(self._persistent, dialect.builders, dialect.constants, dialect.finishers)
        return self._next(self._cursor("pickle"), whole)

    def _cursor(self, name: str) -> _Cursor:
        return _Cursor(name, Slice(self.source, *self.members[name], name))

    def _next(self, cursor: _Cursor, dialect: Dialect | None = None) -> Any:
        found = unpickle_at(
            cursor.source,
            cursor.at,
            lambda: dialect or Dialect(),
            self.limits,
            stream=cursor.name,
            seen=self.seen,
            name=self.source.name,
        )
        cursor.at = found.end
        return found.value

    def _count(self, cursor: _Cursor) -> int:
        count = self._next(cursor)
        if type(count) is not int or not 0 <= count <= cursor.source.size:
            raise _bad(self.source.name, cursor.name, f"declares {str(count)[:40]} entries")
        return count

    def _entry(self, cursor: _Cursor, sizes: set[int]) -> tuple[Any, ...]:
        entry = self._next(cursor)
        if type(entry) is not tuple or len(entry) not in sizes or type(entry[0]) not in {int, str}:
            raise _bad(self.source.name, cursor.name, "has an entry that torch never wrote")
        return entry

    def _read_storages(self) -> None:
        cursor = self._cursor("storages")
        base = self.members["storages"][0]
        for _ in range(self._count(cursor)):
            key, *rest = self._entry(cursor, {2, 3})
            location = rest[0] if len(rest) == 2 else "cpu"
            kind = rest[-1]
            (numel,) = cursor.integers(1)
            if not isinstance(kind, Global) or type(location) is not str or not 0 <= numel < 1 << 62:
                raise _bad(self.source.name, cursor.name, f"has a storage of {numel:,} elements of an unknown type")
            nbytes = numel * self.tensors.storage_dtype(kind).itemsize
            self.storages[_key(key)] = _Storage(kind, location, numel, StorageRef(nbytes, base + cursor.at))
            cursor.source.read(cursor.at, nbytes)
            cursor.at += nbytes
        if cursor.at < cursor.source.size:
            self._read_views(cursor)

    def _read_views(self, cursor: _Cursor) -> None:
        views = self._next(cursor)
        if not isinstance(views, list):
            raise _bad(self.source.name, cursor.name, "has a list of views that is none")
        for view in views:
            if type(view) is not tuple or len(view) != 4 or _key(view[1]) not in self.storages:
                raise _bad(self.source.name, cursor.name, "has a view of a storage that is not there")
            key, root, offset, size = view
            whole = self.storages[_key(root)]
            if type(size) is not int:
                raise _bad(self.source.name, cursor.name, "has a view that torch never wrote")
            self.storages[_key(key)] = _Storage(
                whole.kind, whole.location, whole.numel, whole.ref, (_key(key), offset, size)
            )

    def _place(self, key: str, nbytes: int) -> StorageRef:
        return self.storages[key].ref

    def _storage(self, key: str) -> Any:
        storage = self.storages.get(key)
        if storage is None:
            raise CorruptCheckpointError(f"refers to storage {key[:100]!r}, which is not there")
        ident = ("storage", storage.kind, key, storage.location, storage.numel, storage.view)
        return self.tensors.persistent(ident)

    def _read_tensors(self) -> None:
        cursor = self._cursor("tensors")
        for _ in range(self._count(cursor)):
            key, storage, _ = self._entry(cursor, {3})
            dimensions = cursor.integers(2, 4)[0]
            if not 0 <= dimensions <= _DIMENSIONS:
                raise _bad(self.source.name, cursor.name, f"has a tensor of {dimensions} dimensions")
            sizes, strides = cursor.integers(dimensions), cursor.integers(dimensions)
            (offset,) = cursor.integers(1)
            made = self.tensors.strided(self._storage(_key(storage)), offset, tuple(sizes), tuple(strides))
            self.objects[_key(key)] = made

    def _persistent(self, ident: Any) -> Any:
        if isinstance(ident, tuple):
            return self.tensors.persistent(("module", *ident) if len(ident) == 3 else ident)
        key = _key(ident)
        return self.objects[key] if key in self.objects else self._storage(key)


def _key(key: Any) -> str:
    """A key as text: the object's pickle has it as text where the other members have a number."""
    if type(key) is str or (type(key) is int and key.bit_length() < 200):
        return str(key)
    raise CorruptCheckpointError("has a key that is neither a number nor text")
