"""Did the training loss stop falling?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import noise
from ._measures import steepness, tail
from ._sign import sign

_RATE = 0.003


class Plateau:
    """{name} has stopped falling: {rate:+.2%} a point over the last {points}."""

    code = "plateau"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The last third is level: its slope is small, or no larger than its noise."""
        series = curves.train_loss or curves.val_loss
        if series is None or len(series.finite) < 6:
            return None
        last = tail(series.finite)
        rate, errors, points = steepness(last)
        spread = noise(last.y) / max(abs(float(last.y.mean())), 1e-12)
        if rate < -max(_RATE, spread / points) and errors < -3:
            return None
        return sign(self, "info", since=float(last.x[0]), name=series.name, rate=rate, points=int(points))
