"""Would going on have helped?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level, power_law
from ._measures import steepness, straightness, tail
from ._sign import sign

_ERRORS, _GAIN, _STRAIGHT = -3.0, 0.1, 0.9


class StillFalling:
    """{name} was still falling when training ended: by {rate:.1%} a point over the last {points}. Half as long again
    would bring it from {now:.3g} to about {then:.3g}."""

    code = "still-falling"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The slope of the last third, with its error; what going on is worth by a power law, or by a straight line
        where that fits better."""
        series = curves.train_loss or curves.val_loss
        if series is None or len(series.finite) < 5:
            return None
        series = series.finite
        last = tail(series)
        rate, errors, points = steepness(last)
        now, further = level(series.y), len(series) / 2
        if errors > _ERRORS or now <= 0:
            return None
        law = power_law(series.x, series.y)
        per_point = rate * float(last.y.mean())
        straight = now + per_point * further if straightness(last) > _STRAIGHT else now
        then = max(0.0, min(straight, now if law is None else law.at(len(series) + further)[0]))
        if now - then < _GAIN * now:
            return None
        since = float(last.x[0])
        return sign(
            self, "info", since=since, name=series.name, rate=-rate, points=int(points), now=now, then=then,
            errors=errors,
        )  # fmt: skip
