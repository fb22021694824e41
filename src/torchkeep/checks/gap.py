"""How much worse is it on what it has not seen?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level
from ._measures import gap_of
from ._sign import sign

_METRIC, _LOSS = 0.1, 0.2


class Gap:
    """The model is better on what it was trained on, {how}; the gap {trend}."""

    code = "gap"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """By 0.1 of a share of 1, or, where the metrics do not tell, by a fifth of the loss of chance."""
        gap = gap_of(curves, setting)
        if gap is None or (gap.loss < _LOSS if gap.metric is None else gap.metric < _METRIC):
            return None
        trend = "grows" if gap.grows else "is stable"
        if gap.metric is None:
            how = f"by {gap.loss:.0%} of what there is to learn"
            return sign(self, "warning", how=how, trend=trend, loss_gap=gap.loss, grows=gap.grows)
        name = curves.val_metric.name if curves.val_metric is not None else ""
        end = level(curves.val_metric.finite.y) if curves.val_metric is not None else 0.0
        how = f"where {name} is about {end + gap.metric:.3g}, and {end:.3g} on what it has not seen"
        return sign(self, "warning", how=how, trend=trend, metric_gap=gap.metric, loss_gap=gap.loss, grows=gap.grows)
