"""The average of several checkpoints, computed while it is written."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..core.about import combined, licences_differ
from ..core.checkpoint import Checkpoint, Finding
from ..core.composite import Chunked, Composite
from ..core.pieces import Mean
from ..core.snapshot import Snapshot
from ..core.table import shorten
from ..core.tensors import LazyTensor, StorageRef, contiguous_stride
from ..errors import EditError, LoadError
from ..running import Run, is_run
from .casting import is_packed
from .flat import Flat, flatten, note


def average(
    *sources: Any,
    weights: Sequence[float] | None = None,
    decay: float | None = None,
    last: int | None = None,
    steps: Collection[int] | None = None,
    sequences: Collection[int] | None = None,
) -> Checkpoint:
    """The average of the weights of several models, or of the snapshots of one run.

    >>> tk.save(tk.edit.average("a.pth", "b.pth", weights=[3, 1]), "ab.safetensors")         # doctest: +SKIP
    >>> tk.load_into(model, tk.edit.average("runs/flowers", decay=0.9, last=10))             # doctest: +SKIP

    Floating-point and complex numbers are averaged in float64 and rounded once to their own dtype, block by block while
    the result is read. Whole numbers, flags and whatever else is known are those of the last checkpoint. Where all
    are bit for bit the same, the average is that too.

    Args:
        sources: paths, Checkpoints, runs or snapshots, oldest first; or one run, for the snapshots that led to its
            newest.
        weights: one for each, above 0 together; they are divided by their sum.
        decay: from 0 to 1: each counts `decay` times as much as the one after it, divided by the sum.
        last: of a run, that many of the newest snapshots.
        steps: of a run, the snapshots of these steps.
        sequences: of a run, the snapshots with these numbers.

    Raises:
        EditError: names, shapes or dtypes do not agree; it names them. Or the arguments do not fit together.
        LoadError: the run has no such snapshots.
    """
    listed = list(sources[0]) if len(sources) == 1 and isinstance(sources[0], (list, tuple)) else list(sources)
    run = _run_of(listed[0]) if len(listed) == 1 else None
    if run is not None:
        listed = [run.open(one) for one in _snapshots(run, last, steps, sequences)]
    elif last is not None or steps is not None or sequences is not None:
        what = f"{listed[0]} is none" if len(listed) == 1 else f"{len(listed)} sources were given"
        raise EditError(
            f"last, steps and sequences choose snapshots of one run, and {what}", hint="give the folder of a run alone"
        )
    if not listed:
        raise EditError("there is nothing to average", hint="give checkpoints: tk.edit.average('a.pth', 'b.pth')")
    shares = _shares(len(listed), weights, decay)
    flats = [flatten(one) for one in listed]
    _check_names(flats)
    tensors, kept = _averaged(flats, shares)
    digests = {name: digest for name, digest in flats[-1].digests.items() if tensors[name] is flats[-1].tensors[name]}
    title = f"average of {len(flats)}: {shorten((flat.title for flat in flats), 3)}"
    about = combined([flat.about for flat in flats])
    made = replace(flats[-1], title=title, tensors=tensors, digests=digests, about=about)
    parts = ", ".join(f"{share:.4g}" for share in shares)
    said = (*_said(flats, kept), *map(note, licences_differ(about.parents)))
    return made.checkpoint(f"average of {', '.join(flat.title for flat in flats)} by {parts}", *said)


def _run_of(source: Any) -> Run | None:
    if isinstance(source, Run):
        return source
    return Run(source) if isinstance(source, (str, os.PathLike)) and is_run(source) else None


def _snapshots(
    run: Run, last: int | None, steps: Collection[int] | None, sequences: Collection[int] | None
) -> Iterable[Snapshot]:
    """The snapshots that led to the newest one, or those that were asked for, oldest first.

    Where one was pruned on the way, the next older one counts as its parent.
    """
    found = {one.sequence: one for one in run.snapshots}
    if sequences is not None:
        missing = [number for number in sequences if number not in found]
        if missing:
            raise LoadError(
                f"{run.path} has no snapshot {shorten(map(str, missing))}", hint="`torchkeep runs` lists them"
            )
        line = [found[number] for number in sorted(set(sequences))]
    else:
        line = []
        wanted = max(found, default=0)
        while wanted:
            line.insert(0, found[wanted])
            parent = found[wanted].parent
            wanted = max((number for number in found if number <= parent), default=0)
    if steps is not None:
        line = [one for one in line if one.step in steps]
    if last is not None:
        if last < 1:
            raise EditError(f"last={last} is no number of snapshots")
        line = line[-last:]
    if not line:
        raise LoadError(f"{run.path} has no such snapshots", hint="`torchkeep runs` lists them")
    return line


def _shares(count: int, weights: Sequence[float] | None, decay: float | None) -> list[float]:
    """What part of the whole each one is."""
    if weights is not None and decay is not None:
        raise EditError("weights and decay both say how much each one counts", hint="give one of them")
    if decay is not None:
        if not 0 <= decay <= 1:
            raise EditError(f"decay={decay} is not from 0 to 1")
        weights = [decay ** (count - 1 - at) for at in range(count)]
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise EditError(f"there are {len(weights)} weights for {count} checkpoints")
    total = math.fsum(weights)
    if not all(map(math.isfinite, weights)) or total <= 0:
        raise EditError(f"the weights {weights} are not above 0 together")
    return [weight / total for weight in weights]


def _check_names(flats: list[Flat]) -> None:
    """Refuse checkpoints that are not of one model."""
    whole = flats[-1].tensors
    for flat in flats[:-1]:
        odd = sorted(flat.tensors.keys() ^ whole.keys())
        if odd:
            here, there = (sum(name in one for name in odd) for one in (flat.tensors, whole))
            raise EditError(
                f"{flat.title} has {here} tensors that {flats[-1].title} has not, and lacks {there}: {shorten(odd, 4)}",
                names=tuple(odd),
                hint="tk.edit.select, drop and rename bring them together",
            )
        for name, tensor in flat.tensors.items():
            if tensor.spec != whole[name].spec:
                recast = tensor.spec.shape == whole[name].spec.shape
                raise EditError(
                    f"{name!r} is {tensor.spec} in {flat.title} and {whole[name].spec} in {flats[-1].title}",
                    names=(name,),
                    hint="tk.edit.cast brings them to one dtype" if recast else "tk.edit.drop leaves it out",
                )


def _averaged(flats: list[Flat], shares: list[float]) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors by name, and the names of those that are the last one's because they cannot be averaged."""
    made: dict[tuple[object, ...], LazyTensor] = {}
    tensors: dict[str, LazyTensor] = {}
    kept = []
    for name, tensor in flats[-1].tensors.items():
        inputs = [flat.tensors[name] for flat in flats]
        digests = {flat.digests.get(name) for flat in flats}
        if False in [_has_average(name, one) for one in inputs]:
            kept.append(name)
        elif len(inputs) > 1 and (len(digests) > 1 or None in digests):
            key = tuple(one.identity for one in inputs)
            if key not in made:
                made[key] = _mean(inputs, shares)
            flags = {"requires_grad": tensor.requires_grad, "kind": tensor.kind, "device": tensor.device}
            tensors[name] = made[key].replace(**flags)
            continue
        tensors[name] = tensor
    return tensors, kept


