"""Would going on have helped?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level, power_law
from ._measures import steepness, tail
from ._sign import sign

_ERRORS, _GAIN = -3.0, 0.1


class StillFalling:
    """{name} was still falling when training ended: by {rate:.1%} a point over the last {points}; twice as many points
    would bring it from {now:.3g} to about {then:.3g} ({low:.3g} to {high:.3g})."""

    code = "still-falling"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The slope of the last third, with its error, and a power law that says what it would be worth."""
        series = curves.train_loss or curves.val_loss
        if series is None or len(series.finite) < 5:
            return None
        series = series.finite
        last = tail(series)
        rate, errors, points = steepness(last)
        law = power_law(series.x, series.y)
        if law is None or errors > _ERRORS:
            return None
        now = level(series.y)
        then, low, high = law.at(2 * len(series))
        then = max(then, 0.0) if now >= 0 else then
        if now - then < _GAIN * abs(now):
            return None
        since = float(last.x[0])
        return sign(
            self, "info", since=since, name=series.name, rate=-rate, points=int(points), now=now, then=then,
            low=max(low, 0.0) if now >= 0 else low, high=high, errors=errors,
        )  # fmt: skip
