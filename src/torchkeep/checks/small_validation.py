"""Is the validation set large enough to tell?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import share_error
from ._measures import final_share
from ._sign import sign

_WIDE = 0.1


class SmallValidation:
    """The validation set has {n} examples: {name} of {end:.3g} may as well be {low:.2f} or {high:.2f}."""

    code = "small-validation"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The interval of 95 % of a share of so many examples is wider than 0.1 to either side."""
        metric, end = curves.val_metric, final_share(curves.val_metric)
        if not setting.n_val or metric is None or end is None:
            return None
        half = 2 * share_error(end, setting.n_val)
        if half <= _WIDE:
            return None
        low, high = max(0.0, end - half), min(1.0, end + half)
        return sign(self, "warning", n=setting.n_val, name=metric.name, end=end, low=low, high=high)
