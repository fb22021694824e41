"""Would going on have helped?"""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Series, Setting
from ..core.diagnosis import Sign
from ..core.trend import level, smoothed
from ._measures import change, final_share, scale, tail
from ._sign import sign

_ERRORS = -2.0
_METRIC, _LOSS = 0.025, 0.04


class StillFalling:
    """{name} was still falling when training ended, by {fall:.0%} over the last third; going on as long again promises
    about {gain:.3g} {of}."""

    code = "still-falling"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The loss goes on falling by as large a share in each of two more such stretches, and mistakes fall with it:
        what that comes to is above 0.025 of a share of 1, or above 0.04 of the loss of chance where there is none."""
        series = curves.val_loss or curves.train_loss
        known = scale(curves, setting)
        if series is None or known is None or len(series.finite) < 5:
            return None
        series = series.finite
        last = tail(series)
        whole, errors = change(last)
        if errors > _ERRORS or whole >= 0:
            return None
        part = 1 - max(0.0, 1 + whole) ** 2
        right = final_share(curves.val_metric)
        wrong = None if right is None else 1 - right
        if wrong is not None and _rests(curves.val_metric):
            return None
        gain = part * (level(series.y) / known if wrong is None else wrong)
        if gain < (_LOSS if wrong is None else _METRIC):
            return None
        of = "of the loss of chance" if wrong is None else f"of {curves.val_metric.name if curves.val_metric else ''}"
        since = float(last.x[0])
        figures = {"fall": -whole, "gain": gain, "errors": errors, "left": level(series.y) / known}
        return sign(self, "info", since=since, name=series.name, of=of, **figures)


def _rests(metric: Series | None) -> bool:
    """Whether the metric was as good in the first half as at the end."""
    means = smoothed(metric.finite.y) if metric is not None and len(metric.finite) >= 6 else np.zeros(0)
    return len(means) > 1 and float(means[-1]) <= float(means[: len(means) // 2].max())
