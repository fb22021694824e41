"""Every pickle in a file, wherever it lies, read for the names in it: what a scan needs and opening does not.

Opening reads what makes up the checkpoint. A pickle can also lie in another record of the archive, in a member of a
tar, in an archive within the archive, behind another pickle, in bytes that a pickle hands to an unpickler, or in a
file that cannot be opened at all. Nothing here makes a tensor, and only the limits end the search early, which is a
finding itself.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from ..core.checkpoint import SEVERITIES, Finding
from ..core.limits import Limits
from ..core.source import Held, Slice, Source
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnsafeCheckpointError
from ._directory import DEFLATED, STORED
from ._inflate import Inflated, raw_deflate
from ._lenient import OPCODES, Met, names_in
from ._loose_zip import Loose, inflated, loose_records
from ._names import findings_of
from ._pause import collector_paused
from ._pickle import Use
from ._zip import is_zip
from .compressed import KINDS
from .torch_tar import is_tar

_HEAD = 512
_WINDOW, _GROWTH = 256, 16  # most records are no pickles, and most pickles are short
_UNSURE = 1 << 16  # how far something is read that may be a pickle and names nothing
_RECORDS = 1_000_000
_MEMBERS = 100_000
_ROW = 100_000
_SEARCHED = 1 << 24  # bytes behind the last pickle, and at the end, in which further ones are looked for
_TRIED = 1 << 26  # bytes of what may be pickles that are read in that search
_WORK, _WORK_RATIO = 1 << 24, 16  # bytes of pickles that are read, and those for each byte of the file: records overlap
_TEXT_BYTES = 1 << 20
_HELD = 1 << 26  # what is inflated in memory of a record that is damaged
_MAGICS = tuple(magic for magic, _, _ in KINDS)
_NPY = b"\x93NUMPY"
_START = re.compile(rb"\x80[\x00-\x05][" + b"".join(re.escape(bytes([code])) for code in OPCODES) + rb"]")
_NAME = re.compile(r"[\w.<>-]+")
_PICKLE_NAMES = (".pkl", ".pickle", ".pck", ".joblib", ".metadata")


@dataclass(frozen=True, slots=True)
class Survey:
    """What the pickles of a file name.

    Attributes:
        pickles: how many streams that name anything were read.
        whole: whether each of them was read to its end.
        findings: what is to be said about the names, the worst first, each with the record and the byte it stands at.
    """

    pickles: int
    whole: bool
    findings: tuple[Finding, ...]


@collector_paused()
def survey(source: Source, limits: Limits) -> Survey:
    """Read every pickle in a file for its names. Damage ends the reading of one stream, and never that of the file."""
    surveyor = _Surveyor(limits, min(2 * limits.pickle_bytes, _WORK + _WORK_RATIO * source.size))
    surveyor.todo.append(_Item(lambda: source, "", limits.nesting))
    while surveyor.todo:
        item = surveyor.todo.pop()
        try:
            surveyor.look(item, item.open())
        except UnsafeCheckpointError as error:
            surveyor.refused(error, item.place)
            if surveyor.left < 0:
                break
        except OpenError as error:
            surveyor.findings.append(Finding("unread", "warning", error.message, item.place))
    found = sorted(dict.fromkeys(surveyor.findings), key=lambda finding: -SEVERITIES.index(finding.severity))
    return Survey(surveyor.pickles, surveyor.whole, tuple(found))


@dataclass(frozen=True, slots=True)
class _Item:
    """Bytes that are still to be looked at.

    Attributes:
        open: answers them.
        place: where they are in the file, as far as that is not the file itself.
        nesting: how many containers may still be opened within.
        sure: whether they are a pickle by their name, or by what takes them.
        apart: whether pickles may lie apart in them, as they do in the members of a tar.
    """

    open: Callable[[], Source]
    place: str
    nesting: int
    sure: bool = False
    apart: bool = False

    @property
    def stream(self) -> str:
        return self.place or "pickle"


@dataclass(slots=True)
class _Surveyor:
    """One survey: what is still to be looked at, how much may still be read, and what was found."""

    limits: Limits
    left: int
    todo: list[_Item] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    pickles: int = 0
    whole: bool = True

    def charge(self, nbytes: int) -> None:
        """Count bytes that are read as pickles, for records may lie over each other."""
        self.left -= nbytes
        if self.left < 0:
            raise UnsafeCheckpointError("holds more bytes of pickles than its size allows: they lie over each other")

    def refused(self, error: UnsafeCheckpointError, place: str) -> None:
        """Note what would cost too much."""
        self.findings.append(Finding("unsafe", "danger", error.message, error.place or place))

    def _unread(self, item: _Item, message: str) -> None:
        self.findings.append(Finding("unread", "warning", message, item.place))

    def look(self, item: _Item, source: Source) -> None:
        """Find the pickles in one stretch of bytes, and the containers that are to be looked at next."""
        if not source.size:
            return
        head = bytes(source.read(0, min(_HEAD, source.size)))
        if head.startswith(_MAGICS):
            self._push(item, lambda: self._unpacked(source, head), "")
        elif is_tar(head) or _is_old_tar(head):
            self._tar(item, source)
            item = replace(item, apart=False)  # its members are looked at one by one
        elif is_zip(head) or not item.place:  # an archive may also lie behind something else
            self._zip(item, source)
        if not is_zip(head):
            self._row(item, source, _npy_data(head) if head.startswith(_NPY) else 0)

    def _push(
        self, item: _Item, source: Callable[[], Source], name: str, *, apart: bool = False, sure: bool = False
    ) -> None:
        place = ": ".join(part for part in (item.place, name) if part)
        if item.nesting < 1:
            self.refused(UnsafeCheckpointError("has files inside of files deeper than Limits.nesting"), place)
            return
        sure = sure or name.lower().endswith(_PICKLE_NAMES)
        self.todo.append(_Item(source, place, item.nesting - 1, sure, apart))

    # Containers

    def _unpacked(self, source: Source, head: bytes) -> Source:
        """What a compressed file holds, as far as it can be inflated."""
        fresh = next(fresh for magic, _, fresh in KINDS if head.startswith(magic))
        return self._inflated(source, fresh)

    def _inflated(self, source: Source, fresh: Callable[[], object]) -> Source:
        try:
            return Inflated(source, fresh, self.limits)
        except CorruptCheckpointError:  # something that reads as it inflates runs what comes before the damage
            raw = source.read(0, min(source.size, _HELD))
            return Held(inflated(raw, _HELD, fresh()), source.name)

    def _zip(self, item: _Item, source: Source) -> None:
        odd = 0
        for record in loose_records(source, _RECORDS):
            if record.method not in {STORED, DEFLATED}:
                odd += 1
            elif self._promises(record.head(source, _HEAD)):
                self._push(item, partial(self._record, source, record), record.name)
        if odd:
            self._unread(item, f"{odd:,} records are compressed by other methods than deflate and were not looked into")

    def _record(self, source: Source, record: Loose) -> Source:
        packed = record.bytes_of(source)
        if record.method == STORED:
            return packed
        whole = self._inflated(packed, raw_deflate)
        bomb = whole.size > max(_TEXT_BYTES, self.limits.inflated_ratio * record.stored)
        if bomb and not _holds_others(bytes(whole.read(0, _HEAD))):
            raise UnsafeCheckpointError(
                f"inflates from {record.stored:,} to {whole.size:,} bytes, more than Limits.inflated_ratio allows",
                place=record.name,
            )
        return whole

    def _promises(self, head: bytes) -> bool:
        """Whether a record may be a pickle or hold one, by its first bytes."""
        if head.startswith(_NPY):
            return b"O" in head[: _npy_data(head)]  # only arrays of objects are pickles
        if _holds_others(head):
            return True
        if not head or head[0] not in OPCODES:
            return False
        met = names_in(head, self.limits, "")
        return met.cut or met.ended or met.acts or bool(met.seen and head[:1] == b"\x80") or met.problem is not None

    def _tar(self, item: _Item, source: Source) -> None:
        """The members as tarfile lists them, which is what torch reads such files with."""
        try:
            with tarfile.open(fileobj=_AsFile(source), mode="r:") as archive:  # type: ignore[call-overload]
                for number, member in enumerate(archive):
                    if number == _MEMBERS:
                        raise UnsafeCheckpointError(f"has more than {_MEMBERS:,} members")
                    start, end = member.offset_data, min(member.offset_data + member.size, source.size)
                    if 0 <= start < end:
                        part = partial(Slice, source, start, end - start, member.name)
                        self._push(item, part, member.name, apart=True)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError) as error:
            self._unread(item, f"is a tar archive that cannot be read to its end: {error}")

    # Pickles

    def _row(self, item: _Item, source: Source, start: int) -> None:
        """Pickles one after another, as long as there are any; then those that lie apart."""
        seen: dict[Global, Use] = {}
        at, streams = start, 0
        while at < source.size and streams < _ROW:
            sure = item.sure or bytes(source.read(at, 1)) == b"\x80"
            met = self._stream(item, source, at, sure=sure)
            self.charge(met.end - at)
            if met.problem is not None and (sure or met.acts):
                self.refused(met.problem, item.stream)
            if not (met.ended or met.acts or (sure and (met.seen or met.findings))):
                break
            if item.sure or not item.place or any(map(_is_a_name, met.seen)):  # numbers can look like a pickle
                self._take(item, met, seen)
            streams += 1
            at = met.end
            if not met.ended:
                break
        if streams == _ROW:
            self._unread(item, f"holds more than {_ROW:,} pickles one after another; those behind them were not read")
        if streams or item.apart:
            self._search(item, source, at, seen)
        self.findings += findings_of(seen)

    def _search(self, item: _Item, source: Source, start: int, seen: dict[Global, Use]) -> None:
        """Pickles that lie behind others, with something else between."""
        size, done, left = source.size, start, _TRIED
        middle = min(start + _SEARCHED, size)
        for first, last in ((start, middle), (max(middle, size - _SEARCHED), size)):
            for found in _START.finditer(source.read(first, last - first)):
                at = first + found.start()
                if at < done:
                    continue
                met = self._stream(item, source, at, sure=False)
                if (met.ended or met.acts) and any(map(_is_a_name, met.seen)):
                    self._take(item, met, seen)
                    done = met.end
                left -= met.end - at
                if left < 0:
                    self._unread(
                        item, "has very many places where pickles may begin behind the first; not all were tried"
                    )
                    return

    def _stream(self, item: _Item, source: Source, at: int, *, sure: bool) -> Met:
        """One pickle, through a window that grows while the pickle goes on."""
        window = _WINDOW
        while True:
            length = min(window, source.size - at, self.limits.pickle_bytes)
            met = names_in(bytes(source.read(at, length)), self.limits, item.stream, at)
            met.end += at
            if not met.cut or at + length >= source.size:
                return met
            if length == self.limits.pickle_bytes:
                met.problem = UnsafeCheckpointError(f"has a pickle of more than {length:,} bytes (Limits.pickle_bytes)")
                return met
            if length >= _UNSURE and not (sure or met.seen):
                return met
            window *= _GROWTH

    def _take(self, item: _Item, met: Met, seen: dict[Global, Use]) -> None:
        """Keep what was met in a stream, and look into the bytes that it hands to an unpickler."""
        self.pickles += bool(met.seen)
        self.whole &= met.ended
        self.findings += met.findings
        for named, use in met.seen.items():
            known = seen.setdefault(named, use)
            if known.how == "named" or use.how == "called":
                known.how = use.how
        for what, raw in met.inner:
            self.charge(len(raw))
            name = f"bytes for {what}"
            self._push(item, partial(Held, raw, name), name, sure=True)


class _AsFile:
    """A source as what tarfile reads from."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self._source.size - self._at)
        data = bytes(self._source.read(self._at, min(count, rest) if count >= 0 else rest)) if rest else b""
        self._at += len(data)
        return data

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def tell(self) -> int:
        return self._at


def _holds_others(head: bytes) -> bool:
    """Whether bytes begin as a container does that may have pickles in it."""
    return is_zip(head) or head.startswith(_MAGICS) or is_tar(head) or _is_old_tar(head)


def _is_a_name(named: Global) -> bool:
    return bool(_NAME.fullmatch(named.module) and _NAME.fullmatch(named.name))


def _is_old_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar without a magic: by its checksum."""
    digits = head[148:156].strip(b"\0 ")
    if len(head) < _HEAD or not digits.isdigit() or len(digits) > 8:
        return False
    return bool(re.fullmatch(rb"[0-7]+", digits)) and int(digits, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:])


def _npy_data(head: bytes) -> int:
    """Where the pickle of an array of objects begins."""
    width = 2 if head[6:7] == b"\1" else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")
