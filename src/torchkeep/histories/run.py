"""The folder of a torchkeep run, or its history.jsonl alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..core.history import History, decode_history

_MARKER, _HISTORY = "torchkeep.json", "history.jsonl"


class RunFolder:
    """What `run.log` wrote: every line with its checksum, abandoned branches left out."""

    name = "run"
    wants = f"the folder of a torchkeep run (it has {_MARKER}), or its {_HISTORY}"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By the marker of a run, or by the checksum at the end of the first line."""
        if path.is_dir():
            return (path / _MARKER).is_file()
        line = head.partition(b"\n")[0]
        return line.startswith(b"{") and line[-16:-9] == b',"$":"' + line[-10:-9] and line.endswith(b'"}')

    def read(self, path: Path) -> History:
        """The records of the branch that the run is on."""
        file = path / _HISTORY if path.is_dir() else path
        history = decode_history(file.read_bytes() if file.is_file() else b"")
        notes = (f"{len(history.damaged)} damaged lines are left out",) if history.damaged else ()
        return replace(history, notes=notes)
