"""Is there enough to read?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._sign import sign

_LEAST = 5


class TooFewPoints:
    """There are {points} points of a loss, and fewer than {least} say nothing about where a curve goes."""

    code = "too-few-points"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """By the longer of both losses, numbers or not."""
        points = max((len(one) for one in (curves.train_loss, curves.val_loss) if one is not None), default=0)
        return sign(self, "warning", points=points, least=_LEAST) if points < _LEAST else None
