"""Who wrote the metrics: one kind a file, each recognised by its content and asked in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..core.history import History

HISTORIES = {
    "run": "histories.run:RunFolder",
    "hf": "histories.hf:TrainerState",
    "tensorboard": "histories.tensorboard:EventFiles",
    "json": "histories.document:JsonDocument",
    "jsonl": "histories.jsonl:JsonLines",
    "csv": "histories.csv:Separated",
}

HEAD = 1 << 16  # bytes of a file that `sniff` is shown


class HistoryFormat(Protocol):
    """Reads one kind of history.

    Attributes:
        name: short, as in the table above.
        wants: what it looks for, in words, for the error of a file that nobody knows.
    """

    name: str
    wants: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether this is one; `head` has the first bytes of a file and is empty for a folder. Never raises."""
        ...

    def read(self, path: Path) -> History:
        """The history, with what had to be left out in its notes.

        Raises:
            CorruptCheckpointError: it cannot be read at all.
        """
        ...
