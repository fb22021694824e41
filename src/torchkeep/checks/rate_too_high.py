"""Does the training loss jump about?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import climbing, scale
from ._sign import sign

_CLIMB = 0.012
_DROPOUT, _TIMES = 0.5, 3.0  # dropout so strong makes a training loss jump by itself


class RateTooHigh:
    """The training loss jumps about: over the second half it rose by {climb:.1%} of what there is to learn a point, on
    average: the learning rate is too high for it."""

    code = "rate-too-high"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The mean of its rises over the second half, in losses of chance."""
        series = curves.train_loss.finite if curves.train_loss is not None else None
        known = scale(curves, setting)
        if series is None or known is None or len(series) < 6:
            return None
        climb = climbing(series) / known
        strong = setting.dropout is not None and setting.dropout >= _DROPOUT
        least = _CLIMB * (_TIMES if strong else 1.0)
        return sign(self, "warning", climb=climb) if climb >= least else None
