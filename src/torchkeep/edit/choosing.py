"""Which tensors, and under which names: select, drop, rename, split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.live import tied_names
from ..core.names import Selector, is_under
from ..core.table import shorten
from ..errors import EditError, SelectorError
from .flat import Flat, blocks_in, flatten, note


def select(source: Any, selection: Any) -> Checkpoint:
    """The chosen tensors of a model's weights, and nothing else.

    >>> backbone = tk.edit.select("flowers.pth", "* but fc")                   # doctest: +SKIP

    Args:
        source: a path, a Checkpoint, a run or a snapshot; of a training checkpoint the model is taken.
        selection: what `Selector` takes; blocks, for `first n` and `last n`, are the first parts of the names, seen
            through a prefix that all of them have.

    Raises:
        SelectorError: some part of the selector matches nothing.
    """
    flat = flatten(source)
    chosen = flat.chosen(selection)
    return _kept(flat, chosen).checkpoint(f"select {str(Selector.of(selection))!r}")


def drop(source: Any, selection: Any) -> Checkpoint:
    """A model's weights without the chosen tensors. Args and errors are those of `select`.

    Raises:
        EditError: nothing would be left.
    """
    flat = flatten(source)
    left = set(flat.names) - flat.chosen(selection)
    if not left:
        raise EditError(f"{str(Selector.of(selection))!r} is all of {flat.title}; nothing would be left")
    return _kept(flat, left).checkpoint(f"drop {str(Selector.of(selection))!r}")


def rename(source: Any, names: Mapping[Any, str]) -> Checkpoint:
    r"""A model's weights under other names.

    >>> tk.edit.rename("old.pth", {"encoder": "backbone", r"re:^layer(\d+)\.": r"blocks.\1."})    # doctest: +SKIP

    Each tensor is renamed once: by the longest name above it that is in `names`, else by the first regular expression
    that is found in its name.

    Args:
        source: a path, a Checkpoint, a run or a snapshot; of a training checkpoint the model is taken.
        names: old name of a tensor or module -> new one; an empty old name puts the new one in front of all names, an
            empty new one takes the old one off. `re:` begins a regular expression, compiled ones are taken too; what it
            finds is replaced, with `\1` and `\g<name>` for its groups.

    Raises:
        SelectorError: an old name or an expression matches nothing, or cannot be read.
        EditError: two tensors would have one name, or one would have none.
    """
    flat = flatten(source)
    moves = _renamed(flat, names)
    by_new: dict[str, str] = {}
    for old, new in moves.items():
        if not new:
            raise EditError(f"{old!r} of {flat.title} would have no name", names=(old,))
        other = by_new.setdefault(new, old)
        if other != old:
            raise EditError(
                f"{other!r} and {old!r} of {flat.title} would both be called {new!r}",
                names=(other, old),
                hint="drop one of the two first, or give it a name of its own",
            )
    said = ", ".join(f"{_text(old)!r} to {new!r}" for old, new in names.items())
    return flat.moved(moves).checkpoint(f"rename {said}")


def split(source: Any, groups: Mapping[str, Any] | None = None, *, rest: str | None = None) -> dict[str, Checkpoint]:
    """A model's weights in parts, each a checkpoint; every tensor goes into exactly one.

    >>> parts = tk.edit.split("flowers.pth", {"backbone": "backbone.*", "head": "fc"})            # doctest: +SKIP
    >>> for name, part in parts.items(): tk.save(part, f"{name}.safetensors")                      # doctest: +SKIP

    Names stay as they are, so `merge` puts the parts together again. A tensor with names in several parts is in each
    of them, and no longer tied.

    Args:
        source: a path, a Checkpoint, a run or a snapshot; of a training checkpoint the model is taken.
        groups: name of a part -> selector; if None, one part for each top-level module and each tensor beside them.
        rest: name of the part for all that no selector chooses.

    Raises:
        SelectorError: some part of a selector matches nothing.
        EditError: two selectors choose one tensor, or none does and there is no `rest`.
    """
    flat = flatten(source)
    homes = _by_module(flat) if groups is None else _by_selectors(flat, groups, rest)
    parts: dict[str, set[str]] = {}
    for name in flat.names:
        parts.setdefault(homes[name], set()).add(name)
    torn = [name for name, first in tied_names(flat.tensors).items() if homes[name] != homes[first]]
    said = [note(f"{shorten(torn, 4)} is tied to a tensor of another part, and is in both")] if torn else []
    order = [*parts] if groups is None else [name for name in dict.fromkeys([*groups, rest]) if name in parts]
    return {str(name): _kept(flat, parts[str(name)]).checkpoint(f"part {name!r}", *said) for name in order}


def _kept(flat: Flat, names: Iterable[str]) -> Flat:
    return flat.moved({name: name for name in names})


def _by_module(flat: Flat) -> dict[str, str]:
    blocks = blocks_in(flat.tensors)
    return {name: next((block for block in blocks if is_under(name, block)), name) for name in flat.names}


def _by_selectors(flat: Flat, groups: Mapping[str, Any], rest: str | None) -> dict[str, str]:
    homes: dict[str, str] = {}
    for part, selection in groups.items():
        for name in sorted(flat.chosen(selection)):
            other = homes.setdefault(name, part)
            if other != part:
                raise EditError(
                    f"{name!r} of {flat.title} is chosen for {other!r} and for {part!r}",
                    names=(name,),
                    hint="take it out of one of them: 'A but B'",
                )
    left = [name for name in flat.names if name not in homes]
    if left and rest is None:
        raise EditError(
            f"{len(left)} tensors of {flat.title} are in no part: {shorten(left, 4)}",
            names=tuple(left),
            hint="rest='other' gives them one",
        )
    return homes | dict.fromkeys(left, rest or "")


def _renamed(flat: Flat, names: Mapping[Any, str]) -> dict[str, str]:
    """New name by old one, of all tensors."""
    plain = {old: new for old, new in names.items() if isinstance(old, str) and not old.startswith("re:")}
    expressions = {_compiled(old): (old, new) for old, new in names.items() if old not in plain}
    longest = sorted(plain, key=len, reverse=True)
    used: set[str | re.Pattern[str]] = set()
    moves = {}
    for name in flat.names:
        above = next((old for old in longest if is_under(name, old)), None)
        if above is not None:
            used.add(above)
            moves[name] = _joined(plain[above], name[len(above) :])
            continue
        found = next((one for one in expressions if one.search(name)), None)
        if found is not None:
            used.add(expressions[found][0])
            moves[name] = _substituted(found, expressions[found][1], name)
        else:
            moves[name] = name
    unused = [old for old in names if old not in used]
    for old in unused:
        raise SelectorError(f"{_text(old)!r} renames nothing in {flat.title}", hint=flat.advice(_text(old)))
    return moves


def _joined(new: str, rest: str) -> str:
    rest = rest.removeprefix(".")
    return f"{new}.{rest}" if new and rest else new or rest


def _compiled(old: str | re.Pattern[str]) -> re.Pattern[str]:
    if isinstance(old, re.Pattern):
        return old
    try:
        return re.compile(old[3:])
    except re.error as error:
        raise SelectorError(f"{old!r} is not a regular expression: {error}") from error


def _substituted(pattern: re.Pattern[str], new: str, name: str) -> str:
    try:
        return pattern.sub(new, name)
    except (re.error, IndexError) as error:
        raise SelectorError(f"{new!r} cannot be put in the place of {pattern.pattern!r}: {error}") from error


def _text(old: str | re.Pattern[str]) -> str:
    return f"re:{old.pattern}" if isinstance(old, re.Pattern) else old
