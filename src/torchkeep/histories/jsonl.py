"""JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..core.history import History
from ..core.rows import Gathering
from ..core.table import shorten

_BLOCK = 1 << 24  # bytes that are decoded at a time
_LINES = 32  # that are decoded one by one, as Python reads JSON, when one of them has NaN or is damaged
_DECODER = msgspec.json.Decoder(dict[str, Any])
_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """A file that grows by one JSON object a record; NaN and Infinity are read as Python writes them."""

    name = "jsonl"
    wants = "JSON lines (one object a line)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By a first line that is a JSON object, or the beginning of one that was torn."""
        return head.removeprefix(_BOM).lstrip().startswith(b"{")

    def read(self, path: Path) -> History:
        """All lines that are objects."""
        gathering = Gathering()
        damaged: list[int] = []
        count, torn = 0, False
        for block in _blocks(path):
            records, odd = _objects(block, block.count(b"\n") + 1)
            gathering.add_records(records)
            damaged += [count + number for number in odd]
            torn = not block.endswith(b"\n") and bool(odd) and odd[-1] == block.count(b"\n") + 1
            count += block.count(b"\n")
        notes: tuple[str, ...] = ("the last line is torn and is left out",) if torn else ()
        damaged = damaged[:-1] if torn else damaged
        if damaged:
            notes += (f"{len(damaged)} lines are no JSON objects and are left out: {shorten(map(str, damaged), 5)}",)
        return History(gathering.rows(), tuple(damaged), notes=notes)


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces that end with a line."""
    with path.open("rb") as file:
        rest = file.read(len(_BOM)).removeprefix(_BOM)
        while piece := file.read(_BLOCK):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            yield whole + end
        if rest.strip(b"\0 \t\r"):
            yield rest


def _objects(block: bytes, count: int) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of some lines, and the numbers of the lines that are none, from 1: all at once, else in parts."""
    try:
        return _DECODER.decode_lines(block), []
    except (msgspec.DecodeError, ValueError):
        if count <= _LINES:
            return _one_by_one(block)
    records, odd = [], []
    lines = block.split(b"\n")
    size = max(_LINES, count // 64)
    for begin in range(0, len(lines), size):
        part = lines[begin : begin + size]
        found, bad = _objects(b"\n".join(part), len(part))
        records += found
        odd += [begin + number for number in bad]
    return records, odd


def _one_by_one(block: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a block, and the numbers of the lines that are none, from 1."""
    records, odd = [], []
    for number, line in enumerate(block.split(b"\n"), start=1):
        text = line.strip(b"\0 \t\r")
        if not text:
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            odd.append(number)
    return records, odd
