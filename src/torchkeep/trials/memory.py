"""Remembering trainings: in memory, or in a folder, where they outlive the process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from .journal import Lock, make_folder, optuna_here, quiet, storage_at


class Memory(Protocol):
    """Keeps what trainings gave, by a key that says which training it was."""

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put under a key; None where nothing was."""
        ...

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep what JSON can say; it is kept for good when this returns."""
        ...


class Dict:
    """In memory: gone with the process."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """See `Memory`."""
        return self._known.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """See `Memory`."""
        self._known[key] = record


class Journal:
    """A study of Optuna in the file `trials.journal` of a folder; what a killed process left half written is cut off.

    Args:
        folder: made if it is not there.
        name: of the study: trainings of another study are not seen.

    Raises:
        MissingDependencyError: optuna is not installed.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        optuna = optuna_here()
        place = Path(folder).expanduser()
        make_folder(place)
        with Lock(place / "trials.lock"), quiet(optuna):
            storage = storage_at(place / "trials.journal")
            self._study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self._finished = optuna.trial.TrialState.COMPLETE
        self._made = optuna.trial.create_trial

    def get(self, key: str) -> dict[str, Any] | None:
        """See `Memory`."""
        for trial in self._study.get_trials(deepcopy=False, states=[self._finished]):
            if trial.user_attrs.get("key") == key:
                found: dict[str, Any] = json.loads(trial.user_attrs["record"])
                return found
        return None

    def put(self, key: str, record: dict[str, Any]) -> None:
        """See `Memory`."""
        loss = record.get("loss")
        value = math.inf if loss is None else float(loss)
        attributes = {"key": key, "record": json.dumps(record, default=str)}
        self._study.add_trial(self._made(state=self._finished, value=value, user_attrs=attributes))
