"""Arrays as they come, made what a model takes; what every kind of data set ends in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..core.drawing import in_shares
from ..core.table import human_bytes, shorten
from ..core.transfer import Examples
from ..errors import DataError
from ._labels import numbered, text_of

Size = tuple[int, int]

_CHANNELS = (1, 3, 4)
_INPUTS = ("x", "inputs", "images", "image", "data", "features", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target", "arr_1")
_CLASSES = ("classes", "class_names", "label_names", "target_names", "names")


def examples_of(
    inputs: Any,
    labels: Any,
    *,
    title: str,
    size: Size | None,
    limit: int | None,
    names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Examples:
    """Examples from whole arrays.

    Args:
        inputs: a tensor or an array with one row an example, or several by name.
        labels: as `numbered` takes them.
        title, size, limit: as elsewhere in this room.
        names: of the classes, where they are known.
        notes: on what has been done already.

    Raises:
        DataError: lengths differ, there are no examples, or they cannot be used.
    """
    parts = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    parts = {str(key): value if isinstance(value, torch.Tensor) else _array(value, key) for key, value in parts.items()}
    check_lengths({"the labels": len(labels), **{_called(key): length(value) for key, value in parts.items()}})
    numbers, classes, changed = numbered(labels, names)
    changed = [*notes, *changed]
    if limit is not None and limit < len(numbers):
        places = in_shares(numbers, 0, least=2)[:limit].sort().values
        changed.append(drawn(limit, len(numbers)))
        numbers, again, _ = numbered(numbers[places], classes)
        parts = {
            key: value[places if isinstance(value, torch.Tensor) else places.numpy()] for key, value in parts.items()
        }
        if len(again) < len(classes):
            changed.append(f"{len(classes) - len(again)} of {len(classes)} classes are not among them")
            classes = again
    alone = not isinstance(inputs, Mapping)
    ready = {key: _ready(value, _called(key), alone, size, changed) for key, value in parts.items()}
    numbers = numbers.to(next(iter(ready.values())).device)
    return Examples(ready[""] if alone else ready, numbers, classes, title, tuple(changed))


def from_names(
    arrays: Mapping[str, Any], *, title: str, size: Size | None, limit: int | None, notes: Sequence[str] = ()
) -> Examples:
    """Examples from arrays by name: x and y, images and labels, x_train and y_train; or several inputs and labels.

    Raises:
        DataError: no names say which are the labels and which the inputs.
    """
    known = {str(key).lower(): str(key) for key in arrays}
    labels, inputs = _first(known, _LABELS), _first(known, _INPUTS)
    classes = next((known[name] for name in _CLASSES if name in known), None)
    if labels is None:
        raise DataError(
            f"{title} has no labels: it has {shorten(map(repr, arrays)) or 'nothing'}",
            hint="call the labels y, labels or targets, and the inputs x, inputs or images",
        )
    target = arrays[labels]
    count = length(target)
    used = {labels, *([classes] if classes else [])}
    if inputs is not None:
        used.add(inputs)
        found: Any = arrays[inputs]
    else:
        by_name = {str(key): value for key, value in arrays.items() if str(key) not in used and length(value) == count}
        used.update(by_name)
        if not by_name:
            raise DataError(
                f"{title} has labels {labels!r} and no inputs of their length: it has {shorten(map(repr, arrays))}",
                hint="call the inputs x, inputs or images",
            )
        found = by_name if len(by_name) > 1 else next(iter(by_name.values()))
    if classes is not None and classes.lower() == "names" and length(arrays[classes]) == count:
        used.discard(classes)  # of the examples
        classes = None
    names = None if classes is None else [text_of(name) for name in np.asarray(arrays[classes]).reshape(-1).tolist()]
    left = [str(key) for key in arrays if str(key) not in used]
    told = [f"{shorten(left, 5)} {'are' if len(left) > 1 else 'is'} left out"] if left else []
    return examples_of(found, target, title=title, size=size, limit=limit, names=names, notes=[*notes, *told])


def _first(known: Mapping[str, str], names: Sequence[str]) -> str | None:
    spellings = (name for base in names for name in (base, f"{base}_train", f"train_{base}"))
    return next((known[name] for name in spellings if name in known), None)


def drawn(limit: int, count: int) -> str:
    """The note on a limit."""
    return f"{limit:,} of {count:,} examples were drawn, each class in its share and at least two of it"


def length(value: Any) -> int:
    """Rows of an array; -1 where it has none."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else -1
    return len(value) if hasattr(value, "__len__") else -1


