"""Has the model begun to learn the training set by heart?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import fall_of, rise_of
from ._sign import sign

GL, ERRORS, CHANCE = 5.0, 2.0, 0.05


class Overfitting:
    """The validation loss has risen by {gl:.0f} % since its lowest at {at:g} ({lowest:.3g} to {end:.3g}, {errors:.1f}
    standard deviations of its noise){metric}."""

    code = "overfitting"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Prechelt's generalisation loss above 5 %, beyond noise and luck, and the metric, if known, worse as well."""
        rise = rise_of(curves.val_loss) if curves.val_loss is not None else None
        if rise is None or rise.gl < GL or rise.errors < ERRORS:
            return None
        fall = fall_of(curves.val_metric, setting.n_val) if curves.val_metric is not None else None
        if fall is not None and fall.chance > CHANCE:
            return None
        said = "" if fall is None else f", and {curves.val_metric.name if curves.val_metric else ''} has fallen from "
        said += "" if fall is None else f"{fall.best:.3g} to {fall.end:.3g} (p = {fall.chance:.2g})"
        figures = {"gl": rise.gl, "at": rise.at, "lowest": rise.lowest, "end": rise.end, "errors": rise.errors}
        p = {} if fall is None else {"p": fall.chance, "fall": fall.share}
        return sign(self, "danger", since=rise.at, metric=said, **figures, **p)
