"""What several checks measure in the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.curves import Curves, Series, Setting
from ..core.trend import level, noise, slope, smoothed

_CALM = 0.7  # of the climbs of the training loss
_FLAT = 1e-3  # of its level: the least noise that a curve is taken to have


def chance(setting: Setting) -> float | None:
    """The loss of a model that has learned nothing: ln(classes), or the variance of the targets."""
    if setting.classes is not None and setting.classes > 1:
        return math.log(setting.classes)
    return setting.target_variance


def scale(curves: Curves, setting: Setting) -> float | None:
    """What a loss is measured in: that of chance, or, where nobody says what that is, the first one there was."""
    known = chance(setting)
    if known is not None:
        return known
    series = curves.train_loss or curves.val_loss
    first = None if series is None or not len(series.finite) else float(series.finite.y[0])
    return first if first is not None and first > 0 else None


def fitted(curves: Curves) -> float | None:
    """Where the training loss ends.

    Dropout and augmentation raise the loss that is logged while training; a validation loss below it says that the
    model fits at least so well.
    """
    found = [level(one.finite.y) for one in (curves.train_loss, curves.val_loss) if one is not None and len(one.finite)]
    return min(found) if curves.train_loss is not None and found else None


def signal(curves: Curves, setting: Setting) -> float | None:
    """How much of what there is to learn was fitted: 1 - loss / loss of chance; None where either is not known."""
    known, loss = chance(setting), fitted(curves)
    return None if known is None or loss is None else 1 - loss / known


def tail(series: Series, share: float = 1 / 3, least: int = 5) -> Series:
    """The last part of a curve."""
    count = min(len(series), max(least, round(len(series) * share)))
    return Series(series.name, series.x[-count:], series.y[-count:], series.mode)


def change(series: Series) -> tuple[float, float]:
    """How far a stretch rises, by a straight line and as a share of its mean, and how many standard errors that is."""
    steep, error = slope(series.x, series.y)
    size = max(abs(float(series.y.mean())), 1e-12)
    whole = steep * float(series.x[-1] - series.x[0]) / size
    return whole, steep / error if error else math.copysign(math.inf, steep) if steep else 0.0


def pace(series: Series) -> float:
    """How fast a curve falls over its last third beside its whole course: 1 is a straight line, 0 a level end."""
    last = tail(series)
    steep, _ = slope(last.x, last.y)
    span = float(series.x[-1] - series.x[0])
    whole = (float(series.y[0]) - level(series.y)) / span if span else 0.0
    return -steep / whole if whole > 0 else 0.0


def climbing(series: Series) -> float:
    """By how much a curve rises a point, on average over its second half, falls counted as nothing."""
    return float(np.mean(np.maximum(np.diff(series.y[len(series) // 2 :]), 0)))


def only_training_jumps(curves: Curves) -> bool:
    """Whether the validation loss climbs much less than the training loss: the weights are calm, and dropout is not."""
    train, val = curves.train_loss, curves.val_loss
    if train is None or val is None or len(train.finite) < 6 or len(val.finite) < 6:
        return False
    return climbing(val.finite) < _CALM * climbing(train.finite)


def final_share(metric: Series | None) -> float | None:
    """Where a metric ends that is a share of what is right, 0 to 1; None for any other."""
    known = metric.finite if metric is not None and metric.mode != "min" else None
    if known is None or not len(known):
        return None
    end = level(known.y)
    return end if 0 <= end <= 1 else None


_SGD, _ADAPTIVE = 0.1, 1e-3  # the learning rates that most begin with
_SCALED = ("adam", "rmsprop", "adagrad", "lamb", "lion")  # those whose steps do not grow with the gradient


def usual_rate(setting: Setting) -> float | None:
    """The learning rate that is usual for an optimizer; None where it is not known, or none is usual."""
    name = (setting.optimizer or "").lower()
    if any(one in name for one in _SCALED):
        return _ADAPTIVE
    return _SGD if "sgd" in name else None


def tempo(setting: Setting) -> float | None:
    """How many times the usual the learning rate is, momentum counted in; None where it is not known."""
    usual = usual_rate(setting)
    if usual is None or setting.rate is None:
        return None
    kept = 1 - (setting.momentum or 0.0) if usual == _SGD else 1.0
    return setting.rate / max(kept, 1e-3) / usual


def way(curves: Curves, setting: Setting) -> float | None:
    """How far training went, in steps of the usual rate: its steps times its tempo; None where either is not known."""
    speed, series = tempo(setting), curves.train_loss or curves.val_loss
    if speed is None or series is None or not len(series):
        return None
    if curves.unit == "step":
        return speed * float(series.x[-1])
    if setting.n_train is None or setting.batch is None:
        return None
    epochs = float(series.x[-1] - series.x[0]) + 1
    return speed * epochs * math.ceil(setting.n_train / setting.batch)


def mistakes(curves: Curves, setting: Setting) -> float | None:
    """How many validation examples the model gets wrong at the end; None where that cannot be told.

    They carry the validation loss: what fewer than a handful of them do is no property of the model.
    """
    end = final_share(curves.val_metric)
    return None if end is None or setting.n_val is None else (1 - end) * setting.n_val


@dataclass(frozen=True, slots=True)
class Turn:
    """How much worse a curve ends than it was at its best, both as means over windows of a tenth of its points.

    Attributes:
        best, end: the means.
        at: x of the middle of the best window.
        by: how much worse, above 0.
        errors: the same in standard errors, by the noise of the curve.
    """

    best: float
    end: float
    at: float
    by: float
    errors: float

    @property
    def gl(self) -> float:
        """Prechelt's generalisation loss of a curve that should fall: 100 (end / best - 1), in percent."""
        return 100 * (self.end / self.best - 1) if self.best > 0 else 0.0


