"""Has training hardly begun?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import pace, scale, signal
from ._sign import sign

_PACE, _SIGNAL, _BEGUN = 0.8, 0.6, 0.01


class RateTooLow:
    """The training loss falls at the end at {pace:.0%} of its average pace, and {learned:.0%} of what there is to learn
    was fitted: training has hardly begun, or the learning rate is too low."""

    code = "rate-too-low"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """It has not begun to level off, little was learned, and something was."""
        series = curves.train_loss.finite if curves.train_loss is not None else None
        known = scale(curves, setting)
        if series is None or known is None or len(series) < 4:
            return None
        learned = signal(curves, setting)
        fallen = (float(series.y[0]) - float(series.y[-1])) / known
        share = fallen if learned is None else learned
        ends = pace(series)
        if ends < _PACE or share > _SIGNAL or fallen < _BEGUN:
            return None
        return sign(self, "warning", pace=ends, learned=max(share, 0.0), points=len(series))
