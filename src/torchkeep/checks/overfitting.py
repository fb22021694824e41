"""Has the model begun to learn the training set by heart?"""

from __future__ import annotations

import math

from ..core.curves import Curves, Series, Setting
from ..core.diagnosis import Sign
from ..core.trend import share_error
from ._measures import Turn, scale, signal, turn_of
from ._sign import sign

ERRORS = 4.0
_RISE, _LEAST = 0.025, 0.01  # of the lowest loss, and of the loss of chance
_VARYING = 0.4
_FAR, _FAR_PAIRS, _FITTED = 0.03, 2.0, 0.5
_FALL, _PAIRS, _LEARNED = 0.015, 1.5, 0.1


class Overfitting:
    """The validation loss has risen by {gl:.0f} % since about {at:g} ({lowest:.3g} to {end:.3g}){metric}."""

    code = "overfitting"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The validation loss has risen beyond its noise, and the metric, if there is one, has fallen beyond its own
        and by more examples than change sides by chance; or it never was above chance."""
        rise = rise_of(curves, setting) or _forgets(curves, setting)
        if rise is None:
            return None
        figures = {"gl": rise.gl, "at": rise.at, "lowest": rise.best, "end": rise.end, "errors": rise.errors}
        metric = curves.val_metric
        if metric is None:
            return sign(self, "danger", since=rise.at, metric="", **figures) if _is_large(rise, setting) else None
        fall = fall_of(metric, setting)
        if fall is not None:
            said = f", and {metric.name} has fallen from {fall.best:.3g} to {fall.end:.3g}"
            return sign(self, "danger", since=rise.at, metric=said, **figures, fall=fall.by, fall_errors=fall.errors)
        if learns_nothing(metric, setting) and (signal(curves, setting) or 0) >= _LEARNED:
            said = f", and {metric.name} never was above chance: only the training set is learned"
            return sign(self, "danger", since=rise.at, metric=said, **figures)
        return None


def _is_large(rise: Turn, setting: Setting) -> bool:
    """Whether so many examples tell such a rise: their errors vary about as much as they are large."""
    return setting.n_val is None or rise.by >= _VARYING * rise.best / math.sqrt(setting.n_val)


def rise_of(curves: Curves, setting: Setting) -> Turn | None:
    """How far the validation loss has risen; None where it has not, beyond its noise."""
    known = scale(curves, setting)
    turn = turn_of(curves.val_loss) if curves.val_loss is not None else None
    if turn is None or known is None or turn.best <= 0:
        return None
    large = turn.by >= _RISE * turn.best and turn.by >= _LEAST * known
    return turn if large and turn.errors >= ERRORS else None


def _forgets(curves: Curves, setting: Setting) -> Turn | None:
    """The turn of the validation loss, however small, where the metric has fallen far."""
    fall = None if curves.val_metric is None else fall_of(curves.val_metric, setting)
    if fall is None or curves.val_loss is None or curves.val_metric is None or curves.val_metric.mode == "min":
        return None
    if (signal(curves, setting) or 0.0) < _FITTED:
        return None
    pairs = math.inf if setting.n_val is None else math.sqrt(fall.by * setting.n_val / 2)
    return turn_of(curves.val_loss) if fall.by >= _FAR and pairs >= _FAR_PAIRS else None


def fall_of(metric: Series, setting: Setting) -> Turn | None:
    """How far the metric has fallen; None where it has not, beyond its noise and beyond the chance of few examples.

    Where so many of n examples as the fall is worth have changed sides, and as many again in either direction, the
    difference has that many standard errors (McNemar): sqrt(examples / 2).
    """
    grain = 1 / setting.n_val if setting.n_val else 0.0
    turn = turn_of(metric, grain)
    if turn is None or turn.errors < ERRORS - 1:
        return None
    if metric.mode == "min":
        return turn if turn.by >= _RISE * abs(turn.best) else None
    examples = turn.by * setting.n_val if setting.n_val else math.inf
    return turn if turn.by >= _FALL and math.sqrt(examples / 2) >= _PAIRS else None


def learns_nothing(metric: Series, setting: Setting) -> bool:
    """Whether a share of what is right was never clearly above that of guessing."""
    turn = turn_of(metric)
    if turn is None or metric.mode == "min" or not setting.classes or not setting.n_val:
        return False
    guessed = 1 / setting.classes
    return turn.best <= guessed + 2 * share_error(guessed, setting.n_val) + 0.02
