"""How far the new data lie from what batch normalisation remembers of the old."""

from __future__ import annotations

import math

import torch

from ..core.similarity import Norm, Seen
from ..core.transfer import AMBIGUOUS, DIFFERENT, SIMILAR, Signal

_NEAR, _FAR = 0.5, 3.0  # standard deviations of the source


class BatchNormShift:
    """By how many standard deviations of the source the mean of a channel moved, in the middle layer of all.

    The running statistics are what a checkpoint knows of the data that it was trained on. Root of the mean square over
    channels, less what examples so few would differ by chance, which two halves of them tell. How much samples of
    the source itself would move, in a network that sees parts of images or other sizes, is not known: so a little
    of it says `similar`, and more says nothing, until it is so much that weights and inputs cannot belong together.
    """

    code = "batch-norm"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal, layer by layer; None for a network without running statistics."""
        if not seen.norms:
            return None
        shifts = torch.tensor([_shift(one) for one in seen.norms], dtype=torch.float64)
        spreads = [_spread(one) for one in seen.norms]
        value, low, high = (float(shifts.quantile(share)) for share in (0.5, 0.1, 0.9))
        says = SIMILAR if high < _NEAR else DIFFERENT if low > _FAR else AMBIGUOUS
        message = f"channels moved by {value:.2g} standard deviations in the middle layer, by {high:.2g} where most"
        if says == DIFFERENT:
            message += "; are the inputs scaled as they were for the pretraining?"
        layers = [
            {"layer": one.name, "mean": float(shift), "spread": spread}
            for one, shift, spread in zip(seen.norms, shifts, spreads, strict=True)
        ]
        return Signal(self.code, value, low, high, says, 0.5, message, {"layers": layers})


def _shift(norm: Norm) -> float:
    first, second = norm.halves[:, 0]
    moved = ((first + second) / 2 - norm.mean).square() - (first - second).square() / 4
    return math.sqrt(max(0.0, float((moved / (norm.var + 1e-5)).mean())))


def _spread(norm: Norm) -> float:
    """The median of by how much the logarithm of the standard deviation of a channel changed."""
    ratio = (norm.halves[:, 1].mean(dim=0) + 1e-5) / (norm.var + 1e-5)
    return float((ratio.log() / 2).abs().median())
