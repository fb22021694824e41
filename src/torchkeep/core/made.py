"""Values that are made when they are asked for: twenty thousand tensors cost nothing until one is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Made(Mapping[str, Value]):
    """A mapping that makes each value once, from its name and what an index has under the name."""

    __slots__ = ("_index", "_made", "_make")

    def __init__(self, index: Mapping[str, Any], make: Callable[[str, Any], Value]) -> None:
        self._index = index
        self._make = make
        self._made: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        found = self._made.get(name)
        if found is None:  # two threads may both make it, and then have the same one
            found = self._made.setdefault(name, self._make(name, self._index[name]))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"<{len(self)} values, {len(self._made)} of them made>"


class Later(Generic[Value]):
    """One value that is made when it is asked for."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: list[Value] = []

    def get(self) -> Value:
        """The value; what `make` raises is raised every time."""
        if not self._made:
            self._made.append(self._make())
        return self._made[0]
