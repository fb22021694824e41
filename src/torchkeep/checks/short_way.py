"""Has training gone far enough to say what the model can do?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import way
from ._sign import sign

_STEPS = 200.0


class ShortWay:
    """Training went as far as {steps:.0f} steps at a usual learning rate, which is not far."""

    code = "short-way"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Its steps times its rate, beside 200 at the usual rate."""
        steps = way(curves, setting)
        return None if steps is None or steps >= _STEPS else sign(self, "info", steps=steps)
