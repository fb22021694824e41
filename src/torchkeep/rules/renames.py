"""Renames that the user gives: a mapping of names, or regular expressions with groups."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..core.plan import Specs
from ..errors import AmbiguousMatchError, LoadError, SelectorError


class Rename:
    r"""Renames what the source has: `tk.rename({"encoder": "backbone"})` or `tk.rename(r"^enc(\d+)\.", r"blocks.\1.")`.

    A mapping says which name of the source is which of the model; a name that stands for a module renames all below
    it, and the longest that applies counts. Of regular expressions every one is applied, one after another, wherever
    it is found, to what the ones before it made. Only names that change are paired: put "exact" beside this rule for
    the others.

    Args:
        what: a mapping old -> new, the path of a JSON or YAML file that holds one, or a regular expression.
        replacement: what stands in place of what the expression finds; `\1` is its first group.
        more: further expressions and replacements by turns.

    Raises:
        LoadError: the file cannot be read or holds something else than names.
        SelectorError: an expression or its replacement cannot be read, or there is no replacement for one.
    """

    def __init__(
        self, what: Mapping[str, str] | str | os.PathLike[str], replacement: str | None = None, *more: str
    ) -> None:
        self._names: Mapping[str, str] = {}
        self._patterns: tuple[tuple[re.Pattern[str], str], ...] = ()
        if isinstance(what, str) and replacement is not None:
            self._patterns = _patterns((what, replacement, *more))
            self.name = f"rename {what!r}"
        elif replacement is not None:
            raise SelectorError(f"a {type(what).__name__} has no replacement", hint=r'tk.rename(r"^old\.", "new.")')
        else:
            self._names = _named(what) if isinstance(what, Mapping) else _read(Path(what))
            self.name = "rename" if isinstance(what, Mapping) else f"rename {Path(what).name}"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source.

        Raises:
            AmbiguousMatchError: two names of the source end at one name of the model.
        """
        origins: dict[str, list[str]] = {}
        for name in source:
            origins.setdefault(self.renamed(name), []).append(name)
        for to, names in origins.items():
            if len(names) > 1 and to in target:
                raise AmbiguousMatchError(
                    f"{self.name}: {' and '.join(map(repr, names))} of the source both end at {to!r}",
                    candidates=tuple(names),
                    hint="give one of them another name, or take it out of the source",
                )
        return {to: names[0] for to, names in origins.items() if to in target and names[0] != to}

    def renamed(self, name: str) -> str:
        """What a name of the source becomes."""
        for pattern, replacement in self._patterns:
            try:
                name = pattern.sub(replacement, name)
            except (re.error, IndexError) as error:
                raise SelectorError(f"{replacement!r} cannot replace {pattern.pattern!r}: {error}") from error
        head, tail = name, ""
        while self._names and head:
            if head in self._names:
                return self._names[head] + tail
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        return name


def _patterns(parts: tuple[str, ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    if len(parts) % 2:
        raise SelectorError(f"the last expression, {parts[-1]!r}, has no replacement", hint="write them in pairs")
    found = []
    for pattern, replacement in zip(parts[::2], parts[1::2], strict=True):
        try:
            found.append((re.compile(pattern), replacement))
        except re.error as error:
            raise SelectorError(f"{pattern!r} is not a regular expression: {error}") from error
    return tuple(found)


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_bytes()
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.yaml.decode
        return _named(decode(text, type=dict[str, str]))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"the renames cannot be read from {path}: {error}",
            hint=r'a file maps old names to new ones; an expression needs a replacement: tk.rename(r"^old\.", "new.")',
        ) from error


def _named(names: Mapping[str, str]) -> dict[str, str]:
    odd = [part for pair in names.items() for part in pair if not isinstance(part, str) or not part]
    if odd:
        raise LoadError(
            f"renames map names to names, and {odd[0]!r} is none",
            hint='tk.rename({"encoder": "backbone"}); tk.strip("model.") takes a prefix off, tk.add(...) puts one on',
        )
    return dict(names)
