"""Values separated by commas, semicolons or tabs: Keras's CSVLogger, Lightning's metrics.csv, spreadsheets."""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..core.history import History
from ..core.roles import is_known
from ..core.rows import Gathering, number_in, packed
from ..core.table import shorten

_SEPARATORS = ",;\t"
_BLOCK = 1 << 22  # characters that are read at a time
_CHUNK = 1 << 15  # rows that are read at a time
_MISSING = frozenset({"", "na", "n/a", "null", "none", "-", "--"})
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_SENTENCE = re.compile(r"[=:]|\d\.\d")  # no name of a column, but `loss: 0.3` in somebody's log
_ENCODINGS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class Separated:
    """A line of names, then one line a record; an empty cell is no value."""

    name = "csv"
    wants = "CSV (a first line with the names of the columns; commas, semicolons or tabs)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By a first line of names, and a second one that has a number, or names that are known."""
        text = head.decode(_encoding(head), errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][:2]
        if not lines or "\0" in lines[0]:
            return False
        separator = _separator(lines[0])
        names = _cells(lines[0], separator)
        if not names or any(number_in(name) is not None or _SENTENCE.search(name) for name in names):
            return False
        cells = _cells(lines[1], separator) if len(lines) > 1 else []
        if cells or len(names) == 1:
            numbers = any(number_in(cell.replace(",", ".")) is not None for cell in cells)
            return numbers and (len(cells) <= len(names) or any(map(is_known, names)))
        return any(map(is_known, names))

    def read(self, path: Path) -> History:
        """The rows, a torn last one left out."""
        with path.open("rb") as file:
            encoding = _encoding(file.read(2))
        with path.open(encoding=encoding, errors="replace") as text:
            first = next((line for line in text if line.strip()), "")
            separator = _separator(first)
            reading = _Reading(_cells(first, separator))
            for name in reading.names:  # those without a value are columns too
                reading.gathering.add(name, None, np.zeros(0, dtype=np.int64))
            _read(text, separator, reading)
        reading.end(whole=_ends_with_line(path, encoding))
        return History(reading.gathering.rows(), notes=tuple(reading.notes))


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in _ENCODINGS if head.startswith(mark)), "utf-8-sig")


