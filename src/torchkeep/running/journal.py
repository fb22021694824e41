"""The history of a run as its writer sees it: a file that only grows, and where in it the run stands."""

from __future__ import annotations

import threading
from typing import Any

from blake3 import blake3

from ..core.history import History, decode_history, encode_record, followed, resume_mark, whole_lines
from ..core.manifest import HistoryMark
from ..core.source import read_all
from ..errors import KeyNotFoundError
from ..stores import Store

HISTORY = "history.jsonl"
START = HistoryMark(0, 0, blake3().hexdigest())


class Journal:
    """Adds records, and goes back to where a snapshot was."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: list[dict[str, Any]] = []
        self._size = 0
        self._hash = blake3()
        self._lock = threading.Lock()  # several threads may log
        self._synced = -1
        self._earlier: list[tuple[int, int]] = []
        self._last_turn = 0
        self._turned = 0

    def read(self) -> History:
        """What was logged, without the records of abandoned branches."""
        return decode_history(read_key(self._store, HISTORY))

    @property
    def length(self) -> int:
        """How many records there are."""
        return len(self._records)

    @property
    def turned(self) -> int:
        """How many times it was taken up anew: what was known of its records before that is void."""
        return self._turned

    def records(self, begin: int = 0) -> list[dict[str, Any]]:
        """The records from number `begin` on."""
        with self._lock:
            return self._records[begin:]

    def follows(self, mark: HistoryMark) -> bool:
        """Whether what a snapshot says of the history is a beginning of it as it stands."""
        return mark.nbytes >= self._last_turn or any(start <= mark.nbytes <= end for start, end in self._earlier)

    @property
    def last(self) -> dict[str, Any]:
        """The latest value of every metric."""
        return History(tuple(self._records)).last

    def begin(self) -> None:
        """Go on where the file ends; a last line that a crash tore was never part of a snapshot and goes."""
        data = read_key(self._store, HISTORY)
        whole = data[: whole_lines(data)]
        if len(whole) < len(data):
            self._store.put(HISTORY, [whole], replace=True)
        self._take_up(whole)

    def add(self, record: dict[str, Any]) -> None:
        """One record more."""
        line = encode_record(record)
        with self._lock:
            self._store.append(HISTORY, line)
            self._size += len(line)
            self._hash.update(line)
            self._records.append(record)

    def mark(self) -> HistoryMark:
        """Where the history ends now; `sync` makes it durable."""
        with self._lock:
            return HistoryMark(len(self._records), self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Make durable what was logged so far."""
        with self._lock:
            if self._synced != self._size:
                self._store.append(HISTORY, b"", durable=True)
                self._synced = self._size

    def back_to(self, mark: HistoryMark, sequence: int) -> bool:
        """Make the history end where a snapshot says; False if those bytes are not as they were written."""
        data = read_key(self._store, HISTORY)
        kept = data[: mark.nbytes]
        if self._size > mark.nbytes:
            line = resume_mark(sequence, mark.nbytes)
            self._store.append(HISTORY, line)
            self._take_up(data + line)
        return len(kept) == mark.nbytes and blake3(kept).hexdigest() == mark.digest

    def _take_up(self, data: bytes) -> None:
        self._synced = -1
        self._turned += 1
        *self._earlier, (self._last_turn, _) = followed(data)
        self._records = list(decode_history(data))
        self._size = len(data)
        self._hash = blake3(data)


def read_key(store: Store, key: str) -> bytes:
    """What a store has under a key; nothing if it has no such key."""
    try:
        source = store.source(key)
    except KeyNotFoundError:
        return b""
    return read_all(source)
