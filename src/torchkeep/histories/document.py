"""One JSON document: a list of objects, or an object of lists as Keras's `History.history` is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.history import History
from ..core.rows import Gathering, packed, rows_of
from ..errors import CorruptCheckpointError, UnknownFormatError

_LARGEST = 1 << 30


class JsonDocument:
    """A history that was written at once."""

    name = "json"
    wants = "a JSON document (a list of objects, or an object of lists of one length)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By a document that begins with a list, or an object that holds lists or goes on over several lines."""
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text.startswith(b"["):
            return text[1:].lstrip()[:1] in {b"{", b"]"}
        line, end, _ = text.partition(b"\n")
        if not line.startswith(b"{"):
            return False
        try:
            first = json.loads(line)
        except (ValueError, RecursionError):
            return line.rstrip().endswith((b"{", b"[", b",")) if end else b": [" in line or b":[" in line
        return bool(first) and all(isinstance(value, list) for value in first.values())

    def read(self, path: Path) -> History:
        """The records."""
        return records_in(load_json(path), str(path))


def load_json(path: Path) -> Any:
    """A JSON document; NaN and Infinity are read as Python writes them.

    Raises:
        CorruptCheckpointError: it is none, or not all of one.
    """
    if path.stat().st_size > _LARGEST:
        raise CorruptCheckpointError(f"is larger than {_LARGEST:,} bytes", file=str(path), hint="write JSON lines")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"is no whole JSON document: {error}", file=str(path), hint="it was cut off, or is being written"
        ) from error


def records_in(value: Any, file: str = "") -> History:
    """A list of dicts, or a dict of lists, as a history.

    Raises:
        UnknownFormatError: it is neither.
    """
    if isinstance(value, Mapping) and all(isinstance(values, list) for values in value.values()):
        longest = max(map(len, value.values()), default=0)
        gathering = Gathering()
        for name, values in value.items():
            places = [place for place, one in enumerate(values) if one is not None]
            if places:
                gathering.add(str(name), places, packed([values[place] for place in places]))
        gathering.length = longest
        short = [name for name, values in value.items() if len(values) < longest]
        note = f"the lists are not of one length: {', '.join(map(str, short))} end before the others"
        return History(gathering.rows(), notes=(note,) if short else ())
    if isinstance(value, list) and all(isinstance(record, Mapping) for record in value):
        return History(rows_of(value))
    raise UnknownFormatError(
        "is JSON, and neither a list of objects nor an object of lists",
        file=file,
        hint='write one object for each record, e.g. {"epoch": 0, "val_loss": 0.7}',
    )
