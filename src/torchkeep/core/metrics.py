"""What the name of a metric says about it."""

from __future__ import annotations

import re

_LOWER_IS_BETTER = {"loss", "error", "err", "mse", "mae", "rmse", "nll", "perplexity", "ppl", "fid", "wer", "cer"}
_HIGHER_IS_BETTER = {
    "acc",
    "accuracy",
    "f1",
    "auc",
    "auroc",
    "precision",
    "recall",
    "iou",
    "miou",
    "dice",
    "bleu",
    "r2",
}


def mode_of(metric: str) -> str:
    """Whether the lowest (`min`) or the highest (`max`) value of a metric is best, as its name says.

    Raises:
        ValueError: the name does not say.
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & _LOWER_IS_BETTER:
        return "min"
    if words & _HIGHER_IS_BETTER:
        return "max"
    raise ValueError(f"is a high or a low {metric!r} better? Give mode='max' or mode='min'")
