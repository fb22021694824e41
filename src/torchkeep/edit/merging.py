"""Several checkpoints as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from ..core import tagged
from ..core.about import combined, licences_differ
from ..core.checkpoint import Checkpoint, Finding, Provenance
from ..core.table import shorten
from ..errors import EditError, UnsavableError
from ..likeness import same
from .carrying import joined_specs
from .flat import Flat, flatten, note

PREFER = ("first", "last")


def merge(*sources: Any, prefer: str | None = None) -> Checkpoint:
    """The weights of several models as one checkpoint.

    >>> whole = tk.edit.merge("backbone.safetensors", "head.safetensors")                  # doctest: +SKIP
    >>> both = tk.edit.merge({"encoder": "bert.pth", "decoder": "gpt.pth"})                 # doctest: +SKIP

    Where two have a tensor of one name it must be the same bit for bit; to find out, such tensors are read now, unless
    the digests in both files tell.

    Args:
        sources: paths, Checkpoints, runs or snapshots; a dict has prefixes for the names in each, empty for none.
        prefer: whose tensor counts where a name has several: `first` or `last`; if None, that is an error.

    Raises:
        EditError: two have different tensors of one name; it names them.
    """
    if prefer not in {None, *PREFER}:
        raise EditError(f"prefer={prefer!r} is neither 'first' nor 'last'")
    pairs = [pair for source in sources for pair in (source.items() if _is_table(source) else [("", source)])]
    if not pairs:
        raise EditError("there is nothing to merge", hint="give checkpoints: tk.edit.merge('a.pth', 'b.pth')")
    flats = [_prefixed(flatten(source), prefix) for prefix, source in pairs]
    if prefer == "last":
        flats.reverse()
    if prefer is None:
        _check_apart(flats)
    made = reduce(_joined, flats)
    titles = list(dict.fromkeys(flat.title for flat in flats))
    about = combined([flat.about for flat in flats])
    said = (*_metadata_lost(flats), *map(note, licences_differ(about.parents)))
    return replace(made, title=" + ".join(titles), about=about).checkpoint(f"merge {', '.join(titles)}", *said)


def _is_table(source: Any) -> bool:
    return isinstance(source, Mapping) and not isinstance(source, Checkpoint)


def _prefixed(flat: Flat, prefix: str) -> Flat:
    return flat.moved({name: f"{prefix}.{name}" for name in flat.names}) if prefix else flat


def _check_apart(flats: list[Flat]) -> None:
    """Refuse names that stand for different things."""
    clashes: dict[str, tuple[str, str]] = {}
    owners: dict[str, Flat] = {}
    for flat in flats:
        for name in flat.names:
            other = owners.setdefault(name, flat)
            if other is not flat and not _equal(other, flat, name):
                clashes[name] = (other.title, flat.title)
    if clashes:
        one, two = next(iter(clashes.values()))
        raise EditError(
            f"{len(clashes)} names stand for different tensors, in {one} and {two} for one: {shorten(clashes, 4)}",
            names=tuple(clashes),
            hint="prefer='first' or 'last' decides, {'prefix': source} keeps both, tk.edit.drop takes some out",
        )


def _equal(one: Flat, other: Flat, name: str) -> bool:
    if name in one.tensors and name in other.tensors:
        digests = one.digests.get(name), other.digests.get(name)
        if one.tensors[name].spec == other.tensors[name].spec and None not in digests:
            return digests[0] == digests[1]
        return same(one.tensors[name], other.tensors[name])
    try:
        return name in one.extra and name in other.extra and _said(one, name) == _said(other, name)
    except UnsavableError:  # it has tensors in it
        return False


def _said(flat: Flat, name: str) -> Any:
    return tagged.encode(flat.extra[name])


def _joined(one: Flat, other: Flat) -> Flat:
    """Both together; the first counts."""
    specs = [flat.module for flat in (one, other) if flat.module is not None]
    versions = [flat.versions for flat in (one, other) if flat.versions is not None]
    modules = {module.path: module for flat in (other, one) for module in flat.modules}
    fresh = other.digests.keys() - one.tensors.keys()
    return Flat(
        one.title,
        {**one.tensors, **{name: tensor for name, tensor in other.tensors.items() if name not in one.tensors}},
        {**other.extra, **one.extra},
        module=joined_specs(specs) if specs else None,
        versions={key: held for table in reversed(versions) for key, held in table.items()} if versions else None,
        modules=tuple(modules.values()),
        digests={**one.digests, **{name: other.digests[name] for name in fresh}},
        origins={**other.origins, **one.origins},
        metadata={**other.metadata, **one.metadata},
        findings=tuple(dict.fromkeys((*one.findings, *other.findings))),
        provenance=one.provenance if one.provenance == other.provenance else Provenance(),
    )


def _metadata_lost(flats: list[Flat]) -> tuple[Finding, ...]:
    """Text that the files have under one key and that differs: the first counts, and that is said."""
    held: dict[str, set[str]] = {}
    for flat in flats:
        for key, text in flat.metadata.items():
            held.setdefault(key, set()).add(text)
    differ = [key for key, texts in held.items() if len(texts) > 1]
    return (note(f"the files say different things as metadata {shorten(differ)}; {flats[0].title} counts"),) * bool(
        differ
    )
