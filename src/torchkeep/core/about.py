"""Facts of a model beside its tensors: licence, source, classes, preprocessing, and what it was made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import UnsavableError
from . import tagged
from .names import nearest
from .table import Table, shorten

_GENERATIONS = 64  # so many of a lineage are kept
_LINES = 20  # so many parents are shown
_SHORT = len("header:") + 12
_FOREIGN = {
    "licence": ("modelspec.license", "license", "licence"),
    "text": ("modelspec.description",),
}
_MERGED = "modelspec.merged_from"
_TEXTS = {"licence": "licence", "source": "source", "training_data": "training data", "text": "text"}


class Parent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that a model was made of.

    Attributes:
        name: the file or run, as the caller named it.
        digest: `header:` and the BLAKE3 of the header that torchkeep wrote into the file, which covers the digests of
            all its tensors; `blake3:` and that of all bytes of a file that others wrote; or `files:` and that of the
            list of an index and its shards, each with its own; empty if nobody hashed it.
        licence, source: what its facts say.
        parents: what it was made of itself; left out where that stands elsewhere in the same lineage.
    """

    name: str
    digest: str = ""
    licence: str = ""
    source: str = ""
    parents: tuple[Parent, ...] = ()

    def __str__(self) -> str:
        said = ", ".join(part for part in (self.licence, self.digest, self.source) if part)
        return f"{self.name} ({said})" if said else self.name


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """The facts of a model that travel in its file. All of it is optional, and none of it is checked for being true.

    >>> print(About(licence="Apache-2.0", classes=("cat", "dog"), parents=(Parent("resnet50.pth"),)))
    about the model
      licence    Apache-2.0
      classes    2 (cat, dog)
      made from  resnet50.pth

    Attributes:
        licence: by its SPDX name or as text.
        source: where the model comes from, an address or text.
        training_data: what it was trained on.
        classes: names in the order of the outputs, or number of the output -> name.
        preprocessing: what is done to an input, by names of the caller's own: `{"mean": [0.5], "size": 224}`. Values
            are plain: numbers, text, lists, tuples, dicts.
        text: anything else.
        parents: what it was made of.
    """

    licence: str = ""
    source: str = ""
    training_data: str = ""
    classes: tuple[str, ...] | dict[int, str] = ()
    preprocessing: dict[str, Any] = {}
    text: str = ""
    parents: tuple[Parent, ...] = ()

    def table(self, title: str = "about the model") -> Table:
        """All of it for people, long lists shortened."""
        return Table(title, facts=self.lines())

    def lines(self, *, short: bool = False) -> tuple[tuple[str, str], ...]:
        """What is said, as rows of a table; empty texts where nothing is. If `short`, of digests the beginning."""
        texts = {label: getattr(self, name) for name, label in _TEXTS.items()}
        text = texts.pop("text")
        named = self.classes.values() if isinstance(self.classes, Mapping) else self.classes
        inputs = ", ".join(f"{key} {value}" for key, value in self.preprocessing.items())
        return (
            *texts.items(),
            ("classes", f"{len(named)} ({shorten(named, 5)})" if named else ""),
            ("preprocessing", inputs),
            ("text", text),
            *_tree(self.parents, short),
        )

    def __str__(self) -> str:
        return str(self.table())


NOTHING = About()
"""What a file says that says nothing; by this object one knows that there is nothing to write."""


@dataclass(frozen=True)
class AboutReport:
    """What a file says of its model, and the digest by which other files name it as their parent.

    Attributes:
        file: as the caller named it.
        digest: as of a Parent; empty for runs, folders and remote files.
        about: the facts.
    """

    file: str
    digest: str
    about: About

    def table(self) -> Table:
        """The facts, and the digest in front."""
        rest = self.about.table().facts
        return Table(self.file, facts=(("digest", self.digest), *rest))

    def __str__(self) -> str:
        return str(self.table())


def _tree(parents: Iterable[Parent], short: bool) -> list[tuple[str, str]]:
    lines = []
    for depth, parent in _walk(parents):
        cut = msgspec.structs.replace(parent, digest=parent.digest[:_SHORT]) if short else parent
        lines.append(f"{'   ' * (depth - 1)}{'<- ' if depth else ''}{cut}")
    more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
    return [("" if at else "made from", line) for at, line in enumerate([*lines[:_LINES], *more])]


def _walk(parents: Iterable[Parent], depth: int = 0) -> Iterator[tuple[int, Parent]]:
    for parent in parents:
        yield depth, parent
        yield from _walk(parent.parents, depth + 1)


# -- what a caller gives --------------------------------------------------------------------------------------


