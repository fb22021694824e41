"""Is the learning rate far from what others begin with?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import final_share, signal, tempo, usual_rate
from ._sign import sign

_HIGH, _LOW = 25.0, 0.16


class UnusualRate:
    """The learning rate is {times:.3g} times {usual:g}, which is usual for {name}."""

    code = "unusual-rate"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """25 times or more, or less than a sixth, momentum counted in."""
        times, usual = tempo(setting), usual_rate(setting)
        if times is None or usual is None or _LOW < times < _HIGH:
            return None
        learned = signal(curves, setting)
        known = {} if learned is None else {"learned": learned, "right": final_share(curves.val_metric) or 0.0}
        return sign(self, "info", times=times, usual=usual, name=setting.optimizer or "", **known)
