"""How alike two tensors are, read together a few megabytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .core.composite import Chunked, Composite
from .core.live import AnyTensor, identity, spec_of
from .core.pieces import elements, real_numbers, same_bits
from .core.tensors import LazyTensor, dtype_name

_ELEMENTS = 1 << 20  # read at a time
_CHUNK = 1 << 15  # computed at a time: it stays in the cache, and torch shares no smaller work out to threads


@dataclass(frozen=True)
class Distance:
    """How far a tensor moved, over the elements that are finite on both sides.

    Attributes:
        relative: norm of the difference over the norm of the first tensor; None where that is 0 or overflows.
        largest: the largest difference of two elements.
        cosine: of the angle between both; None where one of them is 0.
        changed: elements that are not bit for bit the same.
        lost: of those, elements that are NaN or infinite on one side or both.
        nonfinite: how many elements are NaN or infinite, on each side.
    """

    relative: float | None
    largest: float
    cosine: float | None
    changed: int
    lost: int
    nonfinite: tuple[int, int]


def same(one: AnyTensor, other: AnyTensor) -> bool:
    """Whether two tensors are equal bit for bit, so that a NaN equals itself.

    Raises:
        CorruptCheckpointError: the bytes of one are missing.
    """
    if identity(one) == identity(other):
        return True
    if spec_of(one) != spec_of(other):
        return False
    if _is_made(one) or _is_made(other):
        return _same_parts(one, other)
    return all(bool(same_bits(a, b).all()) for a, b in _pairs(one, other))


def distance(one: AnyTensor, other: AnyTensor) -> Distance | None:
    """How far the elements of two tensors of one shape are apart; None where they are no numbers of one kind.

    Computed in float64. Complex numbers count by their parts.
    """
    if not _has_numbers(one) or not _has_numbers(other) or one.dtype.is_complex != other.dtype.is_complex:
        return None
    sums = _Sums()
    for a, b in _pairs(one, other):
        for start in range(0, len(a), _CHUNK):
            sums.add(a[start : start + _CHUNK], b[start : start + _CHUNK])
    return Distance(
        _ratio(math.sqrt(sums.gap), math.sqrt(sums.before)),
        sums.largest,
        _cosine(sums.dot, sums.before, sums.after),
        sums.changed,
        sums.lost,
        (sums.odd[0], sums.odd[1]),
    )


class _Sums:
    """What a distance is made of, added up piece by piece."""

    def __init__(self) -> None:
        self.dot = self.before = self.after = self.gap = self.largest = 0.0
        self.changed = self.lost = 0
        self.odd = [0, 0]
        self._room = torch.empty(4, 2 * _CHUNK, dtype=torch.float64)  # new memory each time costs more than the sums

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Some elements of each."""
        x, y = real_numbers(a, self._room[0]), real_numbers(b, self._room[1])
        differ = ~same_bits(a, b) if a.dtype == b.dtype else (x != y) & ~(x.isnan() & y.isnan())
        self.changed += int(differ.sum())
        before, after = self._product(x, x), self._product(y, y)
        if not (math.isfinite(before) and math.isfinite(after)):  # much cheaper than asking each element
            finite = x.isfinite(), y.isfinite()
            both = finite[0] & finite[1]
            self.odd[0] += int((~finite[0]).sum())
            self.odd[1] += int((~finite[1]).sum())
            unequal = differ if differ.shape == both.shape else differ.repeat_interleave(2)
            self.lost += int((unequal & ~both).sum())
            x, y = x[both], y[both]
            before, after = self._product(x, x), self._product(y, y)
        if x.numel():
            self.dot += self._product(x, y)
            self.before += before
            self.after += after
            apart = torch.sub(y, x, out=self._room[2, : len(x)])
            self.largest = max(self.largest, float(torch.linalg.vector_norm(apart, ord=math.inf)))
            self.gap += self._product(apart, apart)

    def _product(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """The scalar product. Not torch.dot, whose threads wait for each other whenever the machine is busy."""
        return float(torch.mul(x, y, out=self._room[3, : len(x)]).sum())


def _ratio(gap: float, norm: float) -> float | None:
    return gap / norm if norm and math.isfinite(gap) and math.isfinite(norm) else None


def _cosine(dot: float, first: float, second: float) -> float | None:
    scale = math.sqrt(first) * math.sqrt(second)
    return max(-1.0, min(1.0, dot / scale)) if scale and math.isfinite(scale) and math.isfinite(dot) else None


def _pairs(one: AnyTensor, other: AnyTensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, one.numel(), _ELEMENTS):
        count = min(_ELEMENTS, one.numel() - start)
        yield elements(one, start, count), elements(other, start, count)


def _is_made(tensor: AnyTensor) -> bool:
    return isinstance(tensor, Composite) and not isinstance(tensor.composition, Chunked)


def _has_numbers(tensor: AnyTensor) -> bool:
    return not _is_made(tensor) and not dtype_name(tensor.dtype).startswith("float4")


def _same_parts(one: AnyTensor, other: AnyTensor) -> bool:
    """Sparse, quantized and nested ones are equal if they are made in one way of equal parts."""
    if not (isinstance(one, Composite) and isinstance(other, Composite)) or one.composition != other.composition:
        return False
    parts = one.parts, other.parts
    return parts[0].keys() == parts[1].keys() and all(same(parts[0][key], parts[1][key]) for key in parts[0])


def has_values(tensor: AnyTensor) -> bool:
    """Whether there are values to compare: on the meta device there are none."""
    return str(tensor.device) != "meta" if isinstance(tensor, LazyTensor) else tensor.device.type != "meta"
