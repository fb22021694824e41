"""Dotted names: how paths become names, how selectors choose names, how long lists fold for reading."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import SelectorError


def name_paths(paths: Sequence[tuple[str, ...]]) -> list[str]:
    r"""Join each path with dots; where two paths would get one name, escape the dots inside their keys as `\.`.

    Names that still collide (a key 1 beside a key "1") get `~2`, `~3` appended, so nothing is ever dropped.

    >>> name_paths([("a.b",), ("a", "b"), ("c",)])
    ['a\\.b', 'a.b', 'c']
    """
    plain = [".".join(path) for path in paths]
    count = Counter(plain)
    names = []
    taken: set[str] = {name for name, times in count.items() if times == 1}
    for path, name in zip(paths, plain, strict=True):
        if count[name] > 1:
            base = ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in path)
            name, serial = base, 2  # noqa: PLW2901
            while name in taken:
                name, serial = f"{base}~{serial}", serial + 1  # noqa: PLW2901
            taken.add(name)
        names.append(name)
    return names


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that look most like a given one."""
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.4)


def with_parents(names: Iterable[str]) -> list[str]:
    """The names and all paths above them, in order, each once.

    >>> with_parents(["a.b.c", "a.d"])
    ['a', 'a.b', 'a.b.c', 'a.d']
    """
    paths: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(paths)


