"""Has it come to rest at a loss that is alike on both sets, and not low?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import chance, change, final_share, gap_of, signal, tail
from ._sign import sign

_SIGNAL, _GAP = 0.85, 0.06
_NOISY_SIGNAL, _NOISY_GAP = 0.8, 0.02  # of a regression, whose targets have noise that nothing fits
_RIGHT = 0.95  # of the validation examples: a better fit would hardly show
_ENOUGH = 300  # training examples of a regression: of fewer a richer model would learn the noise
_CLEAR, _LEVEL = 0.75, 0.05


class PoorFit:
    """Training and validation loss have come to rest at the same height, {loss:.0%} of the loss of chance: the model is
    too simple for what is left, or what is left is noise."""

    code = "poor-fit"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Less than 0.85 was fitted, there is hardly a gap, and the validation loss neither falls nor rises."""
        learned, gap = signal(curves, setting), gap_of(curves, setting)
        if learned is None or gap is None or curves.val_loss is None or chance(setting) is None:
            return None
        if not setting.classes and setting.n_train is not None and setting.n_train < _ENOUGH:
            return None
        if (final_share(curves.val_metric) or 0.0) >= _RIGHT:
            return None
        whole, _ = change(tail(curves.val_loss.finite))
        noisy = not setting.classes and learned >= _CLEAR
        signals, gaps = (_NOISY_SIGNAL, _NOISY_GAP) if noisy else (_SIGNAL, _GAP)
        if learned >= signals or gap.loss >= gaps or abs(whole) > _LEVEL:
            return None
        return sign(self, "info", loss=1 - learned)
