"""From a history to its curves: which name is what, where each point lies, and what had to be put in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .curves import Curves, Floats, Series
from .history import History
from .metrics import mode_of
from .roles import check_names, choose, read_name
from .rows import Column
from .table import shorten

_MEASURED = ("train_loss", "val_loss", "train_metric", "val_metric")
_MODES = ("", "min", "max")
_SHARES = """
    accuracy top5 f1 auc auroc auprc ap map map50 precision recall specificity iou miou jaccard dice
"""
_RESTARTS = 200  # that are followed one after another; a history with more is only sorted

Places = NDArray[np.int64]


def curves_of(
    history: History, *, names: Mapping[str, str] | None = None, metric: str | None = None, mode: str = ""
) -> Curves:
    """The curves of a history.

    Names are recognised: `val_loss`, `eval_loss`, `valid/loss`, `Loss/val` and the like, `loss` beside them as the
    training loss, accuracies the same way, `lr`, `epoch`, `global_step`. x is the epoch where all losses have one, else
    the step. Of several points in one epoch the mean is taken; where a run went back to an earlier epoch, what was
    logged later counts. Accuracies in percent become shares of 1. `notes` say what was done.

    Args:
        history: what `tk.read_history` gives, or the history of a run.
        names: role -> name for what is called otherwise, e.g. `{"train_loss": "my/loss"}`; roles are train_loss,
            val_loss, train_metric, val_metric, rate, epoch and step.
        metric: the metric that counts, e.g. `f1`; if None, accuracy where there is one.
        mode: whether the lowest (`min`) or the highest (`max`) value of the metric is best; if empty, as its name says.

    Raises:
        SelectorError: a role, a name or the metric is not there; the hint has the nearest.
    """
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}; it must be 'min', 'max' or empty")
    columns = history.columns()
    named = check_names(names or {}, columns) if names else check_names(history.names, columns)
    numbers, notes = _numbers(columns)
    choice = choose({name: len(column.values) for name, column in numbers.items()}, names=named, metric=metric)
    notes += [f"{name!r}, given for {role}, has no numbers" for role, name in named.items() if name not in numbers]
    notes += choice.notes
    roles = {role: name for role, name in choice.roles.items() if name in numbers}
    axes = {role: roles[role] for role in ("epoch", "step") if role in roles}
    measured = {role: numbers[roles[role]] for role in _MEASURED if role in roles}
    rest = {name: column for name, column in numbers.items() if name not in axes.values()}
    unit, x = _axis({role: numbers[name] for role, name in axes.items()}, measured or rest, len(history), notes)
    notes += [
        f"{lacking:,} values of {roles[role]!r} have no {unit} and are left out"
        for role, column in measured.items()
        if (lacking := int(np.isnan(x[column.places]).sum()))
    ]
    x = _followed(x, list((measured or rest).values()), unit, notes)
    counted = set(roles.values())
    series = {name: _series(name, column, x, unit, notes if name in counted else []) for name, column in rest.items()}
    there = {role: series[name] for role, name in roles.items() if name in series and len(series[name])}
    parts = {role: _settled(one, role, mode, notes) for role, one in there.items()}
    return Curves(
        title=history.title,
        unit=unit,
        train_loss=parts.get("train_loss"),
        val_loss=parts.get("val_loss"),
        train_metric=parts.get("train_metric"),
        val_metric=parts.get("val_metric"),
        rate=parts.get("rate"),
        others={name: one for name, one in series.items() if name not in counted and len(one)},
        records=len(history),
        notes=tuple(dict.fromkeys((*history.notes, *notes))),
    )


def _numbers(columns: Mapping[str, Column]) -> tuple[dict[str, Column], list[str]]:
    """The columns that have numbers, as floats."""
    numbers, notes = {}, []
    for name, column in columns.items():
        read, odd = column.numbers()
        if len(read.values):
            numbers[name] = read
            if odd:
                shown = shorten((repr(value) for value in dict.fromkeys(map(str, odd))), 3)
                notes.append(f"{len(odd)} values of {name!r} are no numbers and are left out: {shown}")
    return numbers, notes


# -- where the points lie ---------------------------------------------------------------------------------------------


def _axis(
    axes: Mapping[str, Column], measured: Mapping[str, Column], length: int, notes: list[str]
) -> tuple[str, Floats]:
    """The unit of x, and x of every record; nan where a record has none."""
    held = {role: _spread(column, length) for role, column in axes.items()}
    if "epoch" in held and "step" in held and _counts_within(held["step"], held["epoch"]):
        notes.append(f"{'step'!r} begins anew in every epoch and is not used")
        del held["step"]
    if not held:
        if measured:
            notes.append("there is no epoch and no step: the records that have numbers are counted from 1")
        return "epoch", _counted(measured.values(), length)
    whole = [role for role, x in held.items() if all(_share(x, column) >= 0.9 for column in measured.values())]
    if len(whole) == 2:
        unit = "step" if _crowded(held["epoch"], measured) > 1.5 * _crowded(held["step"], measured) else "epoch"
        if unit == "step":
            notes.append("several points lie in one epoch: x is the step")
    elif whole or len(held) == 1:
        unit = (whole or list(held))[0]
    else:
        return _joined(held["epoch"], held["step"], notes)
    return unit, _filled(held["epoch"], held["step"]) if len(held) == 2 and unit == "epoch" else held[unit]


def _filled(epoch: Floats, step: Floats) -> Floats:
    """The epochs, and where a record has a step only, that of the next step that has one."""
    anchors, lacking = np.isfinite(epoch) & np.isfinite(step), np.isnan(epoch) & np.isfinite(step)
    order = np.lexsort((epoch[anchors], step[anchors]))
    steps, epochs = step[anchors][order], epoch[anchors][order]
    if not len(steps) or not lacking.any() or bool((np.diff(epochs) < 0).any()):
        return epoch
    filled = epoch.copy()
    filled[lacking] = epochs[np.minimum(np.searchsorted(steps, step[lacking]), len(steps) - 1)]
    return filled


def _spread(column: Column, length: int) -> Floats:
    x = np.full(length, np.nan)
    x[column.places] = np.where(np.isfinite(column.values), column.values, np.nan)
    return x


def _counted(measured: Iterable[Column], length: int) -> Floats:
    x = np.full(length, np.nan)
    places = np.unique(np.concatenate([column.places for column in measured] or [np.zeros(0, np.int64)]))
    x[places] = np.arange(1, len(places) + 1)
    return x


def _share(x: Floats, column: Column) -> float:
    return float(np.isfinite(x[column.places]).mean())


def _counts_within(step: Floats, epoch: Floats) -> bool:
    """Whether a step is the number of a batch, which begins anew while the epochs go on."""
    both = np.isfinite(step) & np.isfinite(epoch)
    step, epoch = step[both], epoch[both]
    falls = np.diff(step) < 0
    return bool(falls.sum() > 1 and (np.diff(epoch)[falls] > 0).mean() > 0.8)


def _crowded(x: Floats, measured: Mapping[str, Column]) -> float:
    """How many points of the curve that matters lie at one x, side by side."""
    on_val = measured.get("val_loss") or measured.get("val_metric")
    column = on_val or max(measured.values(), key=lambda one: len(one.places))
    points = x[column.places]
    stretches = 1 + np.count_nonzero(np.diff(points))
    if on_val is None and stretches >= 3:
        return 1.0
    return float(len(points) / stretches)


def _joined(epoch: Floats, step: Floats, notes: list[str]) -> tuple[str, Floats]:
    """x where some records have an epoch and others a step: epochs where two or more of them tell the step."""
    order = np.arange(len(step))
    known = np.where(np.isfinite(step), order, -1)
    last = np.maximum.accumulate(known)
    at = np.where(last >= 0, step[last], np.nan)  # the step that was logged last before a record
    anchors = np.isfinite(epoch) & np.isfinite(at)
    steps, places = np.unique(at[anchors], return_index=True)
    epochs = epoch[anchors][places]
    if len(steps) >= 2 and bool((np.diff(epochs) > 0).all()):
        notes.append("some records have a step and others an epoch: steps are placed between the epochs around them")
        return "epoch", np.where(np.isfinite(epoch), epoch, _line(step, steps, epochs))
    notes.append("some records have a step and others an epoch: those without a step lie at the one before")
    return "step", np.where(np.isfinite(step), step, np.where(np.isfinite(epoch), at, np.nan))


def _line(x: Floats, known: Floats, values: Floats) -> Floats:
    """Linear between known points, and on beyond them with the slope at the end."""
    y = np.interp(x, known, values)
    first = (values[1] - values[0]) / (known[1] - known[0])
    final = (values[-1] - values[-2]) / (known[-1] - known[-2])
    y = np.where(x < known[0], values[0] + (x - known[0]) * first, y)
    return np.where(x > known[-1], values[-1] + (x - known[-1]) * final, y)


# -- runs that went back ----------------------------------------------------------------------------------------------


def _followed(x: Floats, measured: list[Column], unit: str, notes: list[str]) -> Floats:
    """x without the records that a run left behind when it went back to an earlier epoch: they become nan."""
    x, restarts, dropped = x.copy(), 0, 0
    if not any(_repeats(x, column) for column in measured):
        return x
    if sum(_falls(x, column) for column in measured) > _RESTARTS:
        notes.append(f"the {unit}s are in no order: points are sorted, and of equal {unit}s the later counts")
        return x
    while restarts < _RESTARTS:
        backs = [place for column in measured if (place := _goes_back(x, column)) is not None]
        if not backs:
            break
        place = min(backs)
        left = np.flatnonzero(x[:place] >= x[place])
        x[left] = np.nan
        restarts, dropped = restarts + 1, dropped + len(left)
    if restarts:
        times = "once" if restarts == 1 else f"{restarts} times"
        notes.append(f"the run went back to an earlier {unit} {times}: what it did there later counts, "
                     f"{dropped:,} records before are left out")  # fmt: skip
    return x


def _points(x: Floats, column: Column) -> tuple[Floats, Places]:
    points = x[column.places]
    there = np.isfinite(points)
    return points[there], column.places[there]


def _falls(x: Floats, column: Column) -> int:
    return int((np.diff(_points(x, column)[0]) < 0).sum())


def _repeats(x: Floats, column: Column) -> bool:
    """Whether a curve comes to an x again after it was elsewhere."""
    points, _ = _points(x, column)
    if len(points) < 2 or not bool((np.diff(points) < 0).any()):
        return False
    starts = points[np.concatenate([[True], np.diff(points) != 0])]
    return len(np.unique(starts)) < len(starts)


def _goes_back(x: Floats, column: Column) -> int | None:
    """The first record at which a curve lies before its own last point."""
    points, places = _points(x, column)
    falls = np.flatnonzero(np.diff(points) < 0)
    return int(places[falls[0] + 1]) if len(falls) else None


# -- curves -----------------------------------------------------------------------------------------------------------


def _series(name: str, column: Column, x: Floats, unit: str, notes: list[str]) -> Series:
    """One curve in order, one point for each x."""
    points = x[column.places]
    there = np.isfinite(points)
    points, values = points[there], column.values[there]
    steps = np.diff(points)
    if bool((steps > 0).all()):
        return Series(name, points, values)
    stretch = np.concatenate([[0], np.cumsum(steps != 0)])
    order = np.lexsort((stretch, points))
    if bool((steps < 0).any()):
        notes.append(f"the points of {name!r} were not in order of {unit}s and are sorted")
    points, values, stretch = points[order], values[order], stretch[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(points) != 0]))
    counts = np.diff(np.concatenate([first, [len(points)]]))
    latest = stretch[first + counts - 1]  # of several stretches at one x the last
    kept = stretch == np.repeat(latest, counts)
    values = np.where(kept, values, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.add.reduceat(values, first) / np.add.reduceat(kept.astype(np.float64), first)
    if int(kept.sum()) > len(first):
        notes.append(f"{name!r} has {len(points):,} points in {len(first):,} {unit}s: the mean of each is taken")
    return Series(name, points[first], means)


def _settled(series: Series, role: str, mode: str, notes: list[str]) -> Series:
    """A curve with its mode, and in shares of 1 where it is in percent."""
    if role == "rate":
        return series
    series = replace(series, mode="min" if role.endswith("loss") else mode or _mode(series.name, notes))
    if not _in_percent(series):
        return series
    notes.append(f"{series.name!r} is in percent and is divided by 100")
    return replace(series, y=series.y / 100)


def _mode(name: str, notes: list[str]) -> str:
    try:
        return mode_of("_".join((name, *read_name(name).base)))
    except ValueError:
        notes.append(f"{name!r} does not say whether a high or a low value is best, so it is left out: mode= says it")
        return ""


def _in_percent(series: Series) -> bool:
    """Whether a metric that cannot be above 1 is: then it is in percent, as far as it stays below 100."""
    values = series.finite.y
    kind = set(read_name(series.name).base)
    if series.mode != "max" or not kind & set(_SHARES.split()) or not len(values):
        return False
    return bool(values.max() > 1.5 and values.max() <= 100 and values.min() >= 0)
