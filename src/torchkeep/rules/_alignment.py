"""The best alignment of two ordered lists, with gaps, and how much every pair in it is worth.

Dynamic programming over pairs of positions with affine gaps (Gotoh 1982): one pass from the front and one from the
back. Their sum at a pair is the score of the best alignment that has this pair, so that every pair can be held against
the best alignment that does not have it. A row is one step of numpy, so a thousand layers on either side take tens of
milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEVER = -1e9


@dataclass(frozen=True)
class Aligned:
    """What is known of two lists of lengths n and m.

    Attributes:
        best: the score of the best alignment.
        through: (n, m), the score of the best alignment that pairs these two.
        alone: (n,), the score of the best alignment that leaves this one of the first list alone.
    """

    best: float
    through: Floats
    alone: Floats

    def margins(self) -> tuple[NDArray[np.intp], Floats]:
        """For each of the first list: its best partner, and by how much the best alignment with this pair is better
        than the best one without it; negative where the best alignment does not have it.
        """
        rows = np.arange(len(self.alone))
        partner = self.through.argmax(axis=1)
        others = self.through.copy()
        others[rows, partner] = NEVER
        return partner, self.through[rows, partner] - np.maximum(others.max(axis=1), self.alone)


def align(scores: Floats, opening: float, going_on: float) -> Aligned:
    """Align two lists; neither may be empty.

    Args:
        scores: (n, m), what it is worth to pair two; NEVER where it must not be.
        opening: what it costs (below zero) to leave the first of some neighbours alone.
        going_on: what it costs for each further one.
    """
    pair, skip, other = _forward(scores, opening, going_on)
    after_pair, after_skip = _backward(scores, opening, going_on)
    best = float(max(pair[-1, -1], skip[-1, -1], other[-1, -1]))
    through = pair[1:, 1:] + after_pair[1:, 1:]
    alone = (skip[1:] + after_skip[1:]).max(axis=1)
    return Aligned(best, through, alone)


def _forward(scores: Floats, opening: float, going_on: float) -> tuple[Floats, Floats, Floats]:
    """(n + 1, m + 1) each: the best alignment of the first i and j that ends with a pair, with one of the first list
    alone, with one of the second alone. Where both lists have gaps at one place, that of the first list comes first.
    """
    n, m = scores.shape
    pair, skip, other = (np.full((n + 1, m + 1), NEVER) for _ in range(3))
    pair[0, 0] = 0.0
    steps = going_on * np.arange(m + 1)
    for i in range(n + 1):
        if i:
            before = np.maximum(np.maximum(pair[i - 1], skip[i - 1]), other[i - 1])
            pair[i, 1:] = np.maximum(before[:-1] + scores[i - 1], NEVER)
            skip[i] = np.maximum(pair[i - 1] + opening, skip[i - 1] + going_on)
        begun = np.maximum(pair[i], skip[i])[:-1] + opening - steps[:-1]
        other[i, 1:] = np.maximum.accumulate(begun) + steps[:-1]
    return pair, skip, other


def _backward(scores: Floats, opening: float, going_on: float) -> tuple[Floats, Floats]:
    """(n + 1, m + 1) each: what the rest is worth after a pair, and after one of the first list alone."""
    n, m = scores.shape
    pair, skip = (np.full((n + 1, m + 1), NEVER) for _ in range(2))
    steps = going_on * np.arange(m + 1)
    for i in range(n, -1, -1):
        on = np.full(m + 1, NEVER)
        if i == n:
            on[m] = 0.0
        else:
            on[:-1] = scores[i] + pair[i + 1, 1:]
        other = np.maximum.accumulate((on + steps)[::-1])[::-1] - steps
        across = np.full(m + 1, NEVER)
        across[:-1] = other[1:] + opening
        pair[i], skip[i] = np.maximum(on, across), np.maximum(on, across)
        if i < n:
            pair[i] = np.maximum(pair[i], skip[i + 1] + opening)
            skip[i] = np.maximum(skip[i], skip[i + 1] + going_on)
    return pair, skip
