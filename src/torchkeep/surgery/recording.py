"""The record of what was done to a model, kept with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from torch import nn

from ..core.live import unwrapped
from ..core.operations import Operation
from ..errors import SurgeryError

_RECORD = "_torchkeep_surgery"


def history(model: nn.Module) -> tuple[Operation, ...]:
    """What surgery has done to a model, in order: `print(*tk.surgery.history(model), sep="\\n")`.

    It survives copies and pickling, and `tk.save` and `Run.save` keep it. What was done to a part of the model by
    itself is in it under the name that the part has.
    """
    return tuple(_gathered(unwrapped(model), set()))


def settle(model: nn.Module) -> None:
    """Let a model take over the records of its parts, under the names that these have now."""
    known = history(model)
    forget(model.modules())
    if known:
        _attach(model, known)


def record(model: nn.Module, operation: Operation) -> None:
    """Remember an operation with a model that is settled."""
    _attach(model, [*read(model.__dict__.get(_RECORD, ())), operation])


def adopt(model: nn.Module, operations: Sequence[Operation]) -> None:
    """Give a model that has the structure and the values of another its record, where its own is how that begins."""
    model = unwrapped(model)
    known = history(model)
    if len(known) < len(operations) and known == tuple(operations[: len(known)]):
        forget(model.modules())
        _attach(model, operations)


def forget(modules: Iterable[nn.Module]) -> None:
    """Drop the records of modules whose structure is described as a whole."""
    for module in modules:
        module.__dict__.pop(_RECORD, None)


def _gathered(model: nn.Module, seen: set[int]) -> Iterator[Operation]:
    """Its own record, then those of its parts: each verb settles the model first, so these are later."""
    if id(model) in seen:
        return
    seen.add(id(model))
    yield from read(model.__dict__.get(_RECORD, ()))
    for key, child in model._modules.items():
        if child is not None:
            yield from (operation.below(key) for operation in _gathered(unwrapped(child), seen))


def read(operations: Any) -> list[Operation]:
    """Operations out of plain values.

    Raises:
        SurgeryError: they are none.
    """
    try:
        return msgspec.convert(list(operations), list[Operation], from_attributes=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise SurgeryError(
            f"this is no list of operations: {error}", hint="pass what tk.surgery.history gives"
        ) from error


def _attach(model: nn.Module, operations: Iterable[Operation]) -> None:
    """Plain values, so that a pickle of the model needs no torchkeep to be read."""
    model.__dict__[_RECORD] = msgspec.to_builtins(list(operations))
