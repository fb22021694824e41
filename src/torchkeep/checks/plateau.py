"""Did the training loss stop falling?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import change, tail
from ._sign import sign

_SHARE, _ERRORS = -0.03, -3.0


class Plateau:
    """{name} has come to rest: {change:+.1%} over the last third."""

    code = "plateau"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Over the last third it fell by less than 3 %, or by no more than its noise explains."""
        series = curves.train_loss or curves.val_loss
        if series is None or len(series.finite) < 6:
            return None
        last = tail(series.finite)
        whole, errors = change(last)
        if whole < _SHARE and errors < _ERRORS:
            return None
        return sign(self, "info", since=float(last.x[0]), name=series.name, change=whole)
