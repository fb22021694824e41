"""Real tasks on which a network overfits, and the proof that tuning dropout finds what a full grid finds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import torchkeep as tk
from torchkeep.core.dropout_report import DropoutReport, DropoutTrial
from torchkeep.core.transfer import Examples, Recipe
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
    Task("MNIST, 400 of them, conv net", "mnist", 400, conv, Recipe(epochs=25, lr=3e-3, weight_decay=0.0)),
    Task("breast cancer, every 5th label drawn anew, MLP", "cancer", 300, mlp(30, 64, 2), Recipe(epochs=60, lr=5e-3, weight_decay=0.0), 0.2),
)  # fmt: skip


def tuned(task: Task, seeds: int, seed: int = 0) -> DropoutReport:
    """What tuning finds."""
    return tk.tune_dropout(task.make, examples=task.examples(seed), recipe=task.recipe, seeds=seeds)


def grid(task: Task, seeds: int, seed: int = 0) -> list[DropoutTrial]:
    """Every probability of the grid, with the same seeds."""
    from torchkeep import tuning

    examples, found = task.examples(seed), []
    for p in GRID:
        losses = []
        for number in range(seeds):
            with torch.random.fork_rng():
                torch.manual_seed(number)
                model = task.make()
            tk.surgery.set_dropout(model, p)
            kept, held = tuning.split(examples, number)
            tuning.fit(model, examples.take(kept), tuning.Candidate("full", [tuning.Stage("*")]), task.recipe, seed=number)
            losses.append(float(tuning.evaluate(model, examples.take(held), 256)[1].double().mean()))
        found.append(DropoutTrial(p, tuple(losses)))
    return found
