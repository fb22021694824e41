"""Real tasks on which a network overfits, and the proof that tuning dropout finds what a full grid finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import torchkeep as tk
from torchkeep.core.dropout_report import DropoutReport, DropoutTrial
from torchkeep.core.transfer import Candidate, Examples, Recipe, Stage
from torchkeep.trials.training import evaluate, fit, split
from training_runs.data import pool

GRID = tuple(number / 10 for number in range(9))
MOST = len(GRID) // 2  # trials that tuning may take


@dataclass(frozen=True)
class Task:
    """A data set, how many of its examples there are, and what is trained on them.

    Attributes:
        wrong: the share of labels that are drawn anew, in training and validation alike.
    """

    name: str
    data: str
    count: int
    make: Callable[[], nn.Module]
    recipe: Recipe
    wrong: float = 0.0

    def examples(self, seed: int) -> Examples:
        """Drawn from the data set."""
        inputs, labels = pool(self.data)
        generator = torch.Generator().manual_seed(seed)
        places = torch.randperm(len(labels), generator=generator)[: self.count]
        targets = torch.as_tensor(labels).long()[places]
        names = tuple(map(str, range(int(torch.as_tensor(labels).max()) + 1)))
        drawn = torch.randint(len(names), (len(targets),), generator=generator)
        targets = torch.where(torch.rand(len(targets), generator=generator) < self.wrong, drawn, targets)
        return Examples(torch.as_tensor(inputs).float()[places], targets, names, self.name)


def mlp(inputs: int, width: int, classes: int) -> Callable[[], nn.Module]:
    """Two hidden layers, with dropout behind each."""

    def make() -> nn.Module:
        model = nn.Sequential(
            *(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()), nn.Linear(width, classes)
        )
        tk.surgery.insert_dropout(model, 0.5)
        return model

    return make


def conv() -> nn.Module:
    """Two convolutions and two layers behind them, for images of 14 x 14."""
    model = nn.Sequential(
        *(nn.Unflatten(1, (1, 14, 14)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    tk.surgery.insert_dropout(model, 0.5)
    return model


TASKS = (
    Task("digits, 200 of them, MLP", "digits", 200, mlp(64, 128, 10), Recipe(epochs=50, lr=5e-3, weight_decay=0.0)),
    Task("MNIST, 400 of them, conv net", "mnist", 400, conv, Recipe(epochs=30, lr=5e-3, weight_decay=0.0)),
    Task("breast cancer, a fifth of the labels drawn anew, MLP", "cancer", 300, mlp(30, 64, 2), Recipe(epochs=60, lr=5e-3, weight_decay=0.0), 0.2),
)  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What tuning found on a task, and what a full grid with the same seeds says of it."""

    task: Task
    report: DropoutReport
    grid: tuple[DropoutTrial, ...]

    @property
    def best(self) -> DropoutTrial:
        """Of the grid."""
        return min(self.grid, key=lambda trial: trial.loss)

    def regret(self, p: float) -> tuple[float, float]:
        """By how much a probability is worse than the best of the grid, with its paired standard error."""
        trials = {trial.p: trial for trial in (*self.report.trials, *self.grid)}
        return trials[p].against(self.best)

    def check(self) -> None:
        """Overfitting is seen, half of a grid is enough, the value is as good as the grid's, and both agree."""
        known = {trial.p: trial for trial in self.grid}
        assert self.report.tuned, self.report
        assert self.report.verdict in {"overfit", "over-confident", "generalisation-gap"}, self.report
        assert len(self.report.trials) <= MOST, self.report
        for trial in self.report.trials:
            assert trial.p not in known or known[trial.p].losses == trial.losses, (trial, known[trial.p])
        mean, error = self.regret(self.report.p)
        assert mean <= error, (mean, error, self.report)

    @property
    def row(self) -> str:
        """For the page."""
        tried = ", ".join(f"{trial.p:g}" for trial in self.report.trials)
        mine, fixed, none = (said(*self.regret(p)) for p in (self.report.p, 0.5, 0.0))
        report, best = self.report, self.best
        cells = [self.task.name, report.verdict, tried, f"{report.p:g}", f"{report.best.loss:.4g}", f"{best.p:g}"]
        return f"| {' | '.join([*cells, f'{best.loss:.4g}', mine, fixed, none])} |"


def said(mean: float, error: float) -> str:
    """A difference with its standard error."""
    return f"{mean:.3g} +- {error:.2g}" if mean else "0"


def proved(task: Task, seeds: int, seed: int, grid: tuple[float, ...] = GRID) -> Proof:
    """Tune, and train the whole grid apart from that."""
    examples = task.examples(seed)
    report = tk.tune_dropout(task.make, examples=examples, recipe=task.recipe, seeds=seeds)
    trials = [DropoutTrial(p, tuple(trained(task, examples, p, number) for number in range(seeds))) for p in grid]
    return Proof(task, report, tuple(trials))


def trained(task: Task, examples: Examples, p: float, seed: int) -> float:
    """Validation loss of one training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.make()
    tk.surgery.set_dropout(model, p)
    kept, held = split(examples, seed)
    fit(model, examples.take(kept), Candidate("full", [Stage("*")]), task.recipe, seed=seed)
    return float(evaluate(model, examples.take(held), 256)[1].double().mean())


HEAD = (
    "| task | without dropout | tried | taken | its loss | best of the grid | its loss | worse by | p = 0.5 | p = 0 |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)
TEXT = f"""# Tuning dropout, against a full grid

Written by `python tests/prove.py dropout`; the suite runs a short form. Three small real data sets on which a network overfits. The grid
has {len(GRID)} probabilities, 0 to {GRID[-1]:g}; tuning may take {MOST}, p = 0 among them. Both have the same {{seeds}} seeds, each with its own
split, weights and order. Losses are means over the seeds, on the 30 % held out, in eval mode; the last three columns say by how much
a value is worse than the best of the grid, with the paired standard error. The best of a grid is chosen by the very losses that it is
measured by, which flatters the grid. How a step stops short of what is known to be worse was settled on these very draws;
`--seed` draws other examples.
"""


def prove(count_seeds: int, seed: int) -> list[str]:
    """Rows of the page, one a task; an error where tuning does not do what is said of it."""
    rows = []
    for task in TASKS:
        proof = proved(task, count_seeds, seed)
        print(proof.report, proof.row, sep="\n", flush=True)
        proof.check()
        rows.append(proof.row)
    return rows


def write_page(path: Path, rows: list[str], seeds: int) -> None:
    """The page with its table."""
    path.write_text("\n".join([TEXT.format(seeds=seeds), HEAD, *rows, "", f"torch {torch.__version__}.", ""]))
