"""Pickles of a length that nobody tells, read where they lie in a file."""

from __future__ import annotations

from collections.abc import Callable

from ..core.limits import Limits
from ..core.source import Source
from ..core.tree import Global
from ..errors import UnsafeCheckpointError
from ._pickle import Dialect, TruncatedStreamError, Unpickled, Use, unpickle

_WINDOW = 1 << 16  # what is read at first; most pickles are shorter


def unpickle_at(
    source: Source,
    start: int,
    dialect: Callable[[], Dialect],
    limits: Limits,
    *,
    stream: str,
    seen: dict[Global, Use],
    name: str = "",
) -> Unpickled:
    """Read one pickle through a window that grows when it was too small; `end` is counted from the file's start.

    Args:
        source: the file.
        start: where the pickle begins.
        dialect: makes the dialect; it is asked again when reading starts afresh with a larger window.
        limits: bounds on the work.
        stream: what the pickle is, for messages.
        seen: collects the names in it.
        name: the file for messages; the source's own if empty.

    Raises:
        TruncatedStreamError: the file ends before the pickle does.
        UnsafeCheckpointError: it is longer than Limits.pickle_bytes.
        CorruptCheckpointError: it is no valid pickle.
    """
    window = _WINDOW
    file = name or source.name
    while True:
        length = max(0, min(window, source.size - start, limits.pickle_bytes))
        data = bytes(source.read(start, length))
        try:
            found = unpickle(data, 0, dialect(), limits, file=file, stream=stream, base=start, seen=seen)
            return Unpickled(found.value, start + found.end, found.globals)
        except TruncatedStreamError:
            if start + length >= source.size:
                raise
            if length >= limits.pickle_bytes:
                raise UnsafeCheckpointError(
                    f"has a pickle of more than {length:,} bytes (Limits.pickle_bytes)", file=file, place=stream
                ) from None
        window *= 8
