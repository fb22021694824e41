"""Did the loss stop being a number?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._sign import sign


class NotANumber:
    """{name} is not a number at {count} of {points} points, the first time at {first:g}."""

    code = "not-a-number"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """In the training loss first, then in the validation loss."""
        for series in (curves.train_loss, curves.val_loss):
            if series is None or bool(np.isfinite(series.y).all()):
                continue
            wrong = ~np.isfinite(series.y)
            first = float(series.x[int(np.argmax(wrong))])
            count = int(wrong.sum())
            return sign(self, "danger", since=first, name=series.name, count=count, points=len(series), first=first)
        return None
