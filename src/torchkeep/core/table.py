"""One small document: a title, facts, rows and notes. Nouns make it, views draw it; its plain form is `str()`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """What a noun has to say for itself, ready to be drawn as text, in colour or as anything else."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Names come from files: what would move the cursor or fake a line is shown as an escape."""
        for field in ("title", "facts", "columns", "rows", "notes"):
            object.__setattr__(self, field, _printable(getattr(self, field)))

    def __str__(self) -> str:
        lines = [self.title]
        width = max((len(key) for key, value in self.facts if value), default=0)
        lines += [f"  {key:<{width}}  {value}" for key, value in self.facts if value]
        if self.rows:
            widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
            lines.append("")
            for row in (self.columns, *self.rows):
                cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
                lines.append(("  " + "  ".join(cells)).rstrip())
        if self.notes:
            lines += ["", *(f"  {note}" for note in self.notes)]
        return "\n".join(lines)


def _printable(value: Any) -> Any:
    return tuple(map(_printable, value)) if isinstance(value, tuple) else printable(value)


def printable(text: str) -> str:
    """Text in which nothing moves the cursor of a terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def human_bytes(nbytes: float) -> str:
    """A size for people, in units of 1000: `17.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def human_count(count: float) -> str:
    """A number of elements for people: `4.65 M`."""
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def shorten(names: Iterable[str], most: int = 8) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(names)
    text = ", ".join(listed[:most])
    return f"{text} and {len(listed) - most} more" if len(listed) > most else text
