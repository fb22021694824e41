"""The story of a diagnosis: read the history, put its curves in roles, learn the setting, look, and say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.curves import Curves, Setting
from ..core.curving import curves_of
from ..core.diagnosis import Check, Diagnosis
from ..reading import Historic, read_history, setting_of
from ..running import Run, is_run
from .examine import examine


def diagnose(
    history: Historic,
    *,
    classes: int | None = None,
    n_val: int | None = None,
    n_train: int | None = None,
    target_variance: float | None = None,
    parameters: int | None = None,
    optimizer: str | None = None,
    rate: float | None = None,
    momentum: float | None = None,
    batch: int | None = None,
    metric: str | None = None,
    mode: str = "",
    names: Mapping[str, str] | None = None,
    setting: Setting | None = None,
    checks: Iterable[str | Check] | None = None,
) -> Diagnosis:
    """Say what the learning curves of a run show, on what evidence, and what to try.

    >>> print(tk.diagnose("lightning_logs/version_0/metrics.csv", classes=10, n_val=500))      # doctest: +SKIP

    The verdict is one of `cannot-say`, `underfit` (with a cause: `too-short`, `capacity` or `optimisation`), `overfit`,
    `over-confident` (the validation loss rises and the metric holds), `generalisation-gap`, `unstable` and `healthy`.
    The more it is told, the more it can tell: without `classes` or `target_variance` nothing says what loss a model has
    that has learned nothing; without `n_val` nobody knows what a difference between epochs is worth. Which cause an
    underfit has follows best from the optimizer, the rate, the batch and `n_train`: how far did training go?

    Args:
        history: what `tk.read_history` takes: a run, a CSV, TensorBoard's events, ..., or a list of records.
        classes: how many there are, where the loss is a cross-entropy in nats.
        n_val, n_train: examples in the validation and in the training set.
        target_variance: of the targets of a regression, where the loss is a mean squared error.
        parameters: elements of the model.
        optimizer, rate, momentum: its name, e.g. `AdamW` or `sgd`, its learning rate before any schedule, and of SGD
            its momentum.
        batch: training examples a step.
        metric: the name of the metric that counts; accuracy where there is one if None.
        mode: `max` or `min`, whichever of the metric is best; if empty, as its name says. A metric whose name does not
            say it is left out.
        names: role -> name for what is called otherwise, as in `tk.read_history`.
        setting: all that is known beside the curves; of a run of torchkeep its snapshots tell most of it.
        checks: names of checks, or checks; all that there are if None.

    Raises:
        OpenError: the history cannot be read.
        SelectorError: there is no metric, or no column, of that name; the hint has the nearest.
    """
    curves, known = understood(history, metric, names, setting, mode)
    given: dict[str, Any] = {
        "classes": classes, "n_val": n_val, "n_train": n_train, "target_variance": target_variance,
        "parameters": parameters, "rate": rate, "batch": batch,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}; it must be above 0")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; it must be from 0 to below 1")
    given |= {"optimizer": optimizer, "momentum": momentum}
    told = replace(known, **{name: value for name, value in given.items() if value is not None})
    return examine(curves, told, checks)


def understood(
    history: Historic,
    metric: str | None = None,
    names: Mapping[str, str] | None = None,
    setting: Setting | None = None,
    mode: str = "",
) -> tuple[Curves, Setting]:
    """The curves of a history, and what is known beside them."""
    curves = curves_of(read_history(history, names=names), metric=metric, mode=mode)
    if setting is None:
        run = _run_of(history)
        setting = Setting() if run is None else setting_of(run, unit=curves.unit)
    return curves, setting


def _run_of(history: Historic) -> Run | None:
    if isinstance(history, (str, os.PathLike)) and is_run(place := Path(history).expanduser()):
        return Run(place)
    return history if isinstance(history, Run) else None
