"""LogME: how probable the labels are under a linear model of the features (You et al. 2021, arXiv 2102.11005)."""

from __future__ import annotations

import math

import torch

from ..core.similarity import Seen
from ..core.transfer import AMBIGUOUS, Signal

_ROUNDS = 50


class LogME:
    """Logarithm of the evidence of the labels by the last block, an example, less the same with fresh weights.

    A hint: such scores order networks only roughly, and mislead where sizes of features differ (arXiv 2405.20420).
    """

    code = "logme"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal; None without a copy."""
        if not seen.copies:
            return None
        ours, *fresh = (evidence(net.features[-1], seen.labels) for net in seen.nets)
        gains = [ours - one for one in fresh]
        value = sum(gains) / len(gains)
        message = f"LogME is {ours:.3g} nats an example, and {ours - value:.3g} with fresh weights"
        return Signal(self.code, value, min(gains), max(gains), AMBIGUOUS, 0.0, message, {"block": seen.blocks[-1]})


def evidence(features: torch.Tensor, labels: torch.Tensor) -> float:
    """The highest log evidence of the labels in nats, a mean over examples and classes.

    Each class is a column of 0 and 1, which a linear model of the features with a Gaussian prior explains; the
    precisions of prior and noise are those that make it most probable.
    """
    left, strong, _ = torch.linalg.svd(features, full_matrices=False)
    strong = strong.square()
    count, width = features.shape
    scores = []
    for label in labels.unique():
        wanted = (labels == label).double()
        along = (left.T @ wanted).square()
        beside = max(0.0, float(wanted.square().sum() - along.sum()))
        scores.append(_evidence(strong, along, beside, count, width))
    return sum(scores) / len(scores)


def _evidence(strong: torch.Tensor, along: torch.Tensor, beside: float, count: int, width: int) -> float:
    prior, noise = 1.0, 1.0
    for _ in range(_ROUNDS):
        scale = prior + noise * strong
        used = float((noise * strong / scale).sum())
        size = float((noise**2 * strong * along / scale.square()).sum())
        missed = float((prior**2 * along / scale.square()).sum()) + beside
        before = prior / noise
        prior, noise = used / max(size, 1e-12), (count - used) / max(missed, 1e-12)
        if abs(prior / noise - before) <= 1e-4 * before:
            break
    scale = prior + noise * strong
    size = float((noise**2 * strong * along / scale.square()).sum())
    missed = float((prior**2 * along / scale.square()).sum()) + beside
    fit = width * math.log(prior) + count * math.log(noise) - count * math.log(2 * math.pi)
    bent = float(scale.log().sum()) + (width - len(strong)) * math.log(prior)
    return (fit - noise * missed - prior * size - bent) / (2 * count)
