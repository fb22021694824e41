"""Is it only the loss that gets worse?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import mistakes
from ._sign import sign
from .overfitting import fall_of, learns_nothing, rise_of

_GL, _MISTAKES = 10.0, 8.0


class OverConfident:
    """The validation loss has risen by {gl:.0f} % since about {at:g}, and {name} holds ({end:.3g}): the model is surer
    of its mistakes and makes no more of them."""

    code = "over-confident"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """A rise of a tenth, carried by enough mistakes to be no accident, and a metric that has not fallen."""
        metric, rise = curves.val_metric, rise_of(curves, setting)
        if metric is None or rise is None or rise.gl < _GL:
            return None
        carried = mistakes(curves, setting)
        if carried is not None and carried < _MISTAKES:
            return None
        if fall_of(metric, setting) is not None or learns_nothing(metric, setting):
            return None
        figures = {"gl": rise.gl, "at": rise.at, "end": float(metric.finite.y[-1]), "errors": rise.errors}
        figures |= {} if carried is None else {"mistakes": carried}
        return sign(self, "warning", since=rise.at, name=metric.name, **figures)
