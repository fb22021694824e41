"""Data that is in memory or comes from a torch data set: arrays, pairs, and whatever can be iterated over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ..core.transfer import Examples
from ..errors import DataError
from ._arrays import Size, check_memory, examples_of, from_names, length, stacked
from ._images import is_picture, pictures

_MOST = 100_000  # examples of a source that does not say how many it has
_LABELS = ("labels", "label", "targets", "target", "y")
_PAIR = "each example is (input, label), or a dict with 'label' and what the model takes"


class Pairs:
    """(inputs, labels) as whole arrays, a dict of arrays, a torch data set or loader, or an iterable of pairs."""

    name = "pairs"
    wants = "a torch data set, (inputs, labels), a dict of arrays, or an iterable of (input, label)"

    def reads(self, source: Any) -> bool:
        """Whatever can be asked for examples, and is no name of something else."""
        if isinstance(source, (str, bytes, os.PathLike, torch.Tensor)) or getattr(source, "ndim", None) is not None:
            return False
        return isinstance(source, Examples) or _indexed(source) or hasattr(source, "__iter__")

    def read(self, source: Any, *, size: Size | None, limit: int | None, title: str = "") -> Examples:
        """The examples. Of a source that can be indexed a limit draws some, of others it takes the first ones."""
        title = title or type(source).__name__
        if isinstance(source, Examples):
            named: dict[str, Any] = {"title": source.title, "names": source.classes, "notes": source.notes}
            return examples_of(source.inputs, source.labels, size=size, limit=limit, **named)
        if isinstance(source, Mapping):
            return from_names(source, title=title, size=size, limit=limit)
        names = _names(source)
        if isinstance(source, TensorDataset):
            source = source.tensors
        if isinstance(source, tuple):
            if len(source) != 2:
                raise DataError(f"{title} has {len(source)} members, not inputs and labels", hint=self.wants)
            if isinstance(source[0], (torch.Tensor, Mapping)) or hasattr(source[0], "ndim"):
                return examples_of(*source, title=title, size=size, limit=limit, names=names)
            inputs, labels = (list(part) for part in source)
            notes: list[str] = []
            return examples_of(
                _joined(inputs, size, notes), labels, title=title, size=size, limit=limit, names=names, notes=notes
            )
        notes = []
        items = _items(source, limit, notes)
        if not items:
            raise DataError(f"{title} gives no examples", hint="look whether it is empty, or was iterated over before")
        apart = [_apart(item, place) for place, item in enumerate(items)]
        inputs = _joined([one[0] for one in apart], size, notes)
        labels = [one[1] for one in apart]
        return examples_of(inputs, labels, title=title, size=size, limit=None, names=names, notes=notes)


def _indexed(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _names(source: Any) -> list[str] | None:
    """The names of the classes, where the source or what it is a part of has them."""
    while getattr(source, "classes", None) is None and hasattr(source, "dataset"):
        source = source.dataset
    found = getattr(source, "classes", None)
    named = isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(one, str) for one in found)
    return list(found) if named and found else None


def _items(source: Any, limit: int | None, notes: list[str]) -> list[Any]:
    if not _indexed(source) or isinstance(source, (DataLoader, IterableDataset)):
        return _first(source, limit, notes)
    count = len(source)
    places = list(range(count))
    if limit is not None and limit < count:
        draw = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit]
        places = draw.sort().values.tolist()
        notes.append(f"{limit:,} of {count:,} examples were drawn")
    items: list[Any] = []
    for place in places:
        try:
            items.append(source[place])
        except DataError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise DataError(f"example {place} cannot be read: {said}", hint="look at what dataset[i] does") from error
        _check_room(items, len(places))
    return items


def _first(source: Any, limit: int | None, notes: list[str]) -> list[Any]:
    """The examples of what can only be iterated over, from its beginning on."""
    stream = _unbatched(source) if isinstance(source, DataLoader) else iter(source)
    taken: list[Any] = []
    for item in islice(_heard(stream), limit):
        taken.append(item)
        _check_room(taken, len(taken))
        if limit is None and len(taken) > _MOST:
            raise DataError(
                f"the source goes on after {_MOST:,} examples and does not say where it ends", hint="give limit="
            )
    if limit is not None and len(taken) == limit:
        notes.append(f"the first {limit:,} examples were taken")
    return taken


def _heard(stream: Iterator[Any]) -> Iterator[Any]:
    """A stream whose errors say where it broke off."""
    count = 0
    try:
        for item in stream:
            yield item
            count += 1
    except DataError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(
            f"the source fails after {count:,} examples: {said}", hint="iterate over it in Python"
        ) from error


def _unbatched(loader: DataLoader[Any]) -> Iterator[Any]:
    for batch in loader:
        if loader.batch_size is None and loader.batch_sampler is None:
            yield batch
            continue
        inputs, labels = _apart(batch, 0)
        for place in range(length(labels)):
            one = {key: value[place] for key, value in inputs.items()} if isinstance(inputs, Mapping) else inputs[place]
            yield one, labels[place]


def _check_room(items: list[Any], count: int) -> None:
    """Refuse before the memory is full: looked at whenever the number of examples has doubled."""
    if len(items) & (len(items) - 1) == 0:
        check_memory(2.0 * _nbytes(items[-1]) * count, f"{count:,} examples")


def _nbytes(value: Any) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    return sum(map(_nbytes, value)) if isinstance(value, (tuple, list)) else int(getattr(value, "nbytes", 0))


def _apart(item: Any, place: int) -> tuple[Any, Any]:
    """Input and label of one example, or of a batch of them."""
    if isinstance(item, Mapping):
        label = next((name for name in _LABELS if name in item), None)
        rest = {key: value for key, value in item.items() if key != label}
        if label is None or not rest:
            raise DataError(f"example {place} has {', '.join(map(repr, item)) or 'nothing'} and no label", hint=_PAIR)
        return rest, item[label]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        found = f"{len(item)} members" if isinstance(item, (tuple, list)) else f"a {type(item).__name__}"
        raise DataError(f"example {place} is {found}, not a pair", hint=_PAIR)
    return item[0], item[1]


def _joined(inputs: list[Any], size: Size | None, notes: list[str]) -> Any:
    """Single inputs as whole tensors or arrays."""
    if not inputs:
        raise DataError("there are no examples", hint="look whether the data set is empty, or a limit is 0")
    kinds = {"dict" if isinstance(one, Mapping) else "image" if is_picture(one) else "array" for one in inputs}
    if len(kinds) > 1:
        raise DataError(f"the inputs are of several kinds: {', '.join(sorted(kinds))}", hint=_PAIR)
    if kinds == {"image"}:
        return pictures(inputs, size, notes)
    if kinds != {"dict"}:
        return stacked(inputs)
    odd = next((place for place, one in enumerate(inputs) if one.keys() != inputs[0].keys()), None)
    if odd is not None:
        told = f"example 0 has {', '.join(map(str, inputs[0]))}, example {odd} has {', '.join(map(str, inputs[odd]))}"
        raise DataError(f"the inputs have several sets of names: {told}", hint=_PAIR)
    return {str(key): stacked([one[key] for one in inputs], f"the inputs {key!r}") for key in inputs[0]}
