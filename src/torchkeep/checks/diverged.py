"""Did training make the training loss worse?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level
from ._measures import chance
from ._sign import sign
from .overfitting import learns_nothing

_TIMES = 1.5
_BLOWN = 10  # times chance: below that a model that never knew anything jumps about, and has not come apart


class Diverged:
    """The training loss ends at {end:.3g}, after it was {lowest:.3g} at {at:g}: training has come apart."""

    code = "diverged"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The end is well above the lowest point, and above chance or above the beginning."""
        loss = curves.train_loss.finite if curves.train_loss is not None else None
        if loss is None or len(loss) < 4:
            return None
        end, at = level(loss.y), loss.best
        lowest, start = float(loss.y[at]), float(np.max(loss.y[:2]))
        above = max(chance(setting) or start, lowest)
        if end < _TIMES * lowest or end < 1.1 * above:
            return None
        lost = curves.val_metric is not None and end < _BLOWN * above and learns_nothing(curves.val_metric, setting)
        figures = {"end": end, "lowest": lowest, "at": float(loss.x[at])}
        return sign(self, "danger", since=float(loss.x[at]), **figures, lost=lost)
