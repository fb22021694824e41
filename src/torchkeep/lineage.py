"""What is known of a model beside its tensors: what a caller says of it, and what the files say that it was made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from .core.about import About, AboutReport, Parent, checked, with_parents
from .core.checkpoint import EDITED, Checkpoint
from .core.limits import Limits
from .core.lineage import header_digest, parent_of
from .errors import UnsavableError
from .formats.hf_index import read_index
from .opening import as_source
from .pointing import checkpoint_of

Given = About | Mapping[str, Any] | None
"""What callers say of a model: facts by their names. Parents may be paths there, checkpoints, runs and snapshots."""


def about(source: Any) -> AboutReport:
    """What a file says of its model: licence, source, classes, preprocessing, and what it was made of.

    >>> print(tk.about("flowers.safetensors"))                                          # doctest: +SKIP

    Args:
        source: a path, a Checkpoint, a run or a snapshot. A file that torchkeep did not write is read whole, for its
            digest; `tk.open(path).about` does without.

    Raises:
        OpenError: there is nothing that can be opened.
    """
    ckpt = checkpoint_of(source)
    return AboutReport(os.fspath(ckpt.file), header_digest(ckpt) or _digest_of(source), ckpt.about)


def as_about(given: Given, before: About | None = None, loaded: Iterable[str] = ()) -> About:
    """What a caller says of a model, as facts.

    Args:
        given: facts; a dict changes those it names, an About replaces all, and parents only come to those before.
        before: what is known already.
        loaded: files that tensors of the model were loaded from; a parent that is one of them gets its name.

    Raises:
        UnsavableError: there is no such fact, or its value is of another kind.
        OpenError: a parent cannot be opened.
    """
    before = before or About()
    if given is None:
        return before
    if not isinstance(given, (About, Mapping)):
        raise UnsavableError(
            f"about= is a {type(given).__name__}", path="about", hint="give a dict of facts, or a tk.About"
        )
    facts = dict(given) if isinstance(given, Mapping) else msgspec.structs.asdict(given)
    parents = facts.pop("parents", ())
    several = isinstance(parents, Iterable) and not isinstance(parents, (str, bytes, Mapping))
    facts = facts if isinstance(given, About) else msgspec.structs.asdict(before) | facts
    named = [_renamed(_parent(one), loaded) for one in (parents if several else [parents])]
    made = checked(facts | {"parents": named})
    return with_parents(made, before.parents)


def _parent(given: Any) -> Parent:
    """A parent as the caller gives it."""
    if isinstance(given, Parent):
        return given
    ckpt = checkpoint_of(given)
    return parent_of(ckpt, "" if header_digest(ckpt) else _digest_of(given))


def _digest_of(source: Any) -> str:
    """BLAKE3 of all bytes of a local file, or of an index and its shards; empty where there is no such file."""
    given = source.file if isinstance(source, Checkpoint) else source
    edited = isinstance(source, Checkpoint) and source.format == EDITED
    if edited or not isinstance(given, (str, os.PathLike)) or not Path(given).is_file():
        return ""
    path = Path(given)
    if not path.name.endswith(".index.json"):
        return f"blake3:{_hashed(path)}"
    files = [path.name, *sorted({*read_index(as_source(path), Limits()).values()})]
    lines = (f"{_hashed(path.parent / file)}  {file}\n" for file in files)
    return f"files:{blake3(''.join(lines).encode()).hexdigest()}"


def _hashed(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _renamed(parent: Parent, loaded: Iterable[str]) -> Parent:
    """A parent under the name by which the tensors that came from it know it."""
    for name in loaded:
        try:
            if Path(name).samefile(parent.name):
                return msgspec.structs.replace(parent, name=name)
        except (OSError, ValueError):  # gone, or no name of a file at all
            continue
    return parent
