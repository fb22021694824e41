"""What it is worth to pair two layers, in units of log odds.

What counts is which layers fit. All else is worth so little that it decides between alignments that are equally good,
and does not make one sure: that a layer was changed, rather than one deleted and another inserted beside it; that what
is gone was in one piece; that words of the names, or the borders of blocks, agree. Numbers in names count for nothing:
a list that lost one of its members counts on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ._alignment import NEVER, Floats
from ._layers import Layer, Signature

OPENING, GOING_ON = -1.4, -1.1

_FITS, _CHANGED, _PER_LIKENESS = 3.0, 2 * GOING_ON + 0.02, 0.05
_SAME_WORDS, _SAME_BORDER = 0.1, 0.5
_ROLE_LACKS, _SHIFT_LACKS, _ROLE_DIFFERS = 0.4, 1.2, 0.8
_CHEAP = frozenset({"num_batches_tracked", "_extra_state"})


def scores(to: Sequence[Layer], origin: Sequence[Layer]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, m) each: what every pair is worth, NEVER where it must not be; and whether its main tensors fit."""
    rows, of_row = _distinct([layer.signature for layer in to])
    columns, of_column = _distinct([layer.signature for layer in origin])
    worth = np.full((len(rows), len(columns)), NEVER)
    fits = np.zeros(worth.shape, dtype=bool)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            if a.kind == b.kind or "bias" in (a.kind, b.kind):
                worth[i, j], fits[i, j] = _compare(a, b)
    whole = np.ix_(of_row, of_column)
    worth, fits = worth[whole], fits[whole]
    possible = worth > NEVER
    possible &= ~_contradict(to, origin)
    worth = worth + _SAME_WORDS * _same_words(to, origin) + _SAME_BORDER * (fits & _same_border(to, origin))
    return np.where(possible, worth, NEVER), fits & possible


def likeness(a: Signature, b: Signature) -> float:
    """Which share of the main tensors' dimensions is equal; the kernel of a convolution counts as one. Below 0 where
    none is, so that one cannot have become the other by a change of width, classes, channels or length.
    """
    one, other = a.tensors[a.main][0], b.tensors[b.main][0]
    if len(one) != len(other) or not one:
        return -1.0
    if len(one) == 1:
        return 0.0 if a.kind != "loose" or a.main == b.main else -1.0
    same = [x == y for x, y in zip(one, other, strict=True)]
    if a.kind == "loose":
        return sum(same) / len(same) if any(same) else -1.0
    same = [*same[:2], all(same[2:])] if len(one) > 2 else same
    return sum(same) / len(same) if any(same[:2]) else -1.0


def _compare(a: Signature, b: Signature) -> tuple[float, bool]:
    """What it is worth to pair two layers of these signatures, and whether the main tensor of one fits the other."""
    common = a.tensors.keys() & b.tensors.keys()
    if a.kind == b.kind == "loose":
        ours, theirs = a.tensors[a.main], b.tensors[b.main]
        lacking = 0.0 if common else 0.5
    else:
        main = a.main if a.main in common else b.main
        if main not in common:
            return NEVER, False
        ours, theirs = a.tensors[main], b.tensors[main]
        apart = (a.tensors.keys() ^ b.tensors.keys()) - _CHEAP
        lacking = (_SHIFT_LACKS if len(ours[0]) == 1 else _ROLE_LACKS) * len(apart)
        lacking += _ROLE_DIFFERS * sum(a.tensors[role] != b.tensors[role] for role in common - {main})
    if ours == theirs:
        return _FITS - lacking, True
    like = likeness(a, b) if a.kind == b.kind and ours[1] == theirs[1] else -1.0
    return (_CHANGED + _PER_LIKENESS * like, False) if like >= 0 else (NEVER, False)


def _distinct(signatures: Sequence[Signature]) -> tuple[list[Signature], list[int]]:
    """Each signature once, and for every layer which one it has: many layers are of few kinds."""
    known: dict[Signature, int] = {}
    places = [known.setdefault(signature, len(known)) for signature in signatures]
    return list(known), places


def _contradict(to: Sequence[Layer], origin: Sequence[Layer]) -> NDArray[np.bool_]:
    """Where the names say that a layer is another one of several: a query is no key, and nothing else where both
    sides have queries.
    """
    slots = {layer.slot for layer in to} & {layer.slot for layer in origin}
    ours, theirs = (np.array([layer.slot if layer.slot in slots else "" for layer in side]) for side in (to, origin))
    apart: NDArray[np.bool_] = ours[:, None] != theirs
    return apart


def _same_words(to: Sequence[Layer], origin: Sequence[Layer]) -> Floats:
    """Which share of the words of both names is in both, from 0 to 1."""
    rows: dict[frozenset[str], int] = {}
    columns: dict[frozenset[str], int] = {}
    of_row = [rows.setdefault(layer.words, len(rows)) for layer in to]
    of_column = [columns.setdefault(layer.words, len(columns)) for layer in origin]
    shares = np.array([[len(a & b) / len(a | b) if a & b else 0.0 for b in columns] for a in rows])
    return shares[np.ix_(of_row, of_column)]


def _same_border(to: Sequence[Layer], origin: Sequence[Layer]) -> NDArray[np.bool_]:
    """Where a numbered block begins on both sides."""
    return np.outer(_begins(to), _begins(origin))


def _begins(layers: Sequence[Layer]) -> NDArray[np.bool_]:
    blocks = [(), *(layer.block for layer in layers)]
    return np.array([before != block for before, block in pairwise(blocks)])
