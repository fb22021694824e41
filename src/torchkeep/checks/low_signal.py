"""Has the model learned what the training set has to teach?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import chance, final_share, fitted, scale
from ._sign import sign

_LOW, _NOISY, _FALLEN, _NOTHING = 0.6, 0.45, 0.4, 0.1
_RIGHT = 0.95  # of the validation examples: a better fit would hardly show


class LowSignal:
    """Of what there is to learn, {signal:.0%} was fitted: the training loss ends at {loss:.3g}, and {chance:.3g} is
    {what}."""

    code = "low-signal"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """1 - loss / loss of chance is below 0.6, for a regression below 0.45; below 0.4 where the first loss has to
        stand for that of chance."""
        known, loss = scale(curves, setting), fitted(curves)
        if known is None or loss is None:
            return None
        told = chance(setting) is not None
        share = 1 - loss / known
        least = _FALLEN if not told else _LOW if setting.classes else _NOISY  # targets have noise that nothing fits
        if share >= least or (share >= _FALLEN and (final_share(curves.val_metric) or 0.0) >= _RIGHT):
            return None
        what = "what a model has that has learned nothing" if told else "what it began at"
        return sign(self, "danger" if share < _NOTHING else "warning", signal=share, loss=loss, chance=known, what=what)
