"""What tuning dropout gave: each probability that was tried, with its seeds, and the one to take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .table import Table


@dataclass(frozen=True, slots=True)
class DropoutTrial:
    """One probability, trained with every seed.

    Attributes:
        p: the probability.
        losses: validation loss at the end, in eval mode, by seed.
        train_losses: training loss at the end, in eval mode where torchkeep trained, by seed; empty where not logged.
        verdict: what the doctor says of the mean curves of all seeds; empty where no curves were logged.
    """

    p: float
    losses: tuple[float, ...]
    train_losses: tuple[float, ...] = ()
    verdict: str = ""

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)

    def against(self, other: DropoutTrial) -> tuple[float, float]:
        """By how much its loss is higher, over pairs with the same seed: the mean and its standard error."""
        return paired(self.losses, other.losses)


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the differences of pairs; a loss that is infinite is worse beyond all noise."""
    if math.inf in one or math.inf in other:
        return (0.0 if math.inf in one and math.inf in other else math.inf if math.inf in one else -math.inf), 0.0
    differences = [a - b for a, b in zip(one, other, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return statistics.fmean(differences), error


@dataclass(frozen=True, slots=True)
class DropoutReport:
    """Which dropout to train with: `print(tk.tune_dropout(make_model, examples=examples))`.

    Attributes:
        p: the probability to take.
        verdict: what the doctor says of training without dropout; empty where no curves were logged.
        tuned: whether other probabilities were tried.
        why: why this one, in a sentence.
        trials: what was tried, in order; the first is p = 0.
        seeds: of weights, splits and order; the same for every probability.
        steps: what was done and why, in sentences.
        trained: trainings that were done now; the others were remembered.
    """

    p: float
    verdict: str
    tuned: bool
    why: str
    trials: tuple[DropoutTrial, ...]
    seeds: tuple[int, ...]
    steps: tuple[str, ...] = ()
    trained: int = 0

    @property
    def best(self) -> DropoutTrial:
        """The trial of the probability to take."""
        return next(trial for trial in self.trials if trial.p == self.p)

    def table(self) -> Table:
        """One row a probability."""
        return Table(
            title=f"dropout: take p = {self.p:g}",
            facts=(
                ("without", self.verdict or "no curves to judge by"),
                ("why", self.why),
                ("trainings", f"{len(self.trials) * len(self.seeds)}, {self.trained} of them now"),
            ),
            columns=("p", "validation loss", "to the one taken", "training loss", "doctor"),
            rows=tuple(self._row(trial) for trial in sorted(self.trials, key=lambda trial: trial.p)),
            notes=self.steps,
        )

    def _row(self, trial: DropoutTrial) -> tuple[str, ...]:
        mean, error = trial.against(self.best)
        return (
            f"{trial.p:g}",
            f"{trial.loss:.4g}",
            "" if trial.p == self.p else f"{mean:+.3g} +- {error:.2g}",
            f"{statistics.fmean(trial.train_losses):.4g}" if trial.train_losses else "",
            trial.verdict,
        )

    def __str__(self) -> str:
        return str(self.table())
