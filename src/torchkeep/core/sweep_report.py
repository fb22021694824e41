"""What a sweep over ways of training has found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .table import Table, human_count
from .transfer import Candidate, Outcome, Recipe

Zone = Literal["helps", "does not matter", "hurts", "not compared", "undertrained"]


@dataclass(frozen=True)
class Tried:
    """What a sweep has found about one candidate.

    Attributes:
        name: of the candidate.
        score: accuracy on examples held out, 0 to 1: the mean over the seeds, adjusted for which ones it had.
        stderr: standard error of its difference to the best candidate, over the examples that both were tried on; that
            of its own accuracy for the best itself.
        seconds: all its trials took.
        trials: how many; each has a seed of its own.
        behind: how much less accurate than the best candidate, on the same examples of the same seeds.
        train_score: accuracy on the training examples at the end, in eval mode.
        cost: share of the network that is run and trained in an epoch, a mean over the epochs.
        trained: parameters that are trained.
        gain: how much more accurate than fresh weights, on the same examples; None where that was not compared.
        gain_stderr: standard error of that.
        zone: what transfer does: `helps`, `does not matter` or `hurts`, beside fresh weights, or `not compared`.
    """

    name: str
    score: float
    stderr: float
    seconds: float
    trials: int
    behind: float
    train_score: float
    cost: float
    trained: int
    gain: float | None
    gain_stderr: float | None
    zone: Zone


@dataclass(frozen=True, eq=False)
class SweepReport:
    """What a sweep over ways of training has found.

    Attributes:
        candidates: what was found about each, in their order.
        chosen: name of the one to go on with.
        best: name of the most accurate one.
        why: the choice in a sentence.
        plan: the chosen candidate.
        recipe: with which all of them were trained.
        head: path of the head, which got fresh values in each trial.
        outcomes: what each trial gave, by name of the candidate and seed.
        snapshot: the folder of the run with the weights of the chosen candidate, or None without a folder.
        full: trials of the whole grid.
        notes: what else should be known, in sentences.
    """

    candidates: tuple[Tried, ...]
    chosen: str
    best: str
    why: str
    plan: Candidate
    recipe: Recipe
    head: str
    outcomes: Mapping[tuple[str, int], Outcome] = field(repr=False)
    snapshot: str | None
    full: int
    notes: tuple[str, ...] = ()

    @property
    def zones(self) -> dict[str, Zone]:
        """What transfer does beside fresh weights, by candidate."""
        return {one.name: one.zone for one in self.candidates}

    @property
    def seconds(self) -> float:
        """All trials took."""
        return sum(one.seconds for one in self.candidates)

    def __getitem__(self, name: str) -> Tried:
        return next(one for one in self.candidates if one.name == name)

    def table(self) -> Table:
        """The report for people."""
        trials = sum(one.trials for one in self.candidates)
        rows = tuple(
            (
                ("> " if one.name == self.chosen else "  ") + one.name,
                f"{one.score:.1%}",
                f"{one.stderr * 100:.1f}",
                "" if one.name == self.best else f"{-one.behind * 100:+.1f}",
                ""
                if one.gain is None or one.gain_stderr is None
                else f"{one.gain * 100:+.1f} ± {one.gain_stderr * 100:.1f}",
                one.zone if one.gain is not None else "",
                str(one.trials),
                human_count(one.trained),
                f"{one.seconds:.1f}",
            )
            for one in self.candidates
        )
        return Table(
            title=f"go on with {self.chosen!r}: {self.why}",
            facts=(
                ("trials", f"{trials} of {self.full}, {self.seconds:.1f} s"),
                ("weights", self.snapshot or ""),
            ),
            columns=("  candidate", "held out", "stderr", "to best", "to scratch", "transfer", "seeds", "trains", "s"),
            rows=rows,
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it, without single examples."""
        return {
            "candidates": [{key: _finite(value) for key, value in vars(one).items()} for one in self.candidates],
            "chosen": self.chosen,
            "best": self.best,
            "why": self.why,
            "plan": msgspec.to_builtins(self.plan),
            "recipe": msgspec.to_builtins(self.recipe),
            "head": self.head,
            "snapshot": self.snapshot,
            "trials": len(self.outcomes),
            "full": self.full,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def _finite(value: Any) -> Any:
    """A value as JSON has it: what is no number is nothing."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
