"""What it is worth to pair two layers, in units of log odds.

What counts is which layers fit. All else is worth so little that it decides between alignments that are equally good,
and does not make one sure: that a layer was changed, rather than one deleted and another inserted beside it; that what
is gone was in one piece; that words of the names, or the borders of blocks, agree. Numbers in names count for nothing:
a list that lost one of its members counts on as if nothing had happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ._alignment import NEVER, Floats
from ._layers import Layer, Signature

OPENING, GOING_ON = -1.4, -1.1

_FITS, _CHANGED, _PER_LIKENESS = 3.0, 2 * GOING_ON + 0.02, 0.05
_SAME_WORDS, _SAME_BORDER = 0.1, 0.5
_LACKS, _OTHER_NAME = 2.8, 0.5
_CHEAP = frozenset({"num_batches_tracked", "_extra_state"})


def scores(to: Sequence[Layer], origin: Sequence[Layer]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, m) each: what every pair is worth, NEVER where it must not be; and whether its main tensors fit."""
    rows, of_row = _distinct([layer.signature for layer in to])
    columns, of_column = _distinct([layer.signature for layer in origin])
    worth = np.full((len(rows), len(columns)), NEVER)
    fits = np.zeros(worth.shape, dtype=bool)
    ours, theirs = _sorts(rows), _sorts(columns)
    for sort, places in ours.items():
        for other, others in theirs.items():
            field = np.ix_(places, others)
            if sort == other:
                like, fits[field] = _likeness([rows[i] for i in places], [columns[j] for j in others])
                worth[field] = np.where(like < 0, NEVER, _CHANGED + _PER_LIKENESS * like)
            elif sort[0] == other[0] != "loose" or "bias" in (sort[0], other[0]):
                fits[field] = [[_main_fits(rows[i], columns[j]) for j in others] for i in places]
    for i, j in np.argwhere(fits):
        worth[i, j] = _FITS - _lacking(rows[i], columns[j])
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
    return float(_likeness([a], [b])[0][0, 0]) if _sort(a) == _sort(b) else -1.0


_Sort = tuple[str, str, str, int]


def _sort(signature: Signature) -> _Sort:
    """Kind, main role, sort of dtype and rank: what two layers have in common if one is the other with other sizes."""
    shape, dtype = signature.tensors[signature.main]
    return signature.kind, "" if signature.kind == "loose" else signature.main, dtype, len(shape)


def _sorts(signatures: Sequence[Signature]) -> dict[_Sort, list[int]]:
    places: dict[_Sort, list[int]] = defaultdict(list)
    for place, signature in enumerate(signatures):
        places[_sort(signature)].append(place)
    return places


def _likeness(ours: Sequence[Signature], theirs: Sequence[Signature]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, m) each: how like the main tensors of layers of one sort are, and whether they are equal."""
    kind, _, _, rank = _sort(ours[0])
    one, other = (
        np.array([side.tensors[side.main][0] for side in sides], dtype=np.float64).reshape(len(sides), 1, rank)
        for sides in (ours, theirs)
    )
    same = one == other.reshape(1, len(theirs), rank)
    equal: NDArray[np.bool_] = same.all(axis=2)
    if rank < 2:
        return np.full(equal.shape, 0.0 if rank and kind != "loose" else -1.0), equal
    telling = same if kind == "loose" else same[:, :, :2]
    parts = (
        same
        if kind == "loose" or rank == 2
        else np.concatenate([same[:, :, :2], same[:, :, 2:].all(2, keepdims=True)], 2)
    )
    return np.where(telling.any(axis=2), parts.mean(axis=2), -1.0), equal


def _main_fits(a: Signature, b: Signature) -> bool:
    """Whether the main tensor of one of two layers fits the other, which has it under the same role."""
    main = a.main if a.main in b.tensors else b.main
    return a.tensors.get(main) == b.tensors.get(main)


def _lacking(a: Signature, b: Signature) -> float:
    """What it costs that some tensors of two layers do not fit, or are in one only."""
    if a.kind == b.kind == "loose":
        return 0.0 if a.main == b.main else _OTHER_NAME
    apart = {role for role in a.tensors.keys() | b.tensors.keys() if a.tensors.get(role) != b.tensors.get(role)}
    return _LACKS if apart - _CHEAP else 0.0


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
