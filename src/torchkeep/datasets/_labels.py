"""Labels as they come, made numbers from 0 without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.table import shorten
from ..errors import DataError

_ONE_EACH = "give one class number or one class name an example"


def numbered(raw: Any, names: Sequence[str] | None = None) -> tuple[torch.Tensor, tuple[str, ...], list[str]]:
    """Labels as int64 from 0, the names of the classes that have examples, and what was changed.

    Args:
        raw: class numbers, class names, or rows with a single 1.
        names: of the classes, where they are known; a number is a place among them.

    Raises:
        DataError: there are none, or they are no classes.
    """
    values, notes = _one_each(_array(raw))
    if not len(values):
        raise DataError("there are no examples", hint="look whether the data set is empty, or a limit is 0")
    if values.dtype.kind == "U":
        found, places = np.unique(values, return_inverse=True)
        classes = [str(name) for name in found]
        if names is None:
            return torch.from_numpy(places.astype(np.int64)), tuple(classes), notes
        known = set(names)
        unknown = next((place for place, value in enumerate(values) if str(value) not in known), None)
        if unknown is not None:
            raise DataError(
                f"the label of example {unknown} is {str(values[unknown])!r}, none of the {len(names)} classes",
                hint=f"the classes are {shorten(map(repr, names), 5)}",
            )
        by_name = {name: number for number, name in reversed(list(enumerate(names)))}
        values = np.array([by_name[str(value)] for value in values])
    _check_range(values, names)
    if values.dtype.kind == "f":
        values = values.astype(np.int64)  # whole numbers, or they were refused
    found, places = np.unique(values, return_inverse=True)
    if names is not None and len(found) < len(names):
        empty = [name for number, name in enumerate(names) if number not in set(found.tolist())]
        notes.append(f"{len(empty)} of {len(names)} classes have no example and are left out: {shorten(empty, 5)}")
    elif names is None and found[-1] != len(found) - 1:
        shown = shorten(map(str, found.tolist()), 5)
        notes.append(f"the labels {shown} are numbered from 0 in this order, and are the names of the classes")
    classes = [str(number) if names is None else str(names[number]) for number in found.tolist()]
    return torch.from_numpy(places.astype(np.int64)), tuple(classes), notes


def _array(raw: Any) -> NDArray[Any]:
    if isinstance(raw, torch.Tensor):
        plain = raw.detach().cpu()
        return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
    if isinstance(raw, (list, tuple)):
        raw = [item.item() if hasattr(item, "item") and not getattr(item, "ndim", 0) else item for item in raw]
        if any(isinstance(item, str) for item in raw) and not all(isinstance(item, str) for item in raw):
            odd = next(place for place, item in enumerate(raw) if not isinstance(item, str))
            raise DataError(f"the label of example {odd} is {raw[odd]!r:.60}, and others are names", hint=_ONE_EACH)
        raw = [item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else item for item in raw]
    try:
        values = np.asarray(raw)
    except ValueError as error:
        raise DataError(f"the labels are no single column: {error}", hint=_ONE_EACH) from error
    if values.dtype.kind == "S" or (
        values.dtype.kind == "O" and all(isinstance(one, (str, bytes)) for one in values.flat)
    ):
        values = np.array([text_of(one) for one in values.flat], dtype=str).reshape(values.shape)
    if values.dtype.kind not in "biufU":
        found = type(values.flat[0]).__name__ if values.size else str(values.dtype)
        raise DataError(f"the labels are {found}, which says no class", hint=_ONE_EACH)
    return values


def text_of(name: Any) -> str:
    """A name as text; bytes are taken for UTF-8."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _one_each(values: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "biuf" and len(values):
        if bool(np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()):
            return values.argmax(axis=1), ["the labels are rows with a single 1, whose place is taken as the class"]
        raise DataError(
            f"the labels have {values.shape[1]} numbers an example: several labels, or a target that is no class",
            hint=_ONE_EACH,
        )
    if values.ndim != 1:
        raise DataError(f"the labels have shape {list(values.shape)}, not one an example", hint=_ONE_EACH)
    return values, []


def _check_range(values: NDArray[Any], names: Sequence[str] | None) -> None:
    def refuse(wrong: NDArray[Any], why: str, hint: str) -> None:
        if wrong.any():
            place = int(wrong.argmax())
            raise DataError(f"the label of example {place} is {values[place].item()!r}: {why}", hint=hint)

    if values.dtype.kind == "f":
        refuse(~np.isfinite(values) | (values != np.floor(values)), "labels are whole numbers", _ONE_EACH)
    refuse(values < 0, "labels run from 0", "leave out examples that have no class")
    if names is not None:
        hint = f"labels run from 0 to {len(names) - 1}; name all the classes, or correct the label"
        refuse(values >= len(names), f"it is out of range, for there are {len(names)} classes", hint)
