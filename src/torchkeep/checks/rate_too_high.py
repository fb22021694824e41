"""Does the training loss jump about?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import noise
from ._measures import chance
from ._sign import sign

_UPS, _SIZE = 0.3, 0.1


class RateTooHigh:
    """The training loss jumps about: it rose at {ups:.0%} of the points, and the jumps are {size:.0%} of what it has
    fallen by: the learning rate is too high for it."""

    code = "rate-too-high"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """After the first tenth, rises are frequent, and the noise is large beside the whole fall of the loss."""
        series = curves.train_loss.finite if curves.train_loss is not None else None
        if series is None or len(series) < 6:
            return None
        y = series.y[max(1, len(series) // 10) :]
        ups = float(np.mean(np.diff(y) > 0))
        top = min(float(series.y.max()), chance(setting) or np.inf)
        fallen = max(top - float(series.y.min()), 1e-12)
        size = noise(y) / fallen
        if ups < _UPS or size < _SIZE:
            return None
        return sign(self, "warning", ups=ups, size=size)
