"""Has it come to rest at a loss that is alike on both sets, and not low?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import chance, change, gap_of, signal, tail
from ._sign import sign

_SIGNAL, _GAP, _FALL = 0.8, 0.02, -0.03


class PoorFit:
    """Training and validation loss have come to rest at the same height, {loss:.0%} of the loss of chance: the model is
    too simple for what is left, or what is left is noise."""

    code = "poor-fit"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Less than 0.8 was fitted, there is no gap, and the validation loss neither falls nor rises."""
        learned, gap = signal(curves, setting), gap_of(curves, setting)
        if learned is None or gap is None or curves.val_loss is None or chance(setting) is None:
            return None
        whole, _ = change(tail(curves.val_loss.finite))
        if learned >= _SIGNAL or gap.loss >= _GAP or abs(whole) > -_FALL:
            return None
        return sign(self, "info", loss=1 - learned)
