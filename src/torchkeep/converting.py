"""Converting: any checkpoint into one safetensors file, a tensor at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .core.checkpoint import Checkpoint
from .core.live import AnyTensor
from .core.report import ConvertReport
from .core.tree import ABSENT
from .errors import LoadError, SaveError, UnsavableError
from .opening import PathLike, open_checkpoint
from .saving import Contents, Progress, contents_of, of_object, save_contents


def convert(
    source: PathLike, target: PathLike, *, model_only: bool = False, progress: Progress | None = None
) -> ConvertReport:
    """Write any checkpoint as safetensors, without running code from it and without loading it whole.

    Tensors keep their names, flags and ties. The rest of the object, inert records included, is kept as JSON in
    the file's metadata, so `tk.load` of the new file gives what `tk.load` of the old one gives.

    Args:
        source: a file in any format that `open` reads.
        target: ends in `.safetensors`; an existing file is replaced, but never `source` itself.
        model_only: keep the model's weights alone, under their own names.
        progress: called with (bytes done, bytes in all).

    Raises:
        OpenError: the source cannot be read.
        SaveError: the target cannot be written.
    """
    path = Path(target)
    if path.suffix != ".safetensors":
        raise SaveError(f"{path} has another ending than .safetensors", hint="only safetensors is written so far")
    ckpt = open_checkpoint(source)
    if path.exists() and path.samefile(source):
        raise SaveError(f"{path} is the file that is being converted", hint="write to another name")
    if model_only:
        if not ckpt.model_key and ckpt.kind not in {"weights", "module"}:
            raise LoadError(f"{ckpt.file} holds no model that torchkeep recognises", hint="convert it whole")
        ckpt = ckpt.model
    contents, notes = _contents(ckpt, model_only)
    return ConvertReport(os.fspath(source), str(path), save_contents(contents, path, progress=progress), notes)


def _contents(ckpt: Checkpoint, model_only: bool) -> tuple[Contents, tuple[str, ...]]:
    if ckpt.facts is not None and ckpt.facts.kind == "module":
        return _flat(ckpt, kind="module", tree=ckpt.facts.tree, module=ckpt.facts.module), ()
    if ckpt.tree is not ABSENT and not model_only:
        try:
            return of_object(ckpt.tree, metadata=ckpt.metadata), ()
        except UnsavableError as error:
            return _flat(ckpt), (f"the plain values are left out: {error.message}",)
    return _flat(ckpt), ()


def _flat(ckpt: Checkpoint, kind: str = "weights", **more: Any) -> Contents:
    """The tensors under their names, without the object that they were in."""
    tensors: dict[str, AnyTensor] = dict(ckpt.tensors)
    kinds = {name: tensor.kind for name, tensor in ckpt.tensors.items()}
    return contents_of(tensors, kinds, kind=kind, metadata=ckpt.metadata, **more)
