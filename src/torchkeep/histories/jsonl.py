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
        decoder = msgspec.json.Decoder(dict[str, Any])
        damaged: list[int] = []
        count, torn = 0, False
        for block in _blocks(path):
            try:
                records = decoder.decode_lines(block)
            except (msgspec.DecodeError, ValueError):
                records, odd = _one_by_one(block)
                damaged += [count + number for number in odd]
                torn = not block.endswith(b"\n") and bool(odd) and odd[-1] == block.count(b"\n") + 1
            gathering.add_records(records)
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