def _has_average(name: str, tensor: LazyTensor) -> bool:
    """Whether it is made of numbers that have an average; raises EditError for sparse, quantized and nested ones."""
    if isinstance(tensor, Composite) and not isinstance(tensor.composition, Chunked):
        raise EditError(
            f"{name!r} is {tensor.layout}, and such tensors are not averaged",
            names=(name,),
            hint=f"leave it out: tk.edit.drop(source, {name!r})",
        )
    numbers = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return numbers and not is_packed(tensor.dtype) and tensor.device != "meta"


def _mean(inputs: list[LazyTensor], shares: list[float]) -> LazyTensor:
    source = Mean(inputs, shares)
    spec = inputs[-1].spec
    return LazyTensor(source, StorageRef(spec.nbytes, 0), spec, contiguous_stride(spec.shape))


def _said(flats: list[Flat], kept: list[str]) -> tuple[Finding, ...]:
    last = flats[-1]
    said = []
    if kept and len(flats) > 1:
        said.append(
            f"{len(kept)} tensors that are no averageable numbers are those of {last.title}: {shorten(kept, 4)}"
        )
    if last.extra and len(flats) > 1:
        said.append(f"the extra state of modules is that of {last.title}: {shorten(last.extra, 4)}")
    return tuple(map(note, said))
