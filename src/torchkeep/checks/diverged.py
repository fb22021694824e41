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
_NO_LOSS = 1e18  # nothing that is measured gives such a loss; overflowing weights do


class Diverged:
    """Training has come apart: its loss ends at {end:.3g}, after {peak:.3g} at most and {lowest:.3g} at {at:g}."""

    code = "diverged"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """It overflowed, or ends far above chance, or well above its lowest point and above chance or the beginning."""
        loss = curves.train_loss.finite if curves.train_loss is not None else None
        if loss is None or len(loss) < 4:
            return None
        end, at = level(loss.y), loss.best
        lowest, peak, start = float(loss.y[at]), float(np.max(loss.y)), float(np.max(loss.y[:2]))
        known = chance(setting)
        above = max(known or start, lowest)
        blown = peak > _NO_LOSS or (known is not None and end > _BLOWN * known)
        if not blown and (end < _TIMES * lowest or end < 1.1 * above):
            return None
        lost = not blown and curves.val_metric is not None and learns_nothing(curves.val_metric, setting)
        figures = {"end": end, "lowest": lowest, "at": float(loss.x[at]), "peak": peak}
        return sign(self, "danger", since=float(loss.x[at]), **figures, lost=lost)
