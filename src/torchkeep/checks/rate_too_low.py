"""Does the training loss creep?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import slope
from ._measures import signal, straightness
from ._sign import sign

_STRAIGHT, _SIGNAL = 0.97, 0.5


class RateTooLow:
    """The training loss creeps down in nearly a straight line ({straight:.0%} of its fall is one): the learning rate
    is too low, or training has hardly begun."""

    code = "rate-too-low"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """A straight line explains the fall, and little was learned."""
        series = curves.train_loss.finite if curves.train_loss is not None else None
        if series is None or len(series) < 6:
            return None
        steep, _ = slope(series.x, series.y)
        straight = straightness(series)
        learned = signal(curves, setting)
        fallen = 1 - float(np.mean(series.y[-2:])) / max(float(series.y[0]), 1e-12)
        if steep >= 0 or straight < _STRAIGHT or (fallen if learned is None else learned) > _SIGNAL:
            return None
        return sign(self, "warning", straight=straight, fallen=fallen)
