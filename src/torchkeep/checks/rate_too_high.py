"""Does the training loss jump about?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import climbing, only_training_jumps, scale
from ._sign import sign

_CLIMB = 0.012


class RateTooHigh:
    """The training loss jumps about: over the second half it rose by {climb:.1%} of what there is to learn a point, on
    average: the learning rate is too high for it."""

    code = "rate-too-high"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The mean of its rises over the second half, in losses of chance; the validation loss jumps as well, or it is
        dropout that makes the training loss jump."""
        series = curves.train_loss.finite if curves.train_loss is not None else None
        known = scale(curves, setting)
        if series is None or known is None or len(series) < 6:
            return None
        climb = climbing(series) / known
        return sign(self, "warning", climb=climb) if climb >= _CLIMB and not only_training_jumps(curves) else None
