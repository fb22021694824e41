"""The metrics of a run: an append-only list of records, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import msgspec
from blake3 import blake3

from ..errors import TorchkeepError
from . import tagged
from .table import Table

RESUMED = "$resumed"
_CHECKED = 16  # length of the checksum at the end of a line


@dataclass(frozen=True)
class History(Sequence[dict[str, Any]]):
    """Metrics records in the order in which they were logged.

    Attributes:
        records: one dict a call of `run.log`.
        damaged: numbers of lines (from 1) that cannot be read, a torn last line excepted.
    """

    records: tuple[dict[str, Any], ...] = ()
    damaged: tuple[int, ...] = ()

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def metric(self, name: str) -> list[Any]:
        """The values of one metric, in order, from the records that have it."""
        return [record[name] for record in self.records if name in record]

    @property
    def last(self) -> dict[str, Any]:
        """The latest value of every metric."""
        merged: dict[str, Any] = {}
        for record in self.records:
            merged |= record
        return merged

    def table(self) -> Table:
        """The last twenty records."""
        columns = tuple(dict.fromkeys(key for record in self.records for key in record))
        rows = tuple(tuple(_cell(record.get(key)) for key in columns) for record in self.records[-20:])
        return Table(f"history: {len(self)} records", columns=columns, rows=rows)

    def __str__(self) -> str:
        return str(self.table())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def encode_record(record: dict[str, Any]) -> bytes:
    """One line of a history file."""
    return _line(tagged.encode(record))


def resume_mark(sequence: int, nbytes: int) -> bytes:
    """The line that says: continued from this snapshot, the history is what the first `nbytes` of the file say."""
    return _line({RESUMED: {"sequence": sequence, "nbytes": nbytes}})


def _line(value: Any) -> bytes:
    """A JSON object whose last member, `$`, is a checksum of what stands before it."""
    body = msgspec.json.encode(value)[:-1]
    return body + _checksum(body) + b"\n"


def _checksum(body: bytes) -> bytes:
    return b',"$":"' + blake3(body).hexdigest(4).encode() + b'"}'


def _record(line: bytes) -> Any:
    body, checksum = line[:-_CHECKED], line[-_CHECKED:]
    if _checksum(body) != checksum:
        raise ValueError("it changed after it was written")
    return tagged.decode(msgspec.json.decode(body + b"}"))


def whole_lines(data: bytes) -> int:
    """Length of the data without a torn last line."""
    return data.rfind(b"\n") + 1


def decode_history(data: bytes) -> History:
    """The history in the bytes of a file; a torn last line is dropped, an unreadable one elsewhere is counted.

    Records form a tree: after a mark the next record follows the one that stood at the offset which the mark names.
    """
    end: _Node = None
    at_offset: dict[int, _Node] = {0: None}
    offset = 0
    damaged = []
    for number, line in enumerate(data[: whole_lines(data)].split(b"\n")[:-1], start=1):
        offset += len(line) + 1
        try:
            record = _record(line)
            mark = record.get(RESUMED)
            end = (end, record) if mark is None else at_offset[mark["nbytes"]]
        except (TorchkeepError, ValueError, AttributeError, KeyError, TypeError):
            damaged.append(number)
        at_offset[offset] = end
    records = []
    while end is not None:
        end, record = end
        records.append(record)
    return History(tuple(reversed(records)), tuple(damaged))


def followed(data: bytes) -> list[tuple[int, int]]:
    """The stretches of a history file, first and last offset, that its history follows, without abandoned branches."""
    starts = [(0, 0)]  # where a stretch begins in the file, and the offset that it goes on from
    offset = 0
    for line in data[: whole_lines(data)].split(b"\n")[:-1]:
        offset += len(line) + 1
        if RESUMED.encode() in line:
            try:
                starts.append((offset, _record(line)[RESUMED]["nbytes"]))
            except (TorchkeepError, ValueError, KeyError, TypeError):
                continue
    end, found = offset, []
    for start, before in reversed(starts):
        if start <= end:
            found.append((start, end))
            end = before
    return found[::-1]


_Node = Any
"""A record and the one before it, (node, record); None before the first."""
