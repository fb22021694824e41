"""The metrics of a run: an append-only list of records, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import msgspec
from blake3 import blake3

from ..errors import TorchkeepError
from . import tagged
from .rows import Column, Rows, rows_of
from .table import Table

RESUMED = "$resumed"
_MARK = b'"$resumed"'
_CHECKED = 16  # length of the checksum at the end of a line


@dataclass(frozen=True)
class History(Sequence[dict[str, Any]]):
    """Metrics records in the order in which they were logged.

    Attributes:
        records: one dict a call of `run.log`.
        damaged: numbers of lines (from 1) that cannot be read, a torn last line excepted.
        title: what was read.
        source: who wrote it: `run`, `csv`, `jsonl`, `json`, `tensorboard` or `hf`; empty for one that was not read.
        names: role -> name, where the caller said which is which, e.g. `{"train_loss": "my/loss"}`.
        notes: what was dropped or put in order while it was read, in sentences.
    """

    records: Sequence[dict[str, Any]] = ()
    damaged: tuple[int, ...] = ()
    title: str = ""
    source: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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

    def columns(self) -> Mapping[str, Column]:
        """The values of every metric with the numbers of the records that have it; objects in records laid flat."""
        return rows_of(self.records).columns

    def table(self) -> Table:
        """The last twenty records."""
        named = self.records.columns if isinstance(self.records, Rows) else (key for one in self.records for key in one)
        columns = tuple(dict.fromkeys(named))
        rows = tuple(tuple(_cell(record.get(key)) for key in columns) for record in self.records[-20:])
        title = f"{self.title}: {len(self)} records" if self.title else f"history: {len(self)} records"
        return Table(title, columns=columns, rows=rows, notes=self.notes)

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
    value = msgspec.json.decode(body + b"}")
    return tagged.decode(value) if b'"$' in body else value  # nothing in it is tagged


def whole_lines(data: bytes) -> int:
    """Length of the data without a torn last line."""
    return data.rfind(b"\n") + 1


def decode_history(data: bytes) -> History:
    """The history in the bytes of a file; a torn last line is dropped, an unreadable one elsewhere is counted.

    Records form a tree: after a mark the next record follows the one that stood at the offset which the mark names.
    """
    kept: list[dict[str, Any]] = []
    before: list[int] = []  # place in `kept` of the record that each one follows, -1 for none
    marked = _MARK in data
    at_offset, end, offset = {0: -1}, -1, 0
    damaged = []
    for number, line in enumerate(data[: whole_lines(data)].split(b"\n")[:-1], start=1):
        offset += len(line) + 1
        try:
            record = _record(line)
            mark = record.get(RESUMED)
            if mark is None:
                kept.append(record)
                before.append(end)
                end = len(kept) - 1
            else:
                end = at_offset[mark["nbytes"]]
        except (TorchkeepError, ValueError, AttributeError, KeyError, TypeError):
            damaged.append(number)
        if marked:
            at_offset[offset] = end
    places = []
    while end >= 0:
        places.append(end)
        end = before[end]
    return History(tuple(kept[place] for place in reversed(places)), tuple(damaged))


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
