"""Whether examples of one class lie together where the head reads."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..core.similarity import Seen, signal_of_gain
from ..core.transfer import Signal

_NEIGHBOURS = 5


class NearestNeighbours:
    """Accuracy of the five nearest other examples on the last block, less the same with fresh weights.

    Near is a small angle between centred features; nearer ones have more of a say.
    """

    code = "knn"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal; None without a copy, or with too few examples."""
        if not seen.copies or len(seen.labels) <= _NEIGHBOURS:
            return None
        hits = torch.stack([_hits(net.features[-1], seen.labels) for net in seen.nets])
        return signal_of_gain(self.code, hits, "the vote of the nearest neighbours", 1.0, {"block": seen.blocks[-1]})


def _hits(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = functional.normalize(features - features.mean(dim=0), dim=1)
    near = (rows @ rows.T).fill_diagonal_(-torch.inf)
    close, places = near.topk(_NEIGHBOURS, dim=1)
    votes = torch.zeros(len(labels), int(labels.max()) + 1, dtype=rows.dtype)
    votes.scatter_add_(1, labels[places], 1 + close + 1e-9)
    return (votes.argmax(dim=1) == labels).double()
