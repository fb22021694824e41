"""Names share nothing, but the modules line up: the two lists of layers are aligned by shapes, roles and kinds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.plan import Pair, Specs
from ..core.table import shorten
from ..errors import AmbiguousMatchError, LoadError
from ._alignment import NEVER, Aligned, Floats, align
from ._layers import Layer, in_name_order, layers_of, numbered
from ._scoring import GOING_ON, OPENING, likeness, scores

_MOVED, _FAR = 0.95, 8
_CHANGED, _PER_LIKENESS = 0.91, 0.08
_TIE = 1e-6
_MOST = 10_000_000  # pairs of layers; each takes about a hundred bytes


class Structural:
    """Pairs what is left over by the order of the layers, their kinds and their shapes; asked for, never a default.

    Both sides become a list of layers, and the best alignment of the two lists, with gaps, is found. Names need not
    share anything; equal words and equal borders of numbered blocks help a little. A layer of another shape (a head
    for other classes, a stem for other channels) is paired where it stands between layers that fit, and is then
    reported as mismatched. Nothing is transposed or reshaped.

    The confidence of a pair is the odds of the best alignment against the best one without this pair. Pairs below
    `threshold` are not made. Where alignments that put different tensors of the source into one of the model are
    equally good, or nearly so, nothing is guessed: of a stack of equal blocks from which one was deleted, nobody can
    know which one is gone. That is an AmbiguousMatchError rather than a few names left out, because a report would call
    those missing, which they are not. With `ambiguous="leave"` exactly they stay unpaired, and the rest is.

    Names that say the opposite, such as `left` for `right` and `right` for `left`, are an AmbiguousMatchError as well.

    Files of safetensors that its own library wrote have their names sorted, and the order of the layers is lost: what
    shapes alone cannot tell apart is an AmbiguousMatchError too, unless all names differ by numbers only.

    Where the structure does not line up, so that less than half of the smaller side would fit, nothing is paired.

    Args:
        threshold: the least confidence of a pair, above 0.5 and below 1.
        ambiguous: `refuse`, or `leave` to pair all but what is ambiguous.
    """

    name = "structural"

    def __init__(self, threshold: float = 0.9, ambiguous: str = "refuse") -> None:
        if not 0.5 < threshold < 1:
            raise ValueError(f"the threshold is a confidence above 0.5 and below 1, not {threshold!r}")
        if ambiguous not in {"refuse", "leave"}:
            raise ValueError(f"ambiguous is 'refuse' or 'leave', not {ambiguous!r}")
        self.threshold = threshold
        self.ambiguous = ambiguous

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, Pair]:
        """target -> Pair.

        Raises:
            AmbiguousMatchError: two alignments are equally good, or the order of the layers is lost, and what is
                ambiguous is not to be left.
            LoadError: there are several thousand layers on both sides, which would take too much memory.
        """
        if not target or not source:
            return {}
        ordered = [numbered(side) if in_name_order(side) else side for side in (target, source)]
        to, origin = (layers_of(side or {}) for side in ordered)
        if not to or not origin:
            return self._without_order(target, source, "model" if ordered[0] is None else "source")
        if len(to) * len(origin) > _MOST:
            raise LoadError(
                f"{len(to)} layers of the model and {len(origin)} of the source are too many to be aligned",
                hint="load them in parts: tk.load_into(model.part, ckpt.sub('part'), rules=['structural'])",
            )
        field = _Field.of(to, origin)
        if field.fitting() * 2 < min(len(target), len(source)):
            return {}
        clashes = field.clashes(self.threshold)
        if clashes and self.ambiguous == "refuse":
            raise _ambiguous(to, origin, clashes)
        pairs = field.pairs(self.threshold)
        crossed = crossings((to[i], origin[j]) for i, j, _ in pairs)
        if crossed and self.ambiguous == "refuse":
            raise _crossed(crossed)
        found = {
            name: Pair(other, confidence)
            for i, j, confidence in pairs
            if (to[i], origin[j]) not in crossed
            for name, other in tensors_of(to[i], origin[j]).items()
        }
        return {name: found[name] for name in target if name in found}

    def _without_order(self, target: Specs, source: Specs, which: str) -> dict[str, Pair]:
        """The layers that only one of the other side can be, where the order of a side is lost."""
        to, origin = layers_of(target), layers_of(source)
        pairs = _alone(to, origin, lambda layer: layer.signature)
        found = {
            name: Pair(other, _MOVED) for i, j in pairs.items() for name, other in tensors_of(to[i], origin[j]).items()
        }
        left = min(len(target), len(source)) - len(found)
        if left > 0 and self.ambiguous == "refuse":
            raise AmbiguousMatchError(
                f"the names of the {which} are sorted, so that the order of its layers is lost, and shapes alone do "
                f"not tell {left} of the tensors apart",
                candidates=tuple(sorted(source.keys() - {pair.source for pair in found.values()})),
                hint="take a file that keeps the order, such as one that torch.save or tk.save wrote, or say which is "
                "which with tk.rename(...)",
            )
        return found


def tensors_of(to: Layer, origin: Layer) -> dict[str, str]:
    """target -> source for the tensors that two layers have in common; a loose parameter is what it is by any name."""
    if to.signature.kind == origin.signature.kind == "loose":
        return dict(zip(to.names.values(), origin.names.values(), strict=True))
    return {name: origin.names[role] for role, name in to.names.items() if role in origin.names}


@dataclass(frozen=True)
class _Field:
    """Two lists of layers, what every pair of them is worth, and what the best alignment makes of it."""

    to: Sequence[Layer]
    origin: Sequence[Layer]
    scores: Floats
    fits: NDArray[np.bool_]
    aligned: Aligned
    partner: NDArray[np.intp]
    margin: Floats

    @classmethod
    def of(cls, to: Sequence[Layer], origin: Sequence[Layer]) -> _Field:
        """Align the layers."""
        worth, fits = scores(to, origin)
        aligned = align(worth, OPENING, GOING_ON)
        return cls(to, origin, worth, fits, aligned, *aligned.margins())

    def path(self) -> list[tuple[int, int]]:
        """What every best alignment pairs, fitting or not."""
        return [(int(i), int(self.partner[i])) for i in np.flatnonzero(self.margin > _TIE)]

    def fitting(self) -> int:
        """How many tensors of a best alignment fit, the ambiguous ones among them."""
        pairs = [(int(i), int(self.partner[i])) for i in np.flatnonzero(self.margin > -_TIE)]
        return sum(len(tensors_of(self.to[i], self.origin[j])) for i, j in pairs if self.fits[i, j])

    def near(self, threshold: float) -> NDArray[np.bool_]:
        """(n, m): which pairs fit and are made by alignments that are nearly as good as the best."""
        return self.fits & (self.aligned.through >= self.aligned.best - _log_odds(threshold))

    def clashes(self, threshold: float) -> list[tuple[int, int]]:
        """Pairs that fit, in alignments nearly as good as the best, that give one layer several partners."""
        near = self.near(threshold)
        several = near & ((near.sum(axis=1) > 1)[:, None] | (near.sum(axis=0) > 1)[None, :])
        return [(int(i), int(j)) for i, j in np.argwhere(several)]

    def pairs(self, threshold: float) -> list[tuple[int, int, float]]:
        """The pairs of at least this confidence: what fits, what was changed between such, and what only moved."""
        path = self.path()
        turned = self._turned(path)
        fitting = [
            (i, j, _confidence(self.margin[i]))
            for i, j in path
            if self.fits[i, j] and not (turned and _is_square(self.to[i]))
        ]
        sure = [(i, j) for i, j, confidence in fitting if confidence >= threshold]
        near = self.near(threshold)
        changed = [
            (i, j, self._changed(i, j, set(path), sure))
            for i, j in path
            if not self.fits[i, j] and not near[i].any() and not near[:, j].any()
        ]
        kept = [pair for pair in (*fitting, *changed) if pair[2] >= threshold]
        return kept + [pair for pair in self._moved(kept) if pair[2] >= threshold and not turned]

    def _turned(self, path: Iterable[tuple[int, int]]) -> bool:
        """Whether linear weights lie the other way round in the source, so that square ones only seem to fit."""
        rows, columns = set(range(len(self.to))), set(range(len(self.origin)))
        upright = 0
        for i, j in path:
            shape = _weight_shape(self.to[i])
            if self.fits[i, j]:
                rows.discard(i)
                columns.discard(j)
                upright += len(shape) == 2 and shape[0] != shape[1]
        ours = Counter(_weight_shape(self.to[i]) for i in rows)
        theirs = Counter(_weight_shape(self.origin[j])[::-1] for j in columns)
        turned = sum(count for shape, count in (ours & theirs).items() if len(shape) == 2 and shape[0] != shape[1])
        return turned > upright

    def _changed(self, i: int, j: int, path: set[tuple[int, int]], sure: Sequence[tuple[int, int]]) -> float:
        """The confidence that a layer became another shape: of its place between layers that fit, not of its shape.

        A layer that another one replaced would look the same. So that nothing, its bias above all, is taken from what
        it replaced, it has to stand at an end, as stems and heads do, or its neighbour has to have changed with it, as
        when a layer became wider. Embeddings and parameters by themselves may have become longer anywhere.
        """
        before = max((pair for pair in sure if pair[0] < i), default=(-1, -1))
        after = min((pair for pair in sure if pair[0] > i), default=(len(self.to), len(self.origin)))
        rows, columns = range(before[0] + 1, after[0]), range(before[1] + 1, after[1])
        in_step = len(rows) == len(columns) and all(pair in path for pair in zip(rows, columns, strict=True))
        only = (self.scores[i, columns] > NEVER / 2).sum() == (self.scores[rows, j] > NEVER / 2).sum() == 1
        if not in_step and not only:
            return _confidence(self.margin[i])
        own = _changes(self.to[i], self.origin[j])
        beside = [_changes(self.to[a], self.origin[b]) for a, b in ((i - 1, j - 1), (i + 1, j + 1)) if (a, b) in path]
        last = i == len(self.to) - 1 or j == len(self.origin) - 1
        ends = (0 in (i, j) and before == (-1, -1)) or (last and after == (len(self.to), len(self.origin)))
        lone = len(tensors_of(self.to[i], self.origin[j])) == 1 and self.to[i].signature.kind in {"2-d", "loose"}
        if not (lone and in_step) and not ends and not any(own & other for other in beside):
            return _confidence(self.margin[i])
        return _CHANGED + _PER_LIKENESS * likeness(self.to[i].signature, self.origin[j].signature)

    def _moved(self, kept: Sequence[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
        """Layers left over on both sides that can be only one another, though they stand a little further on.

        That is so of a layer whose signature no other has on either side, of the query among the query, key and value
        of one module, where the names say which is which, and of the first convolution for other channels.
        """
        rows, columns = {i for i, _, _ in kept}, {j for _, j, _ in kept}
        around = {self.to[i].path[:-1]: self.origin[j].path[:-1] for i, j, _ in kept if self.to[i].slot}
        equal = {
            **_alone(self.to, self.origin, _shape_alone),
            **_alone(
                self.to,
                self.origin,
                lambda layer: layer.slot and (around.get(layer.path[:-1]), layer.slot, layer.signature),
                lambda layer: layer.slot and (layer.path[:-1], layer.slot, layer.signature),
            ),
        }
        found = [(i, j, _MOVED) for i, j in equal.items()] + self._stem(rows, columns)
        return [
            (i, j, confidence)
            for i, j, confidence in found
            if i not in rows and j not in columns and sum((a < i) != (b < j) for a, b, _ in kept) <= _FAR
        ]

    def _stem(self, rows: Container[int], columns: Container[int]) -> list[tuple[int, int, float]]:
        """The convolution before all that are paired and what it was, where only one comes into question."""
        left = [i for i, layer in enumerate(self.to) if i not in rows and _weight_rank(layer) > 2]
        free = [j for j, layer in enumerate(self.origin) if j not in columns and _weight_rank(layer) > 2]
        pairs = [(left[a], free[b]) for a, b in np.argwhere(self.scores[np.ix_(left, free)] > NEVER / 2)]
        if len(pairs) != 1:
            return []
        before = [self.to[i] for i in range(pairs[0][0]) if i in rows]
        before += [self.origin[j] for j in range(pairs[0][1]) if j in columns]
        if any(_weight_rank(layer) > 2 and layer.signature.kind != "loose" for layer in before):
            return []
        one, other = self.to[pairs[0][0]], self.origin[pairs[0][1]]
        differs = [a != b for a, b in zip(_weight_shape(one), _weight_shape(other), strict=True)]
        like = likeness(one.signature, other.signature)
        return [(*pairs[0], _CHANGED + _PER_LIKENESS * like)] if differs[1] and sum(differs) == 1 else []


_Key = Callable[[Layer], object]


def _alone(to: Sequence[Layer], origin: Sequence[Layer], key: _Key, their_key: _Key | None = None) -> dict[int, int]:
    """The layers that are the only ones of a key on both sides; those without a key are left out."""
    ours, theirs = _places(to, key), _places(origin, their_key or key)
    return {ours[own][0]: theirs[own][0] for own in ours.keys() & theirs.keys() if len(ours[own] + theirs[own]) == 2}


def _places(layers: Sequence[Layer], key: _Key) -> dict[object, list[int]]:
    places: dict[object, list[int]] = defaultdict(list)
    for place, layer in enumerate(layers):
        if own := key(layer):
            places[own].append(place)
    return places


def _shape_alone(layer: Layer) -> object:
    """What tells a layer by its shape alone: the whole signature, and of a parameter of no known role not its name."""
    signature = layer.signature
    if _weight_rank(layer) < 2:
        return None
    return signature.tensors[signature.main] if signature.kind == "loose" else signature


def _changes(to: Layer, origin: Layer) -> set[tuple[int, int]]:
    """The sizes that differ in the weights of two layers: from this one to that one."""
    return {(a, b) for a, b in zip(_weight_shape(origin), _weight_shape(to), strict=False) if a != b}


def _weight_shape(layer: Layer) -> tuple[int, ...]:
    return layer.signature.tensors[layer.signature.main][0]


def _weight_rank(layer: Layer) -> int:
    return len(_weight_shape(layer))


def _is_square(layer: Layer) -> bool:
    shape = _weight_shape(layer)
    return len(shape) == 2 and shape[0] == shape[1]


def crossings(pairs: Iterable[tuple[Layer, Layer]]) -> list[tuple[Layer, Layer]]:
    """Pairs whose names say otherwise: `left` would get what `right` has, and `right` what `left` has, or more in turn.

    Names are held against each other from their ends, numbers within one module, words within all blocks of a list:
    where `norm1` is the `norm2` of its block and `norm2` the `norm1` of the next one, all is off by a half. Lists that
    lost a member count on, but never in a circle.
    """
    turns: dict[object, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    steps: list[tuple[tuple[Layer, Layer], object, str, str]] = []
    for pair in pairs:
        to, origin = (layer.path for layer in pair)
        for depth in range(1, min(len(to), len(origin)) + 1):
            name, other = to[-depth], origin[-depth]
            if name != other:
                parents: tuple[tuple[str, ...], ...] = (to[:-depth], origin[:-depth])
                if not (name.isdecimal() or other.isdecimal()):
                    parents = tuple(tuple("#" if part.isdecimal() else part for part in path) for path in parents)
                turns[parents][name].add(other)
                steps.append((pair, parents, name, other))
    ends = {(around, other) for _, around, _, other in steps}
    ahead = {(around, other): _reached(turns[around], other) for around, other in ends}
    crossed = {id(pair[0]): pair for pair, around, name, other in steps if name in ahead[around, other]}
    return list(crossed.values())


def _reached(turns: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """What one comes to from a name, itself included."""
    seen, ahead = {start}, [start]
    while ahead:
        fresh = {name for name in turns.get(ahead.pop(), ()) if name not in seen}
        seen |= fresh
        ahead += fresh
    return seen


def _crossed(pairs: Sequence[tuple[Layer, Layer]]) -> AmbiguousMatchError:
    to, origin = map(_name, pairs[0])
    more = f", and so it is with {len(pairs) - 1} more layers" if len(pairs) > 1 else ""
    return AmbiguousMatchError(
        f"by its place {to} of the model is {origin} of the source, and the names say that these changed places{more}",
        candidates=tuple(f"{_name(a)} <- {_name(b)}" for a, b in pairs),
        hint=f"name what you know: rules=[tk.rename({{{origin!r}: ...}}), 'structural'], or leave these out: "
        "rules=[tk.structural(ambiguous='leave')]",
    )


def _log_odds(confidence: float) -> float:
    return math.log(confidence / (1 - confidence))


def _confidence(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _ambiguous(to: Sequence[Layer], origin: Sequence[Layer], clashes: Sequence[tuple[int, int]]) -> AmbiguousMatchError:
    """Names one layer with all of its partners, and how many more there are."""
    rows = Counter(i for i, _ in clashes)
    one = next(((i, j) for i, j in clashes if rows[i] > 1), clashes[0])
    if rows[one[0]] > 1:
        what, side = f"{_name(to[one[0]])} of the model", "source"
        partners = [_name(origin[j]) for i, j in clashes if i == one[0]]
    else:
        what, side = f"{_name(origin[one[1]])} of the source", "model"
        partners = [_name(to[i]) for i, j in clashes if j == one[1]]
    more = f", and so it is with {len(rows) - 1} more layers" if len(rows) > 1 else ""
    pair = {_name(origin[one[1]]): _name(to[one[0]])}
    return AmbiguousMatchError(
        f"{what} could be {' or '.join(shorten(partners, 4).split(', '))} of the {side} alike{more}",
        candidates=tuple(f"{_name(to[i])} <- {_name(origin[j])}" for i, j in clashes),
        hint=f"name what you know: rules=[tk.rename({pair}), 'structural'], or leave these out: "
        "rules=[tk.structural(ambiguous='leave')]",
    )


def _name(layer: Layer) -> str:
    """The first of its tensors, by its own name."""
    return next(iter(layer.names.values()))
