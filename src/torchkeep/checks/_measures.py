"""What several checks measure in the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.curves import Curves, Series, Setting
from ..core.trend import fisher, level, noise, slope

_LAST = 3


def chance(setting: Setting) -> float | None:
    """The loss of a model that has learned nothing: ln(classes), or the variance of the targets."""
    if setting.classes is not None and setting.classes > 1:
        return math.log(setting.classes)
    return setting.target_variance


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


def steepness(series: Series) -> tuple[float, float, float]:
    """Of a stretch: its slope a point, relative to its mean, how many standard errors that is, and its length."""
    steep, error = slope(series.x, series.y)
    step = float(np.median(np.diff(series.x))) if len(series) > 1 else 1.0
    size = max(abs(float(series.y.mean())), 1e-12)
    return steep * step / size, steep / error if error else math.copysign(math.inf, steep), float(len(series))


def straightness(series: Series) -> float:
    """The share of a curve's variance that one straight line explains."""
    steep, _ = slope(series.x, series.y)
    about = series.y - series.y.mean()
    left = about - steep * (series.x - series.x.mean())
    return 1 - float(left @ left) / max(float(about @ about), 1e-24)


@dataclass(frozen=True, slots=True)
class Rise:
    """How far a validation loss has risen from its lowest point.

    Attributes:
        lowest, end: the loss there and at the end (the mean of the last three points).
        at: x of the lowest point.
        gl: Prechelt's generalisation loss, 100 (end / lowest - 1), in percent.
        errors: the rise in standard deviations of its noise, less what the lowest of so many points is low by chance.
    """

    lowest: float
    end: float
    at: float
    gl: float
    errors: float


def rise_of(loss: Series) -> Rise | None:
    """The rise of a loss; None for fewer than four points that are numbers."""
    loss = loss.finite
    if len(loss) < 4:
        return None
    at = loss.best
    end = float(np.mean(loss.y[-_LAST:]))
    lowest = float(loss.y[at])
    sd = max(noise(loss.y), 1e-3 * abs(lowest), 1e-12)
    luck = sd * math.sqrt(2 * math.log(len(loss)))
    gl = 100 * (end / lowest - 1) if lowest > 0 else 0.0
    return Rise(lowest, end, float(loss.x[at]), gl, (end - lowest - luck) / (sd * math.sqrt(1 + 1 / _LAST)))


@dataclass(frozen=True, slots=True)
class Fall:
    """How far a metric has fallen from its best.

    Attributes:
        best, end: the metric there and at the end (the mean of the last three points).
        at: x of the best point.
        share: the fall, as a share of the best where lower is better, in the metric's own unit else.
        chance: the probability of such a fall where nothing changed: by Fisher's exact test where the number of
            examples is known and the metric is a share of them, else by the noise of the curve.
    """

    best: float
    end: float
    at: float
    share: float
    chance: float


def fall_of(metric: Series, n_val: int | None) -> Fall | None:
    """The fall of a metric; None for fewer than four points that are numbers."""
    metric = metric.finite
    if len(metric) < 4:
        return None
    sign = 1.0 if metric.mode != "min" else -1.0
    at = metric.best
    best, end = float(metric.y[at]), float(np.mean(metric.y[-_LAST:]))
    fall = sign * (best - end)
    sd = max(noise(metric.y), 1e-3 * max(abs(best), 1e-3))
    luck = sd * math.sqrt(2 * math.log(len(metric)))
    by_noise = 0.5 * math.erfc((fall - luck) / (sd * math.sqrt(1 + 1 / _LAST)) / math.sqrt(2))
    share = metric.mode != "min" and 0 <= end <= 1 and 0 <= best <= 1
    if n_val and share:
        exact = fisher(round(best * n_val), n_val, round(end * n_val), n_val)
        return Fall(best, end, float(metric.x[at]), fall, max(by_noise, exact) if fall > 0 else 1.0)
    return Fall(best, end, float(metric.x[at]), fall, by_noise)
