"""What the name of a metric says about it."""

from __future__ import annotations

import re

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
