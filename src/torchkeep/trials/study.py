"""What trials gave, in an Optuna study: finished ones are remembered, several processes share the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.transfer import Outcome
from ..errors import DataError
from .journal import Lock, make_folder, optuna_here, quiet, storage_at

NAME = "sweep"
JOURNAL = "study.journal"
_FINGERPRINT = "torchkeep:fingerprint"


class Study:
    """The trials of a sweep: one for each candidate and seed.

    With a folder they are kept in its `study.journal`, which Optuna and its dashboard read as the study `sweep`.
    """

    def __init__(self, folder: Path | None, candidates: Sequence[str], fingerprint: Mapping[str, str]) -> None:
        """Open the study, or make it.

        Args:
            folder: where it is kept; None for in memory.
            candidates: their names.
            fingerprint: what the trials are made of, each by a digest.

        Raises:
            MissingDependencyError: Optuna is not installed.
            DataError: the folder has a study of something else; nothing was changed.
        """
        self._optuna = optuna = optuna_here()
        self._lock = Lock(None if folder is None else folder / "study.lock")
        self._distributions = {
            "candidate": optuna.distributions.CategoricalDistribution(list(candidates)),
            "seed": optuna.distributions.IntDistribution(0, 2**31 - 1),
        }
        if folder is None:
            self._storage: Any = optuna.storages.InMemoryStorage()
        else:
            make_folder(folder)
            with self._lock:
                self._storage = storage_at(folder / JOURNAL)
        with self._lock, quiet(optuna):
            self._id = self._found(dict(fingerprint), folder)

    def finished(self) -> dict[tuple[str, int], Outcome]:
        """What every finished trial gave, by candidate and seed."""
        complete = self._optuna.trial.TrialState.COMPLETE
        trials = self._storage.get_all_trials(self._id, deepcopy=False, states=(complete,))
        found: dict[tuple[str, int], Outcome] = {}
        for trial in trials:
            outcome = outcome_of(trial.params["candidate"], trial.params["seed"], trial.user_attrs)
            found.setdefault((outcome.candidate, outcome.seed), outcome)
        return found

    def begin(self, candidate: str, seed: int) -> int:
        """Say that a trial is being done, by the one who may; one that was left undone has failed. Answers its id."""
        states = self._optuna.trial.TrialState
        for trial in self._storage.get_all_trials(self._id, deepcopy=False, states=(states.RUNNING,)):
            if trial.params == {"candidate": candidate, "seed": seed}:
                self._storage.set_trial_state_values(trial._trial_id, states.FAIL)
        frozen = self._optuna.trial.create_trial(
            state=states.RUNNING,
            params={"candidate": candidate, "seed": seed},
            distributions=self._distributions,
        )
        return int(self._storage.create_new_trial(self._id, template_trial=frozen))

    def finish(self, trial: int, outcome: Outcome, run: str = "") -> None:
        """Keep what it gave; afterwards it is never done again."""
        facts = told(outcome)
        if run:
            facts["run"] = run
        for key, value in facts.items():
            self._storage.set_trial_user_attr(trial, key, value)
        self._storage.set_trial_state_values(trial, self._optuna.trial.TrialState.COMPLETE, [outcome.score])

    def fail(self, trial: int) -> None:
        """Say that a trial broke off."""
        self._storage.set_trial_state_values(trial, self._optuna.trial.TrialState.FAIL)

    def _found(self, fingerprint: dict[str, str], folder: Path | None) -> int:
        optuna = self._optuna
        known = {study.study_name for study in self._storage.get_all_studies()}
        if NAME not in known:
            study = int(self._storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], NAME))
        else:
            study = int(self._storage.get_study_id_from_name(NAME))
        kept = self._storage.get_study_user_attrs(study).get(_FINGERPRINT)
        if kept is None:  # a process was killed between the two, or it is new
            self._storage.set_study_user_attr(study, _FINGERPRINT, fingerprint)
        elif other := [key for key in fingerprint if kept.get(key, fingerprint[key]) != fingerprint[key]]:
            raise DataError(
                f"{folder} has the trials of a sweep with other {' and '.join(other)}",
                hint="give this sweep a folder of its own, or go on with what that one had",
            )
        return study


def _said(value: float) -> float | str:
    """A number as JSON has it."""
    return value if math.isfinite(value) else repr(value)


def told(outcome: Outcome) -> dict[str, Any]:
    """What a trial gave, without its candidate and seed, as JSON has it."""
    return {
        "places": outcome.places.tolist(),
        "hits": outcome.hits.int().tolist(),
        "losses": [_said(value) for value in outcome.losses.tolist()],
        "train_loss": _said(outcome.train_loss),
        "train_accuracy": outcome.train_accuracy,
        "seconds": outcome.seconds,
        "rows": [{key: _said(value) for key, value in row.items()} for row in outcome.rows],
    }


def outcome_of(candidate: str, seed: int, facts: Mapping[str, Any]) -> Outcome:
    """What a trial gave, as `told` told it."""
    return Outcome(
        candidate=candidate,
        seed=seed,
        places=torch.tensor(facts["places"], dtype=torch.int64),
        hits=torch.tensor(facts["hits"], dtype=torch.bool),
        losses=torch.tensor([float(value) for value in facts["losses"]], dtype=torch.float32),
        train_loss=float(facts["train_loss"]),
        train_accuracy=float(facts["train_accuracy"]),
        seconds=float(facts["seconds"]),
        rows=tuple({key: float(value) for key, value in row.items()} for row in facts["rows"]),
    )