def turn_of(series: Series, grain: float = 0.0) -> Turn | None:
    """The turn of a curve; None for fewer than four points that are numbers.

    Args:
        grain: the step in which the values come, e.g. one example's worth of an accuracy; the noise is at least that.
    """
    series = series.finite
    if len(series) < 4:
        return None
    upward = series.mode == "max"
    means = smoothed(series.y)
    width = len(series) - len(means) + 1
    place = int(np.argmax(means) if upward else np.argmin(means))
    best, end = float(means[place]), float(means[-1])
    by = best - end if upward else end - best
    sd = max(noise(series.y), _FLAT * abs(best), grain / 2, 1e-12)
    at = float(series.x[place + width // 2])
    return Turn(best, end, at, by, by / (sd * math.sqrt(2 / width)))


@dataclass(frozen=True, slots=True)
class Gap:
    """How much better a model is on what it was trained on.

    Attributes:
        loss: validation loss above training loss, in losses of chance.
        metric: training metric above validation metric; None where neither is known.
        grows: whether the first of them grew over the last third.
    """

    loss: float
    metric: float | None
    grows: bool


_FITTED = 0.9  # of the signal: above it the training metric is taken to be as good as perfect


def gap_of(curves: Curves, setting: Setting) -> Gap | None:
    """The gap; None where a loss or its scale is not known."""
    known = scale(curves, setting)
    if known is None or curves.train_loss is None or curves.val_loss is None:
        return None
    train, val = curves.train_loss.finite, curves.val_loss.finite
    if len(train) < 4 or len(val) < 4:
        return None
    between = Series("gap", val.x, val.y - np.interp(val.x, train.x, train.y))
    grown, errors = change(tail(between))
    return Gap((level(val.y) - level(train.y)) / known, _metric_gap(curves, setting), errors > 3 and grown > 0.05)


def _metric_gap(curves: Curves, setting: Setting) -> float | None:
    val = curves.val_metric.finite if curves.val_metric is not None else None
    if val is None or not len(val):
        return None
    sign = -1.0 if val.mode == "min" else 1.0
    train = curves.train_metric.finite if curves.train_metric is not None else None
    if train is not None and len(train):
        return sign * (level(train.y) - level(val.y))
    learned = signal(curves, setting)
    share = val.mode == "max" and 0 <= level(val.y) <= 1
    return 1 - level(val.y) if share and learned is not None and learned >= _FITTED else None
