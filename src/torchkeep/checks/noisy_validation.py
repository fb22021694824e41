"""Is the validation curve too noisy to choose an epoch by?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level, noise
from ._sign import sign

_LARGE = 0.1


class NoisyValidation:
    """The validation loss is noisy: {noise:.3g} from point to point, {share:.0%} of its level; differences below
    {least:.3g} between epochs say nothing."""

    code = "noisy-validation"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The standard deviation of the noise beside the level at the end."""
        series = curves.val_loss.finite if curves.val_loss is not None else None
        if series is None or len(series) < 6:
            return None
        sd, end = noise(series.y), max(abs(level(series.y)), 1e-12)
        return sign(self, "info", noise=sd, share=sd / end, least=2.8 * sd) if sd > _LARGE * end else None
