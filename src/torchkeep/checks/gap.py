"""How much worse is it on what it has not seen?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Series, Setting
from ..core.diagnosis import Sign
from ..core.trend import level
from ._measures import chance, steepness, tail
from ._sign import sign

_LARGE = 0.1


class Gap:
    """The validation loss is above the training loss by {gap:.0%} of what there is to learn ({train:.3g} and
    {val:.3g}), and the gap {trend}."""

    code = "gap"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """(validation - training) / loss of chance at the end, and whether it grows over the last third."""
        known = chance(setting)
        if known is None or curves.train_loss is None or curves.val_loss is None:
            return None
        train, val = curves.train_loss.finite, curves.val_loss.finite
        if len(train) < 4 or len(val) < 4:
            return None
        gap = (level(val.y) - level(train.y)) / known
        if gap < _LARGE:
            return None
        between = Series("gap", val.x, val.y - np.interp(val.x, train.x, train.y))
        rate, errors, _ = steepness(tail(between))
        grows = errors > 3 and rate > 0.005
        trend = "grows" if grows else "is stable"
        return sign(self, "warning", gap=gap, train=level(train.y), val=level(val.y), trend=trend, grows=grows)
