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

_ELEMENTS = 1 << 20


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
    """How far the elements of two tensors of one shape are apart; None where they are no numbers of their own.

    Computed in float64. Complex numbers count by their parts.
    """
    if not _has_numbers(one) or not _has_numbers(other):
        return None
    dot = first = second = gap = 0.0
    largest = 0.0
    changed = lost = 0
    odd = [0, 0]
    for a, b in _pairs(one, other):
        if a.dtype == b.dtype:
            differ = ~same_bits(a, b)
            changed += int(differ.sum())
        x, y = real_numbers(a), real_numbers(b)
        if a.dtype != b.dtype:
            differ = x != y
            changed += int(differ.sum())
        finite = x.isfinite(), y.isfinite()
        both = finite[0] & finite[1]
        if not bool(both.all()):
            odd[0] += int((~finite[0]).sum())
            odd[1] += int((~finite[1]).sum())
            unequal = differ if differ.shape == both.shape else differ.repeat_interleave(2)
            lost += int((unequal & ~both).sum())
            x, y = x[both], y[both]
        if x.numel():
            z = y - x
            dot += float(torch.dot(x, y))
            first += float(torch.dot(x, x))
            second += float(torch.dot(y, y))
            gap += float(torch.dot(z, z))
            largest = max(largest, float(z.abs().max()))
    return Distance(_ratio(math.sqrt(gap), math.sqrt(first)), largest, _cosine(dot, first, second), changed, lost, (odd[0], odd[1]))


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
