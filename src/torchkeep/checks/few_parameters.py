"""Is the model tiny?"""

from __future__ import annotations

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ._measures import final_share, signal
from ._sign import sign

_EACH, _RIGHT, _FITTED = 100, 0.9, 0.92


class FewParameters:
    """The model has {parameters} parameters, {each:.0f} for each output, and {name} ends at {end:.3g}."""

    code = "few-parameters"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """Fewer than 100 for each class, more than one in ten wrong, and the training set not fitted either."""
        end = final_share(curves.val_metric)
        if setting.parameters is None or not setting.classes or end is None or curves.val_metric is None:
            return None
        each = setting.parameters / setting.classes
        learned = signal(curves, setting)
        if each >= _EACH or end > _RIGHT or learned is None or learned > _FITTED:
            return None
        return sign(self, "info", parameters=setting.parameters, each=each, name=curves.val_metric.name, end=end)
