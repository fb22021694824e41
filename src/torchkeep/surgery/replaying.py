"""Doing the surgery of one model to another of the same class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..core.checkpoint import Checkpoint
from ..core.operations import Operation
from ..core.transfer_plan import APPLIED
from ..errors import SurgeryError
from ..opening import open_checkpoint
from .describing import Given, build
from .dropout import set_at
from .editing import cut, insert, removed
from .layers import Change, child_site, site_of
from .recording import history, read, record
from .replacing import replace
from .resizing import adapt_input, resize_head
from .trial import target_of, undone_on_failure


def replay(model: nn.Module, source: Any, *, modules: Given | None = None) -> tuple[Change, ...]:
    """Do to a fresh model what was done to another of its class: the structure; the values come with `tk.load_into`.

    >>> tk.surgery.replay(model, "flowers.safetensors")              # doctest: +SKIP
    >>> tk.load_into(model, "flowers.safetensors")                   # doctest: +SKIP

    Modules of torch.nn that were given are made again from the record; nothing is imported for others.

    Args:
        model: made by its original class, unchanged.
        source: a saved model, as a path or opened; a model; or what `history` gives.
        modules: what was given and is not of torch.nn: by class, e.g. `train.Head`, or by its name in the model, the
            module or a function that makes one.

    Returns:
        What each operation did, in order.

    Raises:
        SurgeryError: an operation does not apply, which is named; or the model was changed already. It is untouched.
        OpenError: the file cannot be read.
    """
    model = target_of(model)
    operations = _operations(source)
    if known := history(model):
        raise SurgeryError(
            f"the model was changed already: {known[0]}", hint="replay onto a fresh instance of its original class"
        )
    changes = []
    with undone_on_failure(model):
        for number, operation in enumerate(operations, start=1):
            try:
                changes.append(_replayed(model, operation, dict(modules or {})))
            except (SurgeryError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
                said = error.message if isinstance(error, SurgeryError) else f"{type(error).__name__}: {error}"
                raise SurgeryError(
                    f"operation {number} of {len(operations)}, {operation}, does not apply: {said}",
                    hint=getattr(error, "hint", "") or "make the model by its original class",
                ) from error
    return tuple(changes)


def _operations(source: Any) -> list[Operation]:
    if isinstance(source, (str, os.PathLike)):
        source = open_checkpoint(source)
    if isinstance(source, Checkpoint):
        return list(source.surgery)
    return list(history(source)) if isinstance(source, nn.Module) else read(source)


def _replayed(model: nn.Module, operation: Operation, given: Given) -> Change:
    verb = _VERBS.get(operation.verb)
    if verb is None:
        raise SurgeryError(f"there is no verb {operation.verb!r}", hint=f"there are {', '.join(_VERBS)}")
    before = len(history(model))
    change = verb(model, operation, given)
    if len(history(model)) == before:  # it was so already, and stays in the record
        record(model, operation)
    return change


def _resize_head(model: nn.Module, operation: Operation, given: Given) -> Change:
    return resize_head(model, operation.arguments["classes"], name=operation.name)


def _adapt_input(model: nn.Module, operation: Operation, given: Given) -> Change:
    return adapt_input(model, operation.arguments["channels"], name=operation.name)


def _replace(model: nn.Module, operation: Operation, given: Given) -> Change:
    said = operation.arguments
    new = said["changes"] if "changes" in said else _given(model, operation, given)
    return replace(model, operation.name, new)


def _remove(model: nn.Module, operation: Operation, given: Given) -> Change:
    return removed(child_site(model, operation.name), renumber=bool(operation.arguments.get("renumber")))


def _insert(model: nn.Module, operation: Operation, given: Given) -> Change:
    places = {key: operation.arguments.get(key) for key in ("after", "before", "name")}
    return insert(model, _given(model, operation, given), **places)


def _truncate(model: nn.Module, operation: Operation, given: Given) -> Change:
    said = operation.arguments
    return cut(site_of(model, operation.name), list(said.get("identity", ())), list(said.get("out", ())))


def _reinitialise(model: nn.Module, operation: Operation, given: Given) -> Change:
    record(model, operation)
    return Change("reinitialise", operation.name, "values", "values", "they are not replayed: load them")


def _plan(model: nn.Module, operation: Operation, given: Given) -> Change:
    record(model, operation)
    return Change("plan", operation.name, "plan", "plan", "it stays with the model; its steps stand before it")


def _set_dropout(model: nn.Module, operation: Operation, given: Given) -> Change:
    return set_at(model, operation.arguments["p"], list(operation.arguments["modules"]))


_VERBS: dict[str, Callable[[nn.Module, Operation, Given], Change]] = {
    "resize_head": _resize_head,
    "adapt_input": _adapt_input,
    "replace": _replace,
    "remove": _remove,
    "insert": _insert,
    "truncate": _truncate,
    "reinitialise": _reinitialise,
    APPLIED: _plan,
    "set_dropout": _set_dropout,
}


def _given(model: nn.Module, operation: Operation, given: Given) -> nn.Module:
    said: Mapping[str, Any] = operation.arguments["module"]
    if "shared" in said:
        return site_of(model, said["shared"]).layer
    return build(said, given, operation.name)
