"""Hugging Face's trainer_state.json, in a folder of a checkpoint or of all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core.history import History
from ..core.rows import rows_of
from ..errors import CorruptCheckpointError
from .document import load_json

_STATE = "trainer_state.json"
_SUMMARY = "train_runtime"


class TrainerState:
    """The `log_history` of a Trainer: the loss over the last steps, and evaluations under `eval_`."""

    name = "hf"
    wants = f"Hugging Face's {_STATE}, or a folder with it or with checkpoint-N folders that have it"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By the member `log_history`."""
        if path.is_dir():
            return bool(_states(path))
        return head.lstrip().startswith(b"{") and b'"log_history"' in head and b'"global_step"' in head

    def read(self, path: Path) -> History:
        """The records of the newest state that is whole; the summary at the end of the training is left out."""
        notes: tuple[str, ...] = ()
        states = _states(path) if path.is_dir() else [path]
        for place, state in enumerate(states):
            try:
                records = _records(state)
            except CorruptCheckpointError as error:
                if place == len(states) - 1:
                    raise
                notes = (*notes, f"{error.brief}; an older one is read")
                continue
            break
        return History(rows_of([record for record in records if _SUMMARY not in record]), notes=notes)


def _states(folder: Path) -> list[Path]:
    """The states below a folder, the newest first: that of the whole training, then of the checkpoint at step N."""
    steps = sorted(
        (int(found[1]), one / _STATE)
        for one in folder.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", one.name)) and (one / _STATE).is_file()
    )
    own = [folder / _STATE] if (folder / _STATE).is_file() else []
    return [*own, *(state for _, state in reversed(steps))]


def _records(path: Path) -> list[dict[str, Any]]:
    state = load_json(path)
    records = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CorruptCheckpointError("has no list of records under log_history", file=str(path))
    return records