def is_under(name: str, prefix: str) -> bool:
    """Whether a name is the prefix itself or lies below it."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


@dataclass(frozen=True)
class Selector:
    """Chooses names of parameters, buffers and modules.

    `head` is the module or parameter of that name and all below it; `*` and `?` match any characters, dots
    included, and what matches is chosen with all below it (`layer?.*.bias`, `* but *.bn?`); `re:^enc\\d` and compiled
    patterns are searched in the name; `first 3` and `last 2` are that many top-level blocks; `A, B` and a list
    are the union; `A but B, C` is A without B and C.

    Attributes:
        text: the selector as the caller wrote it.
    """

    text: Any

    @classmethod
    def of(cls, selection: Any) -> Selector:
        """Anything a caller may write, as a Selector."""
        return selection if isinstance(selection, cls) else cls(selection)

    @cached_property
    def _parts(self) -> tuple[Any, ...]:
        several = isinstance(self.text, Iterable) and not isinstance(self.text, (str, bytes))
        return tuple(self.text) if several else (self.text,)

    @cached_property
    def _terms(self) -> tuple[tuple[tuple[_Atom, ...], tuple[_Atom, ...]], ...]:
        terms = (part._terms if isinstance(part, Selector) else (_parse(part),) for part in self._parts)
        return tuple(term for part in terms for term in part)

    def choose(self, names: Iterable[str], blocks: Sequence[str] = ()) -> list[str]:
        """The chosen names, in their order.

        Args:
            names: dotted names to choose from.
            blocks: top-level blocks in order, for `first n` and `last n`.
        """
        return [name for name in names if self.matches(name, blocks)]

    def matches(self, name: str, blocks: Sequence[str] = ()) -> bool:
        """Whether one name is chosen."""
        return any(
            any(_hit(want, name, blocks) for want in wants) and not any(_hit(no, name, blocks) for no in nots)
            for wants, nots in self._terms
        )

    def unused(self, names: Iterable[str], blocks: Sequence[str] = ()) -> list[str]:
        """The parts, excluded ones too, that match none of the names: nearly always typing errors."""
        listed = list(names)
        atoms = [atom for wants, nots in self._terms for atom in (*wants, *nots)]
        return [
            atom.text for atom in atoms if not any(_hit(atom, name, blocks) for name in listed) or atom.beyond(blocks)
        ]

    def check(self, names: Iterable[str], what: str, where: str, blocks: Sequence[str] = ()) -> None:
        """Refuse parts that match none of the names.

        Args:
            names: dotted names.
            what: the argument that the selector was given as, e.g. `adapt`.
            where: what has the names, e.g. `the model`.
            blocks: top-level blocks in order, for `first n` and `last n`.

        Raises:
            SelectorError: a part matches nothing; the hint has the nearest names.
        """
        listed = list(names)
        for part in self.unused(listed, blocks):
            close = nearest(part.removesuffix(".*"), with_parents(listed))
            hint = f"the nearest names are {', '.join(map(repr, close))}" if close else "print(model) shows its names"
            raise SelectorError(f"{what}={part!r} matches nothing in {where}", hint=hint)

    @property
    def texts(self) -> tuple[str, ...]:
        """Its parts as text, from which the same selector can be made again."""
        return tuple(
            text for part in self._parts for text in (part.texts if isinstance(part, Selector) else (_text(part),))
        )

    def __str__(self) -> str:
        return ", ".join(_text(part) for part in self._parts)


@dataclass(frozen=True)
class _Atom:
    """One word of a selector as it was written, and what it stands for: a name, a pattern, or a number of blocks."""

    text: str
    means: str | re.Pattern[str] | tuple[str, int]

    def beyond(self, blocks: Sequence[str]) -> bool:
        """Whether it asks for more blocks than there are."""
        return isinstance(self.means, tuple) and self.means[1] > len(blocks)


def _text(part: Any) -> str:
    return f"re:{part.pattern}" if isinstance(part, re.Pattern) else str(part)


def _parse(part: Any) -> tuple[tuple[_Atom, ...], tuple[_Atom, ...]]:
    if isinstance(part, re.Pattern):
        return (_Atom(_text(part), part),), ()
    if not isinstance(part, str) or not part.strip():
        raise SelectorError(
            f"{part!r} is not a selector",
            hint="write a name, a pattern such as 'backbone.*', 'first 3' or '* but head'",
        )
    if part.startswith("re:"):
        return (_atom(part),), ()
    wanted, *excluded = re.split(r"\s+but\s+", part.strip())
    return _atoms([wanted]), _atoms(excluded)


def _atoms(lists: list[str]) -> tuple[_Atom, ...]:
    return tuple(_atom(word) for words in lists for word in re.split(r"\s*,\s*", words.strip()) if word)


def _atom(word: str) -> _Atom:
    return _Atom(word, _meaning(word))


def _meaning(word: str) -> str | re.Pattern[str] | tuple[str, int]:
    if word.startswith("re:"):
        try:
            return re.compile(word[3:])
        except re.error as error:
            raise SelectorError(f"{word!r} is not a regular expression: {error}") from error
    counted = re.fullmatch(r"(first|last)\s+(\d+)", word)
    if counted:
        return counted[1], int(counted[2])
    if "*" in word or "?" in word:
        pattern = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in word)
        return re.compile(rf"\A{pattern}(?:\.|\Z)", re.DOTALL)
    return word


def selection_of(path: str) -> str:
    """The selector, as text, of a module of this path and of all below it, whatever characters are in it."""
    return path if re.fullmatch(r"[\w.-]+", path) else rf"re:\A{re.escape(path)}(?:\.|\Z)"


def _hit(atom: _Atom, name: str, blocks: Sequence[str]) -> bool:
    means = atom.means
    if isinstance(means, str):
        return is_under(name, means)
    if isinstance(means, tuple):
        which, count = means
        chosen = blocks[:count] if which == "first" else blocks[max(0, len(blocks) - count) :]
        return any(is_under(name, block) for block in chosen)
    return means.search(name) is not None


def fold(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group names that differ only in their numbers: `layer.{0..11}.weight` with the twelve names it stands for."""
    groups: dict[tuple[str | None, ...], list[str]] = defaultdict(list)
    for name in names:
        groups[tuple(None if _NUMBER.fullmatch(piece) else piece for piece in name.split("."))].append(name)
    return [(_folded(pattern, members), members) for pattern, members in groups.items()]


_NUMBER = re.compile(r"[0-9]{1,9}")


def _folded(pattern: tuple[str | None, ...], members: list[str]) -> str:
    """One name for all; numbers, which are None in the pattern, become what they span."""
    if len(members) == 1:
        return members[0]
    columns = zip(*(name.split(".") for name in members), strict=True)
    return ".".join(
        _span({int(value) for value in column}) if piece is None else piece
        for piece, column in zip(pattern, columns, strict=True)
    )


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    if low == high:
        return str(low)
    if len(numbers) == high - low + 1:
        return f"{{{low}..{high}}}"
    listed = sorted(numbers)
    return "{" + ",".join(map(str, listed if len(listed) <= 6 else [*listed[:3], "..", *listed[-2:]])) + "}"
