"""Records as columns: a million of them in some tens of megabytes, and each still a dict when it is asked for."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_PAGE = 4096  # rows that are made into dicts at a time


@dataclass(frozen=True, eq=False)
class Column:
    """The values that one name has in some records.

    Attributes:
        places: which records have it, ascending.
        values: int64, float64, or objects where some are neither.
    """

    places: NDArray[np.int64]
    values: NDArray[Any]

    def numbers(self) -> tuple[Column, tuple[Any, ...]]:
        """The values as floats, and those that are no numbers: text, lists, truth values."""
        if self.values.dtype != object:
            return Column(self.places, self.values.astype(np.float64)), ()
        read = [number_in(value) for value in self.values]
        kept = np.array([value is not None for value in read], dtype=bool)
        values = np.array([value for value in read if value is not None], dtype=np.float64)
        return Column(self.places[kept], values), tuple(self.values[~kept])


class Rows(Sequence[dict[str, Any]]):
    """A sequence of dicts that is kept as columns. What a record does not have is not in its dict."""

    def __init__(self, columns: Mapping[str, Column], length: int) -> None:
        self.columns = dict(columns)
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        chosen = range(self._length)[index]
        if isinstance(chosen, int):
            return self._page(chosen, chosen + 1)[0]
        if chosen.step == 1:
            return self._page(chosen.start, max(chosen.start, chosen.stop))
        return [self._page(place, place + 1)[0] for place in chosen]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for begin in range(0, self._length, _PAGE):
            yield from self._page(begin, min(begin + _PAGE, self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows({self._length} records of {', '.join(self.columns)})"

    def _page(self, begin: int, end: int) -> list[dict[str, Any]]:
        page: list[dict[str, Any]] = [{} for _ in range(end - begin)]
        for name, column in self.columns.items():
            first, last = np.searchsorted(column.places, (begin, end))
            places, values = column.places[first:last].tolist(), column.values[first:last].tolist()
            for place, value in zip(places, values, strict=True):
                page[place - begin][name] = value
        return page


class Gathering:
    """Makes columns of records that come in chunks."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Column]] = {}
        self.length = 0

    def add_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Some records more. Objects in them are laid flat: `{"val": {"loss": 1}}` has the name `val/loss`."""
        names = dict.fromkeys(itertools.chain.from_iterable(records))
        held = {name: list(map(operator.methodcaller("get", name), records)) for name in names}
        kinds = {name: set(map(type, values)) for name, values in held.items()}
        if any(dict in found for found in kinds.values()):
            self.add_records([_flat(record) for record in records])
            return
        for name, values in held.items():
            if type(None) not in kinds[name]:
                self.add(str(name), None, packed(values))
            elif len(kinds[name]) > 1:
                places = [place for place, value in enumerate(values) if value is not None]
                self.add(str(name), places, packed([values[place] for place in places]))
        self.length += len(records)

    def add(self, name: str, places: Sequence[int] | NDArray[Any] | None, values: NDArray[Any]) -> None:
        """Values of one name in the records that come next, counted from the first of these; None: in each of them."""
        counted = np.arange(len(values)) if places is None else np.asarray(places, dtype=np.int64)
        self._chunks.setdefault(name, []).append(Column(counted + self.length, values))

    def rows(self) -> Rows:
        """All of it; names in the order in which they first came."""
        columns = {}
        for name, chunks in self._chunks.items():
            kind = np.result_type(*(chunk.values.dtype for chunk in chunks))
            values = np.concatenate([chunk.values.astype(kind, copy=False) for chunk in chunks])
            columns[name] = Column(np.concatenate([chunk.places for chunk in chunks]), values)
        return Rows(columns, self.length)


def rows_of(records: Iterable[Mapping[str, Any]]) -> Rows:
    """Records as columns, which they may be already."""
    if isinstance(records, Rows):
        return records
    gathering = Gathering()
    listed = list(records)
    for begin in range(0, len(listed), 1 << 16):
        gathering.add_records(listed[begin : begin + (1 << 16)])
    return gathering.rows()


def packed(values: Sequence[Any]) -> NDArray[Any]:
    """Values in the narrowest kind of array that keeps them as they are."""
    kinds = set(map(type, values))
    if kinds == {int}:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    elif kinds == {float} or (kinds == {int, float} and all(abs(one) <= 1 << 53 for one in values if type(one) is int)):
        return np.array(values, dtype=np.float64)
    held = np.empty(len(values), dtype=object)
    held[:] = values
    return held


_PERCENT = re.compile(r"\s*([+-]?[0-9.]+(?:[eE][+-]?\d+)?)\s*%\s*")


def number_in(value: Any) -> float | None:
    """A value as a number, `"nan"`, `"0.5"` and `"93 %"` too; None if it is none, as truth values are."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        if isinstance(value, str):
            percent = _PERCENT.fullmatch(value)
            return float(percent[1]) / 100 if percent else float(value)
        return float(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return None


def _flat(record: Mapping[str, Any], depth: int = 8) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            within = _flat(value, depth - 1) if depth else {}
            flat |= {f"{name}/{key}": child for key, child in within.items()}
        else:
            flat[str(name)] = value
    return flat