def checked(given: Mapping[str, Any]) -> About:
    """Facts that a caller gives by their names, as About.

    Raises:
        UnsavableError: there is no such fact, or its value is of another kind; `.path` says which.
    """
    known = About.__struct_fields__
    for name in given:
        if name not in known:
            close = nearest(str(name), known, 1)
            hint = f"the nearest is {close[0]!r}" if close else f"there are {', '.join(known)}"
            raise UnsavableError(f"about= has no fact {name!r}", path=f"about.{name}", hint=hint)
    rest = {name: value for name, value in given.items() if name != "preprocessing"}
    preprocessing = given.get("preprocessing", {})
    try:
        if not isinstance(preprocessing, Mapping) or not all(isinstance(name, str) for name in preprocessing):
            raise msgspec.ValidationError("Expected a dict by names - at `$.preprocessing`")
        about = msgspec.structs.replace(msgspec.convert(rest, About, strict=False), preprocessing=dict(preprocessing))
        msgspec.json.encode(msgspec.structs.replace(about, preprocessing={}))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        what, _, place = str(error).partition(" - at ")
        found = re.search(r"\$\.([^`]+)", place)
        path = f"about.{found[1]}" if found else "about"
        raise UnsavableError(f"{path}: {what}", path=path, hint="docs/about.md has an example of each") from error
    written(about)
    return about


def written(about: About) -> About:
    """Facts as they stand in a file: what JSON cannot say is tagged, and every lineage stands once.

    Raises:
        UnsavableError: a value of the preprocessing is not plain; `.path` says which.
    """
    try:
        values = tagged.encode(dict(about.preprocessing))
    except UnsavableError as error:
        error.path = f"about.preprocessing.{error.path}"
        raise
    made = msgspec.structs.replace(about, preprocessing=values, parents=_once(about.parents))
    return NOTHING if made == NOTHING else made


def read(about: About) -> About:
    """Facts that were written; what cannot be read raises CorruptCheckpointError or ValueError."""
    values = tagged.decode(about.preprocessing)
    if not isinstance(values, dict):
        raise ValueError(f"the preprocessing is a {type(values).__name__}")
    return msgspec.structs.replace(about, preprocessing=values, parents=_once(about.parents))


# -- lineage --------------------------------------------------------------------------------------------------


def with_parents(about: About, more: Iterable[Parent]) -> About:
    """The facts with more parents behind; those that the lineage has already, however far back, are left out."""
    known = _Known()
    for _, parent in _walk(about.parents):
        known.adds(parent)
    added = tuple(parent for parent in more if known.adds(parent))
    return msgspec.structs.replace(about, parents=(*about.parents, *added)) if added else about


class _Known:
    """Files that were seen. Two are one by their digests, and where one has none, by their names."""

    def __init__(self) -> None:
        self._digests: set[str] = set()
        self._names: set[str] = set()
        self._unhashed: set[str] = set()

    def adds(self, parent: Parent) -> bool:
        """Whether it is a new one."""
        same = parent.digest in self._digests or parent.name in (self._unhashed if parent.digest else self._names)
        self._names.add(parent.name)
        if parent.digest:
            self._digests.add(parent.digest)
        else:
            self._unhashed.add(parent.name)
        return not same


def _once(parents: Sequence[Parent]) -> tuple[Parent, ...]:
    """A lineage in which no file has its own parents twice, or it would double with every merge of relatives."""
    everywhere = _Known()

    def keep(ones: Sequence[Parent], depth: int) -> tuple[Parent, ...]:
        here = _Known()
        listed = [(one, everywhere.adds(one)) for one in ones if here.adds(one)]
        return tuple(
            msgspec.structs.replace(one, parents=keep(one.parents, depth + 1) if new and depth < _GENERATIONS else ())
            for one, new in listed
        )

    return keep(parents, 1)


def combined(abouts: Sequence[About]) -> About:
    """What is true of a model that is made of several: what all say, of classes and preprocessing what any says alone.

    Where it comes from is said of the parents, which are those of all.
    """
    texts = {name: _common([getattr(about, name) for about in abouts]) for name in ("licence", "training_data", "text")}
    classes = _common([about.classes for about in abouts if about.classes])
    preprocessing = _common([about.preprocessing for about in abouts if about.preprocessing])
    parents = tuple(parent for about in abouts for parent in about.parents)
    return About(**texts, classes=classes or (), preprocessing=preprocessing or {}, parents=_once(parents))


def _common(values: Sequence[Any]) -> Any:
    """The value that all are, else an empty text."""
    return values[0] if values and all(value == values[0] for value in values) else ""


def licences_differ(parents: Iterable[Parent]) -> tuple[str, ...]:
    """A note where parents have different licences, or some have none."""
    held = {parent.name: parent.licence for parent in parents}
    if len(set(held.values())) < 2:
        return ()
    listed = shorten((f"{name} {licence or 'without one'}" for name, licence in held.items()), 4)
    return (f"the licences of what it is made of differ: {listed}",)


def from_metadata(metadata: Mapping[str, str]) -> About:
    """What the text metadata of a file of another program says, under the few keys that have one meaning."""
    found = {name: next((metadata[key] for key in keys if metadata.get(key)), "") for name, keys in _FOREIGN.items()}
    names = [name.strip() for name in metadata.get(_MERGED, "").split(",")]
    parents = tuple(Parent(name) for name in dict.fromkeys(names) if name)
    return About(licence=found["licence"], text=found["text"], parents=parents)
