"""Which tensors go into which file, when one is not to hold them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .contents import Contents
from .core.about import NOTHING
from .core.facts import FileFacts
from .core.live import (
    spec_of,
)
from .core.origin import Origins
from .core.units import parse_bytes
from .errors import SaveError


def shard_size(size: int | str) -> int:
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise SaveError(str(error), hint="it bounds the size of one file") from error


def split(contents: Contents, most: int) -> list[Contents]:
    """The contents of each shard, of at most so many bytes where no tensor is larger; one if that holds all.

    Parts of one tensor stay together; the first shard keeps what is said of all.
    """
    facts = contents.facts
    home = _homes(facts)
    units: dict[str, list[str]] = {}
    for name in contents.tensors:
        units.setdefault(home.get(name, name), []).append(name)
    groups: list[list[str]] = [[]]
    room = most
    for members in units.values():
        size = sum(spec_of(contents.tensors[name]).nbytes for name in members)
        if size > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1] += members
        room -= size
    if len(groups) == 1:
        return [contents]
    return [_shard(contents, members, home, first=number == 0) for number, members in enumerate(groups)]


def _shard(contents: Contents, members: list[str], home: Mapping[str, str], *, first: bool) -> Contents:
    facts = contents.facts
    homes = {home.get(name, name) for name in members}
    inside = set(members) | {name for name in facts.composites if home[name] in homes}
    inside |= {name for name, origin in facts.tied.items() if origin in inside}
    inside |= set(facts.empty) if first else set()
    own = msgspec.structs.replace(
        facts,
        kind="weights",
        digests={name: facts.digests[name] for name in members},
        dtypes=_only(facts.dtypes, inside),
        empty=facts.empty if first else {},
        composites=_only(facts.composites, inside),
        parameters=[name for name in facts.parameters if name in inside],
        buffers=[name for name in facts.buffers if name in inside],
        requires_grad=[name for name in facts.requires_grad if name in inside],
        tied=_only(facts.tied, inside),
        devices=_only(facts.devices, inside),
        module=facts.module if first else None,
        tree=facts.tree if first else msgspec.UNSET,
        whole=facts.kind if first else "",
        surgery=facts.surgery if first else [],
        architecture=facts.architecture if first else None,
        origins=facts.origins if first else Origins(),
        about=facts.about if first else NOTHING,
    )
    tensors = {name: contents.tensors[name] for name in members}
    specs = {name: contents.specs[name] for name in members}
    return Contents(tensors, specs, own, (), contents.metadata)


def _homes(facts: FileFacts) -> dict[str, str]:
    """For each composite and its parts one name, the same for all that share a part: they go into one shard."""
    home: dict[str, str] = {}

    def find(name: str) -> str:
        path = []
        while home.setdefault(name, name) != name:
            path.append(name)
            name = home[name]
        home.update(dict.fromkeys(path, name))
        return name

    for name, parts in facts.composites.items():
        for part in parts.parts.values():
            home[find(part)] = find(name)
            home[find(facts.tied.get(part, part))] = find(name)
    return {name: find(name) for name in list(home)}


def _only(table: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name in names}
