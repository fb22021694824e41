"""Which epoch was best, and how much work came after it?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._sign import sign


class BestEpoch:
    """{name} is best at {at:g} ({value:.4g}); {after:.0%} of the training came after it."""

    code = "best-epoch"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """By the validation metric, else by the validation loss."""
        series = curves.val_metric or curves.val_loss
        if series is None or not np.isfinite(series.y).any():
            return None
        at = series.best
        span = float(series.x[-1] - series.x[0])
        after = float(series.x[-1] - series.x[at]) / span if span > 0 else 0.0
        return sign(self, "info", name=series.name, at=float(series.x[at]), value=float(series.y[at]), after=after)
