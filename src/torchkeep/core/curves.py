"""Learning curves: what a history says, in roles, in order, and without what is no number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One curve.

    Attributes:
        name: as it was logged, e.g. `val_loss`.
        x: where each point lies, ascending and without repetition, in the unit of the curves.
        y: the values; not-a-number and infinities stay.
        mode: whether the lowest (`min`) or the highest (`max`) is best; empty where the name does not say.
    """

    name: str
    x: Floats
    y: Floats
    mode: str = ""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def finite(self) -> Series:
        """The points that are numbers."""
        kept = np.isfinite(self.y)
        return self if bool(kept.all()) else Series(self.name, self.x[kept], self.y[kept], self.mode)

    def thinned(self, most: int = 2000) -> Series:
        """The same curve with no more points than that, each the mean of as many as it takes."""
        if len(self) <= most:
            return self
        ends = np.linspace(0, len(self), most + 1).astype(int)
        counts = np.diff(ends)
        x, y = (np.add.reduceat(one, ends[:-1]) / counts for one in (self.x, self.y))
        return Series(self.name, x, y, self.mode)

    @property
    def best(self) -> int:
        """The place of the best point: the first of equal ones, never one that is no number.

        Raises:
            ValueError: no point is a number.
        """
        if not np.isfinite(self.y).any():
            raise ValueError(f"{self.name} has no number in it")
        values = np.where(np.isfinite(self.y), self.y if self.mode != "max" else -self.y, np.inf)
        return int(np.argmin(values))


@dataclass(frozen=True, eq=False)
class Curves:
    """A run as its curves tell it: `curves.val_loss.y`.

    Attributes:
        title: what was read.
        unit: of x: `epoch` or `step`.
        train_loss, val_loss: the losses; None where the history has none.
        train_metric, val_metric: the metric that counts, e.g. accuracy in shares of 1, on both sets.
        rate: the learning rate of the first group.
        others: everything else that is a number, by its name.
        records: how many records were read.
        notes: what was dropped, put in order or taken for something, in sentences.
    """

    title: str = ""
    unit: str = "epoch"
    train_loss: Series | None = None
    val_loss: Series | None = None
    train_metric: Series | None = None
    val_metric: Series | None = None
    rate: Series | None = None
    others: Mapping[str, Series] = field(default_factory=dict)
    records: int = 0
    notes: tuple[str, ...] = ()

    @property
    def end(self) -> float:
        """The x of the last point of any loss or metric; nan where there is none."""
        held = (self.train_loss, self.val_loss, self.train_metric, self.val_metric)
        return max((float(one.x[-1]) for one in held if one is not None and len(one)), default=float("nan"))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a run beside its curves. None is: not known.

    Attributes:
        classes: how many there are to tell apart; chance level of the loss is ln(classes) nats, for a cross-entropy.
        n_train, n_val: examples in the training and in the validation set.
        target_variance: of the targets of a regression; chance level of a mean squared error.
        trainable: the share of the model's elements that is trained, 0 to 1.
        parameters: elements of the model.
        dropout: the largest probability in force in parts that are trained.
        weight_decay: the largest of any group.
        optimizer: its name, e.g. `AdamW` or `sgd`.
        rate: the largest learning rate of any group, before any schedule.
        momentum: of SGD.
        batch: training examples a step.
        phases: freeze phases: (first epoch, what it trains).
        snapshots: x of each snapshot.
    """

    classes: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    target_variance: float | None = None
    trainable: float | None = None
    parameters: int | None = None
    dropout: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    rate: float | None = None
    momentum: float | None = None
    batch: int | None = None
    phases: tuple[tuple[int, str], ...] = ()
    snapshots: tuple[float, ...] = ()
