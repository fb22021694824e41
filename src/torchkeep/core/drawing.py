"""Drawing some of many examples, so that each class keeps its share."""

from __future__ import annotations

import torch


def in_shares(labels: torch.Tensor, seed: int, *, least: int = 0) -> torch.Tensor:
    """An order of the examples in which every beginning has each class about in its share: int64 [examples].

    Args:
        labels: int64 [examples].
        seed: of the order within the classes, and among them.
        least: so many examples of each class come before all others, where it has them.
    """
    labels = labels.cpu()
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    key = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        places = (labels[drawn] == label).nonzero().flatten()
        rank = torch.arange(len(places), dtype=torch.float64)
        key[places] = torch.where(rank < least, rank - least, (rank + 0.5) / len(places))
    return drawn[key.argsort(stable=True)]
