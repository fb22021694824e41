"""What is known of modules, carried over to new names as far as it stays true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..core.modulespec import ModuleSpec, TensorEntry

Moves = Mapping[str, str]
"""Old name -> new name, of what is kept."""


def moved_paths(paths: Iterable[str], names: Iterable[str], moves: Moves) -> dict[str, str]:
    """Where modules went: those of which everything is kept, in its place below one new path.

    >>> moved_paths(["", "a", "a.act", "b"], ["a.w", "b.w", "b.v"], {"a.w": "x.a.w", "b.w": "x.b.w"})
    {'a': 'x.a', 'a.act': 'x.a.act'}

    Args:
        paths: of modules, parents first; one without tensors goes where its parent goes.
        names: all tensors that the modules had.
        moves: those that are kept.
    """
    homes: dict[str, set[str | None]] = {}
    for name in names:
        new = moves.get(name)
        for at in [0, *(at + 1 for at, char in enumerate(name) if char == ".")]:
            homes.setdefault(name[: max(0, at - 1)], set()).add(_home(name[at:], new))
    found: dict[str, str] = {}
    for path in paths:
        if path in homes:
            (home, *others) = homes[path]
            if home is not None and not others:
                found[path] = home
            continue
        parent, _, key = path.rpartition(".")
        if path and parent in found:
            found[path] = f"{found[parent]}.{key}" if found[parent] else key
    return found


def _home(rest: str, new: str | None) -> str | None:
    """The path below which a tensor has the same name as it had below the old one, if there is one."""
    if new is None:
        return None
    if new == rest:
        return ""
    return new[: -len(rest) - 1] if new.endswith(f".{rest}") else None


def moved_spec(spec: ModuleSpec, moves: Moves) -> ModuleSpec:
    """The description of the modules that are still whole, and of the tensors that are kept."""
    stored = [entry.name for entry in spec.tensors if entry.persistent]
    if all(moves.get(name) == name for name in stored):
        return spec
    paths = moved_paths([module.path for module in spec.modules], stored, moves)
    modules = {paths[one.path]: replace(one, path=paths[one.path]) for one in spec.modules if one.path in paths}
    root = next((one.class_name for one in modules.values() if not one.path), "")
    return ModuleSpec(root, tuple(modules.values()), tuple(_moved_entries(spec, paths, moves)))


def _moved_entries(spec: ModuleSpec, paths: Moves, moves: Moves) -> Iterable[TensorEntry]:
    firsts: dict[str, str] = {}
    for entry in spec.tensors:
        path, _, key = entry.name.rpartition(".")
        new = moves.get(entry.name)
        if not entry.persistent and path in paths:
            new = f"{paths[path]}.{key}" if paths[path] else key
        if new is not None:
            first = firsts.setdefault(entry.tied_to or entry.name, new)
            yield replace(entry, name=new, tied_to=first if first != new else None)


def joined_specs(specs: Iterable[ModuleSpec]) -> ModuleSpec:
    """One description of several models; of a path or name that is in several, the first counts."""
    listed = list(specs)
    modules = {one.path: one for spec in reversed(listed) for one in reversed(spec.modules)}
    tensors = {one.name: one for spec in reversed(listed) for one in reversed(spec.tensors)}
    root = modules.get("")
    return ModuleSpec(
        root.class_name if root else "", tuple(reversed(modules.values())), tuple(reversed(tensors.values()))
    )
