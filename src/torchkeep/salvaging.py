"""Salvaging: every intact tensor out of a broken file, and a list of what is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .contents import Contents, of_opened
from .core import tree as trees
from .core.checkpoint import Checkpoint
from .core.limits import Limits
from .core.salvage_report import SalvageReport
from .core.tensors import LazyTensor
from .errors import CorruptCheckpointError, SaveError, TorchkeepError
from .formats._salvage import recover
from .opening import PathLike, as_source
from .writing import Progress, write_contents


def salvage(
    source: PathLike,
    target: PathLike | None = None,
    *,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> SalvageReport:
    """Get every intact tensor out of a truncated or damaged file.

    Zips are walked record by record when their directory is gone, legacy and safetensors files are read up to where
    they were cut; checksums and digests are compared where there are any. A tensor is kept whole or not at all.

    Args:
        source: a broken file; a sound one is reported as such.
        target: a new `.safetensors` file for what is intact, under its names and with the rest of the object; what is
            lost is None in the object. None: only report.
        limits: how much the file may cost.
        progress: called with (bytes done, bytes in all) while it is written.

    Raises:
        OpenError: nothing in the file can be recognised.
        CorruptCheckpointError: no tensor of it is intact.
        SaveError: the target exists, has another ending, or cannot be written.
    """
    path = None if target is None else Path(target)
    if path is not None and path.suffix != ".safetensors":
        raise SaveError(f"{path} has another ending than .safetensors", hint=f"write to {path.stem}.safetensors")
    if path is not None and path.exists():
        raise SaveError(f"{path} exists already", hint="salvage to a new name")
    found = recover(as_source(source), limits or Limits())
    lost = {name: why for name, tensor in found.ckpt.items() if (why := _problem(tensor))}
    kept = [name for name in found.ckpt if name not in lost]
    if not kept:
        reason = next(iter(lost.values()), "it holds none")
        raise CorruptCheckpointError(f"has no tensor that is intact ({reason})", file=os.fspath(source))
    unsure = {name for name in kept if _storages(found.ckpt[name]) & found.unverified}
    notes = list(found.notes)
    if path is not None:
        contents, more = _contents(found.ckpt, set(kept))
        notes += more
        write_contents(contents, path, progress=progress)
    return SalvageReport(
        source=os.fspath(source),
        target="" if path is None else str(path),
        intact=tuple(name for name in kept if name not in unsure),
        unverified=tuple(name for name in kept if name in unsure),
        lost=lost,
        nbytes=sum(found.ckpt[name].nbytes for name in kept),
        lost_nbytes=sum(found.ckpt[name].nbytes for name in lost),
        notes=tuple(notes),
    )


def _problem(tensor: LazyTensor) -> str:
    """Why a tensor cannot be had, or an empty string."""
    for part in tensor.parts.values() or (tensor,):
        if part.storage is not None and part.storage.offset is None:
            return part.storage.problem or "lost: its bytes are not in the file"
    try:
        tensor.load()
    except TorchkeepError as error:
        return f"damaged: {error.message}"
    return ""


def _storages(tensor: LazyTensor) -> set[int]:
    return {id(part.storage) for part in (tensor.parts.values() or (tensor,))}


def _contents(ckpt: Checkpoint, kept: set[str]) -> tuple[Contents, tuple[str, ...]]:
    """What is intact, within the object that it was in where that can be written; what is lost is None there."""
    gone = {ident for name, tensor in ckpt.items() if name not in kept for ident in _storages(tensor)} - {id(None)}

    def convert(tensor: Any) -> Any:
        return None if _storages(tensor) & gone else tensor

    tree = ckpt.tree if ckpt.tree is trees.ABSENT else trees.rebuild(ckpt.tree, convert)
    return of_opened(tree, {name: tensor for name, tensor in ckpt.items() if name in kept}, ckpt.metadata)