def check_lengths(lengths: Mapping[str, int]) -> None:
    """Refuse inputs and labels of which there are not as many.

    Raises:
        DataError: with what has how many.
    """
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {count:,}" if count >= 0 else f"{name} no row" for name, count in lengths.items())
        raise DataError(f"inputs and labels differ in length: {told}", hint="give one label for each row of the inputs")


def check_memory(nbytes: float, what: str) -> None:
    """Refuse what would take more than three quarters of the memory of this machine.

    Raises:
        DataError: it would.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > 0.75 * there:
        raise DataError(
            f"{what} would take {human_bytes(nbytes)} in memory, and this machine has {human_bytes(there)}",
            hint="take fewer with limit=, or smaller images with size=",
        )


def stacked(items: Sequence[Any], called: str = "the inputs") -> Any:
    """Single inputs of one shape as one tensor or array.

    Raises:
        DataError: their shapes differ.
    """
    if isinstance(items[0], torch.Tensor):
        items = [torch.as_tensor(item).detach() for item in items]
    else:
        items = [_array(item, "") for item in items]
    shapes: dict[tuple[int, ...], int] = {}
    for item in items:
        shapes[tuple(item.shape)] = shapes.get(tuple(item.shape), 0) + 1
    if len(shapes) > 1:
        seen = shorten((f"{list(shape)} ({count})" for shape, count in shapes.items()), 5)
        hint = "bring images to one size with size=, pad sequences to one length, and store masks beside them"
        raise DataError(f"{called} are of several shapes: {seen}", hint=hint)
    return torch.stack(list(items)) if isinstance(items[0], torch.Tensor) else np.stack(items)


def _array(value: Any, key: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{_called(str(key))} are no array of numbers: {error}", hint="give tensors or arrays"
        ) from error
    if np.ma.is_masked(value):
        raise DataError(f"{_called(str(key))} are masked in places", hint="leave such examples out, or fill them")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # torch has no wider ones
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{_called(str(key))} are of type {array.dtype}, which no model takes",
            hint="make numbers of them first: token numbers of text, with its attention mask",
        )
    return array


def _called(key: str) -> str:
    return f"the inputs {key!r}" if key else "the inputs"


def _ready(value: Any, called: str, alone: bool, size: Size | None, notes: list[str]) -> torch.Tensor:
    """A tensor that a model takes: bytes as 0 to 1, images as [n, c, h, w], other whole numbers as int64."""
    image = value.ndim == 4 or (value.ndim == 3 and value.dtype in (np.uint8, torch.uint8))
    last = value.ndim == 4 and value.shape[1] not in _CHANNELS and value.shape[-1] in _CHANNELS
    foreign = not isinstance(value, torch.Tensor)
    if foreign:
        tensor = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
    else:
        tensor = value.detach()
        tensor = tensor.dequantize() if tensor.is_quantized else tensor
    if image and tensor.ndim == 3:
        tensor = tensor[:, None]
    if last and (foreign or tensor.dtype is torch.uint8):
        tensor = tensor.movedim(-1, 1).contiguous()
        notes.append(f"{called} had their channels last, which were moved before height and width")
    if tensor.dtype in {torch.uint8, torch.uint16} and (alone or image):
        top = torch.iinfo(tensor.dtype).max
        tensor = tensor.float() / top
        notes.append(f"{called} were divided by {top:,}, so that they are 0 to 1")
    elif tensor.dtype is torch.bool or (foreign and tensor.is_floating_point()):
        tensor = tensor.long() if tensor.dtype is torch.bool and not alone else tensor.float()
    elif not tensor.is_floating_point() and not tensor.is_complex():
        tensor = tensor.long()
    elif image and tensor.numel() and float(tensor.abs().max()) > 16:
        notes.append(f"{called} go up to {float(tensor.abs().max()):.4g}: images are mostly 0 to 1; they were left so")
    return tensor if size is None else _resized(tensor, called, size, notes)


def _resized(tensor: torch.Tensor, called: str, size: Size, notes: list[str]) -> torch.Tensor:
    if tensor.ndim != 4 or not tensor.is_floating_point():
        raise DataError(f"{called} are no images [n, c, h, w] that size= could be for, but {list(tensor.shape)}")
    height, width = tensor.shape[2:]
    if (height, width) == size:
        return tensor
    scale = max(size[0] / height, size[1] / width)
    kept = [min(edge, max(1, round(goal / scale))) for edge, goal in zip((height, width), size, strict=True)]
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    middle = tensor[:, :, top : top + kept[0], left : left + kept[1]]
    notes.append(
        f"{height} x {width} images were brought to {size[0]} x {size[1]}: scaled to cover it, the middle kept"
    )
    return functional.interpolate(middle, size=size, mode="bilinear", antialias=True)
