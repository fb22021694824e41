"""What the name of a metric says about it."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch

from ..errors import UnsavableError

_LOWEST = """
    loss error err mse mae mape rmse msle logloss nll bce crossentropy xent brier ece perplexity ppl fid wer cer
"""
_HIGHEST = """
    acc accuracy top1 top5 f1 auc auroc auprc ap map map50 mcc kappa precision recall specificity iou miou jaccard dice
    bleu rouge meteor r2 pearson spearman psnr ssim ndcg mrr
"""
_LOWER_IS_BETTER, _HIGHER_IS_BETTER = frozenset(_LOWEST.split()), frozenset(_HIGHEST.split())


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


def checked_mode(metric: str, mode: str | None) -> str:
    """The mode that was given, or that of the metric's name.

    Raises:
        ValueError: it is neither `min` nor `max`, or there is none and the name does not say.
    """
    if mode not in {None, "min", "max"}:
        raise ValueError(f"mode is {mode!r}; it must be 'min' or 'max'")
    return mode_of(metric) if mode is None else mode


def finite(value: Any) -> float | None:
    """A value that can be compared, as a float; None for what is no number, not-a-number or infinite."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def plain_record(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as they are kept: tensors and NumPy scalars of one element become numbers of Python.

    Raises:
        UnsavableError: a tensor has another number of elements.
    """
    return {name: _plain_number(name, value) for name, value in metrics.items()}


def _plain_number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise UnsavableError(
                f"the metric {name!r} is a tensor of shape {tuple(value.shape)}", path=name, hint="log a number"
            )
        return value.item()
    return value.item() if isinstance(value, np.generic) else value