def _separator(line: str) -> str:
    """The separator that a line has most of outside quotation marks."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(_SEPARATORS, key=bare.count)


def _cells(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line.lstrip("# ")], delimiter=separator), [])]
    except csv.Error:
        return []


def _named(cells: list[str]) -> tuple[list[str], list[str]]:
    """The columns by name, each once: a nameless one by its number, a second one of a name with `.1`."""
    names: list[str] = []
    for number, cell in enumerate(cells, start=1):
        name = cell or f"column {number}"
        count = sum(one.partition(".")[0] == name for one in names) if name in names else 0
        names.append(f"{name}.{count}" if count else name)
    again = [name for name, cell in zip(names, cells, strict=True) if cell and name != cell]
    notes = (
        [f"several columns have one name; the later ones are called {shorten(map(repr, again), 4)}"] if again else []
    )
    return names, notes


def _read(text: TextIO, separator: str, reading: _Reading) -> None:
    """The lines after the first: in blocks that are split at once, and from the first quotation mark on with care."""
    rest = ""
    while piece := text.read(_BLOCK):
        whole, _, rest = (rest + piece).rpartition("\n")
        if '"' in whole or '"' in rest:
            lines = chain(f"{whole}\n{rest}{text.readline()}".splitlines(keepends=True), text)
            rest = ""
            _read_quoted(csv.reader(lines, delimiter=separator), reading)
        elif whole:
            reading.add_lines(whole.split("\n"), separator)
    if rest:
        reading.add([rest.split(separator)])


def _read_quoted(rows: Any, reading: _Reading) -> None:
    """Rows in chunks, up to where the file can be read."""
    while True:
        chunk: list[list[str]] = []
        try:
            chunk.extend(islice(rows, _CHUNK))
        except csv.Error as error:  # chunk keeps what was read before it
            reading.notes.append(f"nothing is read beyond record {reading.gathering.length + len(chunk):,}: {error}")
            reading.add(chunk)
            return
        if not chunk:
            return
        reading.add(chunk)


def _ends_with_line(path: Path, encoding: str) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4))
        return file.read().decode("utf-16-le" if encoding == "utf-16" else "latin-1", "replace").endswith(("\n", "\r"))


@dataclass
class _Reading:
    """Rows on their way into columns. The last row waits, for it may be torn."""

    header: list[str]
    notes: list[str] = field(default_factory=list)
    gathering: Gathering = field(default_factory=Gathering)
    comma: bool | None = None
    short: int = 0
    long: int = 0
    headers: int = 0
    shortest: int = 1 << 30  # cell of the last column
    waiting: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names, notes = _named(self.header)
        self.notes += notes

    def add_lines(self, lines: list[str], separator: str) -> None:
        """Whole lines without quotation marks."""
        width = len(self.names)
        if set(map(operator.methodcaller("count", separator), lines)) == {width - 1} and width > 1:
            cells = separator.join(lines).split(separator)
            self._take([cells[place::width] for place in range(width)])
        else:
            self._take_rows([line.split(separator) for line in lines])

    def add(self, rows: list[list[str]]) -> None:
        """Rows, of which the last one may be torn."""
        rows = self.waiting + rows
        self.waiting = rows[-1:]
        self._take_rows(rows[:-1])

    def end(self, *, whole: bool) -> None:
        """Take the last row, if all of it is there."""
        last = self.waiting
        if last and not whole and (len(last[0]) < len(self.names) or len(last[0][-1]) < self.shortest - 1):
            self.notes.append("the last line is torn and is left out")
        elif last:
            if not whole:
                self.notes.append("the last line has no end, and is taken as whole: it has all its columns")
            self._take_rows(last)
        told = (
            (self.headers, "lines repeat the names of the columns and are left out"),
            (self.short, "lines have fewer columns than there are names; the missing ones are empty"),
            (self.long, "lines have more columns than there are names; what is beyond them is left out"),
        )
        self.notes += [f"{count:,} {what}" for count, what in told if count]
        if self.comma is False:
            self.notes.append("numbers such as 1,234 may be decimals or thousands and are not read; write a dot")

    def _take_rows(self, rows: list[list[str]]) -> None:
        """Rows of any width; blank ones, and the zeros that a crash leaves, are none."""
        rows = [row for row in rows if any(cell.strip("\0 \t") for cell in row)]
        if set(map(len, rows)) - {len(self.names)}:
            rows = [self._of_width(row, len(self.names)) for row in rows]
        self._take([list(cells) for cells in zip(*rows, strict=True)])

    def _take(self, columns: list[list[str]]) -> None:
        if columns and self.header[0] in columns[0]:
            rows = list(zip(*columns, strict=True))
            kept = [row for row in rows if [cell.strip() for cell in row] != self.header]
            self.headers += len(rows) - len(kept)
            columns = [list(cells) for cells in zip(*kept, strict=True)]
        if not columns:
            return
        self.shortest = min(self.shortest, *map(len, columns[-1]))
        odd = {}
        for name, cells in zip(self.names, columns, strict=True):
            try:
                self.gathering.add(name, None, _floats(cells))
            except ValueError:
                odd[name] = cells
        if self.comma is not True:
            self.comma = _decimal_commas(odd.values())
        for name, cells in odd.items():
            self._mixed(name, cells)
        self.gathering.length += len(columns[0])

    def _of_width(self, row: list[str], width: int) -> list[str]:
        extra = any(cell.strip() for cell in row[width:])  # a separator at the end of every line says nothing
        self.short += len(row) < width
        self.long += extra
        return [*row[:width], *[""] * (width - len(row))]

    def _mixed(self, name: str, cells: Sequence[str]) -> None:
        """Cells of which some are empty or no plain numbers."""
        read = [(place, self._value(cell.strip())) for place, cell in enumerate(cells)]
        there = [(place, value) for place, value in read if value is not None]
        if there:
            places, values = zip(*there, strict=True)
            self.gathering.add(name, places, packed(values))

    def _value(self, text: str) -> Any:
        if text.lower() in _MISSING:
            return None
        if self.comma and _COMMA.fullmatch(text):
            text = text.replace(",", ".")
        number = number_in(text)
        if number is None:
            return text
        return int(number) if text.isdecimal() else number


def _decimal_commas(columns: Iterable[Sequence[str]]) -> bool | None:
    """Whether commas in numbers stand for decimals; False where they may be thousands, None where there are none."""
    commas = [cell.strip() for cells in columns for cell in cells if "," in cell and _COMMA.fullmatch(cell.strip())]
    return any(not _THOUSANDS.fullmatch(cell) for cell in commas) if commas else None


def _floats(cells: Sequence[str]) -> NDArray[Any]:
    """Cells that are all numbers; whole ones where no cell says otherwise.

    Raises:
        ValueError: some cell is none.
    """
    if "".join(cells).isdecimal() and "" not in cells:
        try:
            return np.array(list(map(int, cells)), dtype=np.int64)
        except OverflowError:
            pass
    return np.fromiter(map(float, cells), np.float64, len(cells))
