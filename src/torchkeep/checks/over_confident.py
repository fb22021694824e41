"""Is it only the loss that gets worse?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import fall_of, rise_of
from ._sign import sign
from .overfitting import CHANCE, ERRORS, GL


class OverConfident:
    """The validation loss has risen by {gl:.0f} % since {at:g}, and {name} holds: {best:.3g} at best, {end:.3g} now
    (p = {p:.2g}); the model is surer of its mistakes and makes no more of them."""

    code = "over-confident"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """A significant generalisation loss without a significant fall of the metric."""
        if curves.val_loss is None or curves.val_metric is None:
            return None
        rise, fall = rise_of(curves.val_loss), fall_of(curves.val_metric, setting.n_val)
        if rise is None or fall is None or rise.gl < GL or rise.errors < ERRORS or fall.chance <= CHANCE:
            return None
        name = curves.val_metric.name
        return sign(
            self, "warning", since=rise.at, gl=rise.gl, at=rise.at, name=name, best=fall.best, end=fall.end,
            p=fall.chance, errors=rise.errors,
        )  # fmt: skip
