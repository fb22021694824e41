"""Is there more to learn, on both sets alike?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import final_share, gap_of, signal
from ._sign import sign

_SIGNAL, _RIGHT, _GAP = 0.9, 0.9, 0.06


class RoomLeft:
    """Both sets leave room: {name} ends at {end:.3g}, and {loss:.0%} of the loss of chance is left in training, with
    hardly a gap."""

    code = "room-left"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Less than 0.9 was fitted, more than one in ten is wrong, and the gap is below 0.06 of the loss of chance."""
        learned, gap, end = signal(curves, setting), gap_of(curves, setting), final_share(curves.val_metric)
        if learned is None or gap is None or end is None or curves.val_metric is None or not setting.classes:
            return None
        if learned >= _SIGNAL or end >= _RIGHT or gap.loss >= _GAP:
            return None
        return sign(self, "info", name=curves.val_metric.name, end=end, loss=1 - learned)
