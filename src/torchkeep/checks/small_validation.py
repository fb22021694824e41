"""Is the validation set large enough to tell?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level, share_error
from ._sign import sign

_WIDE = 0.1


class SmallValidation:
    """The validation set has {n} examples: {name} of {end:.3g} may as well be {low:.2f} or {high:.2f}."""

    code = "small-validation"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The interval of 95 % of a share of so many examples is wider than 0.1 to either side."""
        metric = curves.val_metric.finite if curves.val_metric is not None else None
        if not setting.n_val or metric is None or not len(metric) or metric.mode == "min":
            return None
        end = level(metric.y)
        if not 0 <= end <= 1:
            return None
        half = 2 * share_error(end, setting.n_val)
        if half <= _WIDE:
            return None
        low, high = max(0.0, end - half), min(1.0, end + half)
        return sign(self, "warning", n=setting.n_val, name=metric.name, end=end, low=low, high=high)
