"""Comparing weights: checkpoints, models and snapshots, tensor by tensor, without loading them whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .core.checkpoint import Checkpoint
from .core.diff_report import CLOSE, EQUAL, Change, DiffReport
from .core.live import AnyTensor, check_savable, identity, spec_of, state_of, tied_names, unwrapped
from .core.table import shorten
from .edit.flat import digests_of, extra_state_of
from .errors import LoadError
from .likeness import distance, has_values, same
from .pointing import checkpoint_of
from .rules.prefixes import suggest
from .writing import Progress


@dataclass(frozen=True)
class _Side:
    """One of the two: tensors by name, and the digests that it carries."""

    title: str
    tensors: Mapping[str, AnyTensor]
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def diff(
    before: Any,
    after: Any,
    *,
    tolerance: float = 0.0,
    whole: bool = False,
    trust_digests: bool = True,
    progress: Progress | None = None,
) -> DiffReport:
    """What differs between two sets of weights, and how far values moved.

    >>> report = tk.diff("before.pth", "after.safetensors"); report.equal, report.moved       # doctest: +SKIP
    >>> print(tk.diff("runs/flowers@1", model))                                                 # doctest: +SKIP

    Equal means bit for bit: a NaN equals itself, and 0 is not -0. Where both files carry digests, tensors with the same
    one are not read; `torchkeep verify` says whether digests are true. Everything else is read a few megabytes at a
    time. Distances are computed in float64 over the elements that are finite on both sides.

    Args:
        before, after: a path, a Checkpoint, a run, a snapshot (`runs/flowers@7`), a model, or a dict of tensors. Of a
            training checkpoint the model is taken.
        tolerance: relative norm up to which a tensor that moved counts as equal; it must be finite everywhere then.
        whole: compare all tensors of checkpoints, those of optimizers too, by their names in the file.
        trust_digests: if not, everything is read.
        progress: called with (elements done, elements in all).

    Raises:
        OpenError: a file cannot be opened or read.
        LoadError: there are no weights in what was given.
        UnsavableError: a model has a tensor whose values cannot be taken alone, e.g. a quantized one.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it is a relative norm, 0 or above")
    one, other = _side(before, whole), _side(after, whole)
    names = list(dict.fromkeys((*one.tensors, *other.tensors)))
    total = sum(tensor.numel() for name, tensor in one.tensors.items() if name in other.tensors)
    seen: dict[tuple[object, ...], Change] = {}
    changes = []
    done = 0
    for name in names:
        changes.append(_change(name, one, other, tolerance, trust_digests, seen))
        if progress is not None and name in one.tensors and name in other.tensors:
            done += one.tensors[name].numel()
            progress(done, total)
    return DiffReport.of(one.title, other.title, changes, tolerance, _notes(one, other))


def _change(
    name: str,
    one: _Side,
    other: _Side,
    tolerance: float,
    trust_digests: bool,
    seen: dict[tuple[object, ...], Change],
) -> Change:
    a, b = one.tensors.get(name), other.tensors.get(name)
    if a is None or b is None:
        missing, there = ("added", b) if a is None else ("removed", a)
        assert there is not None
        text = str(spec_of(there))
        return Change(name, missing, after=text) if a is None else Change(name, missing, before=text)
    specs = spec_of(a), spec_of(b)
    before, after = map(str, specs)
    if specs[0].shape != specs[1].shape:
        return Change(name, "reshaped", before, after)
    digests = one.digests.get(name), other.digests.get(name)
    if trust_digests and specs[0] == specs[1] and digests[0] is not None and digests[0] == digests[1]:
        return Change(name, EQUAL, before, after, by_digest=True)
    if not (has_values(a) or has_values(b) or specs[0] != specs[1]):
        return Change(name, EQUAL, before, after, why="on the meta device, without values")
    if not (has_values(a) and has_values(b)):
        return Change(name, "unread", before, after, why="it is on the meta device and has no values")
    key = (identity(a), identity(b))
    if key not in seen:
        seen[key] = _read(name, a, b, tolerance)
    return _named(seen[key], name)


def _named(change: Change, name: str) -> Change:
    facts = {key: getattr(change, key) for key in Change.__slots__}
    return Change(**facts | {"name": name})


def _read(name: str, a: AnyTensor, b: AnyTensor, tolerance: float) -> Change:
    """Two tensors of one shape, compared by their values."""
    before, after = str(spec_of(a)), str(spec_of(b))
    recast = spec_of(a) != spec_of(b)
    if not recast and same(a, b):
        return Change(name, EQUAL, before, after)
    far = distance(a, b)
    what = "recast" if recast else "moved"
    if far is None:
        return Change(name, what, before, after, why="" if recast else "compared bit for bit only")
    near = far.relative is not None and far.relative <= tolerance and not far.lost
    if not recast and tolerance and near:
        what = CLOSE
    return Change(
        name,
        what,
        before,
        after,
        relative=far.relative,
        largest=far.largest,
        cosine=far.cosine,
        changed=far.changed,
        lost=far.lost,
        nonfinite=far.nonfinite,
    )


def _side(given: Any, whole: bool) -> _Side:
    if isinstance(given, nn.Module):
        state, extra = state_of(given)
        side = _Side(f"a {type(unwrapped(given)).__name__}", _checked(state), notes=_beside(extra))
    elif isinstance(given, Mapping) and not isinstance(given, Checkpoint):
        odd = [str(key) for key, value in given.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise LoadError(f"the dict holds values that are no tensors: {shorten(odd, 4)}", hint="pass a state dict")
        side = _Side("a state dict", _checked(given))
    else:
        side = _of_checkpoint(checkpoint_of(given), whole)
    if not side.tensors:
        raise LoadError(f"there are no weights in {side.title}", hint="print(tk.open(path)) shows what is in a file")
    return side


def _of_checkpoint(ckpt: Checkpoint, whole: bool) -> _Side:
    title = str(ckpt.file)
    if whole:
        return _Side(title, ckpt.tensors, digests_of(ckpt, whole=True))
    model = ckpt.model
    beside = len(ckpt) - len(model)
    notes: tuple[str, ...] = ()
    if ckpt.model_key and beside:
        notes = (f"of {title} the model under {ckpt.model_key!r} is compared; whole=True compares all",)
    return _Side(title, model.tensors, digests_of(ckpt), (*notes, *_beside(extra_state_of(model))))


def _checked(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    for name, tensor in tensors.items():
        check_savable(name, tensor)
    return tensors


def _beside(extra: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"the extra state of modules is not compared: {shorten(extra, 4)}",) if extra else ()


def _notes(one: _Side, other: _Side) -> Iterator[str]:
    yield from dict.fromkeys((*one.notes, *other.notes))
    ties = [tied_names(side.tensors) for side in (one, other)]
    common = [name for name in one.tensors if name in other.tensors]
    for here, there, side in ((ties[0], ties[1], one), (ties[1], ties[0], other)):
        alone = [name for name in common if name in here and name not in there and here[name] in common]
        if alone:
            yield f"{shorten(alone, 4)} are tied to other tensors in {side.title} alone"
    if not common:
        specs = [{name: spec_of(tensor) for name, tensor in side.tensors.items()} for side in (one, other)]
        verb, _, prefix = suggest(*specs).partition("(")
        names = repr({"": prefix[1:-3]} if verb == "add" else {prefix[1:-3]: ""})
        more = f"; tk.edit.rename(..., {names}) of {other.title} would bring some together" if verb else ""
        yield f"no name is in both{more}"
