"""Names that end alike: the longest common suffix in whole segments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..core.plan import Specs
from ..core.table import shorten
from ..errors import AmbiguousMatchError
from .prefixes import unwrap

_LEAST = 2  # "weight" alone says nothing


class Suffix:
    """Pairs names with the longest common suffix in whole dotted segments, where the shapes agree.

    At least two segments have to agree, or the whole of the shorter name. The longest suffixes are paired first; two
    names that end alike and have one shape are an AmbiguousMatchError, and nothing is guessed.
    """

    name = "suffix"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source.

        Raises:
            AmbiguousMatchError: several names of one side end as one of the other does, and have its shape.
        """
        found: dict[str, str] = {}
        left, free = _segments(target), _segments(source)
        for length in range(min(_longest(left), _longest(free)), 0, -1):
            ends, origins = _by_end(left, target, length), _by_end(free, source, length)
            for end, names in ends.items():
                others = origins.get(end, [])
                pairs = [(a, b) for a in names for b in others if length >= _LEAST or _whole(left[a], free[b], length)]
                if len(pairs) > 1:
                    raise _ambiguous(names, others, end[0])
                found.update(pairs)
            left = {name: parts for name, parts in left.items() if name not in found}
            used = set(found.values())
            free = {name: parts for name, parts in free.items() if name not in used}
        return {name: found[name] for name in target if name in found}


def _segments(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(unwrap(name).split(".")) for name in names}


def _longest(segments: Mapping[str, tuple[str, ...]]) -> int:
    return max(map(len, segments.values()), default=0)


def _whole(a: tuple[str, ...], b: tuple[str, ...], length: int) -> bool:
    return length in (len(a), len(b))


_End = tuple[tuple[str, ...], tuple[int, ...]]


def _by_end(segments: Mapping[str, tuple[str, ...]], specs: Specs, length: int) -> dict[_End, list[str]]:
    """Names by their last few segments and their shape; shorter names are left out."""
    ends: dict[_End, list[str]] = defaultdict(list)
    for name, parts in segments.items():
        if len(parts) >= length:
            ends[parts[-length:], specs[name].shape].append(name)
    return ends


def _ambiguous(names: list[str], others: list[str], end: tuple[str, ...]) -> AmbiguousMatchError:
    several = others if len(others) > 1 else names
    return AmbiguousMatchError(
        f"{shorten(several, 4)} of the {'source' if several is others else 'model'} end in {'.'.join(end)!r} alike "
        f"and have the shape of {(names if several is others else others)[0]!r}",
        candidates=tuple(several),
        hint=f"say which: rules=[tk.rename({{{others[0]!r}: {names[0]!r}}}), 'suffix']",
    )
