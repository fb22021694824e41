"""Sets of numbers as spans from a first to a last one, which stay short however many numbers there are."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]
"""The first and the last number of a stretch."""


def spans_of(numbers: Iterable[int]) -> list[Span]:
    """The stretches that numbers form."""
    return joined((number, number) for number in numbers)


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, with those that touch or overlap made one."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        elif first <= last:
            found.append((first, last))
    return found


def gaps(spans: Iterable[Span], last: int) -> list[Span]:
    """What is in none of the spans, from 1 to a last number."""
    found = []
    free = 1
    for first, end in joined(spans):
        if free < first and free <= last:
            found.append((free, min(first - 1, last)))
        free = max(free, end + 1)
    return [*found, (free, last)] if free <= last else found


def within(spans: Iterable[Span], number: int) -> bool:
    """Whether a number is in one of the spans."""
    return any(first <= number <= last for first, last in spans)


def span_text(span: Span) -> str:
    """`4` or `4-9`."""
    first, last = span
    return str(first) if first == last else f"{first}-{last}"
