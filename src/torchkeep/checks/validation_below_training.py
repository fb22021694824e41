"""Is the loss lower on what the model was not trained on?"""

from __future__ import annotations

import math

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign
from ..core.trend import level
from ._measures import climbing, only_training_jumps, scale, signal
from ._sign import sign

_SHARE = 0.02
_JUMPS = 0.008  # of the loss of chance a point: so much comes of strong dropout
_DROPOUT = ": dropout is in force while training, and not while validating"
_OTHERWISE = (
    ": dropout or augmentation while training, a loss that is averaged over the epoch, an easier validation set, or "
    "training examples in it"
)


class ValidationBelowTraining:
    """The validation loss ({val:.3g}) lies below the training loss ({train:.3g}){why}."""

    code = "validation-below-training"

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """At the end, by more than 2 %; dropout explains it, else augmentation, averaging over an epoch, or a leak."""
        if curves.train_loss is None or curves.val_loss is None:
            return None
        train, val = curves.train_loss.finite, curves.val_loss.finite
        if len(train) < 4 or len(val) < 4 or level(val.y) > (1 - _SHARE) * level(train.y):
            return None
        dropout = setting.dropout is not None and setting.dropout > 0
        learned = signal(curves, setting)
        figures = {"val": level(val.y), "train": level(train.y)} | ({} if learned is None else {"learned": learned})
        jumps = climbing(train) >= _JUMPS * (scale(curves, setting) or math.inf) and only_training_jumps(curves)
        return sign(self, "info", **figures, jumps=jumps, why=_DROPOUT if dropout else _OTHERWISE)
