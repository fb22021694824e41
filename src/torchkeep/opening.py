"""Opening: from a path to a Checkpoint, without running anything from the file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .core import tree as trees
from .core.checkpoint import Checkpoint
from .core.digests import digest_tensors
from .core.limits import Limits
from .core.registry import make_part
from .core.source import PROBE_BYTES, Probe, Source
from .core.tensors import LazyTensor, Storages
from .engines.mapped import MappedSource
from .errors import CorruptCheckpointError, UnsupportedFeatureError
from .formats import FORMATS, Format, foreign

PathLike = str | os.PathLike[str]


def open_checkpoint(
    path: PathLike | Source,
    *,
    limits: Limits | None = None,
    formats: Iterable[str | Format] | None = None,
    verify: bool = False,
) -> Checkpoint:
    """Open a checkpoint: its names, shapes and findings now, its values when they are asked for.

    >>> ckpt = tk.open("old/resnet50.pth"); print(ckpt)            # doctest: +SKIP
    >>> ckpt.model["fc.weight"].load()                              # doctest: +SKIP

    The format is recognised by content. Nothing in the file is imported or called: unknown classes become inert
    records, and dangerous names are listed in `findings`.

    Args:
        path: a file, or a Source.
        limits: how much the file may cost.
        formats: names or instances of the formats to try, in this order; all if None.
        verify: check the digests that torchkeep wrote into the file, which reads all of it.

    Raises:
        CheckpointNotFoundError, UnknownFormatError, UnsupportedFeatureError: nothing there that can be read.
        CorruptCheckpointError: it is damaged.
        UnsafeCheckpointError: it costs more than `limits`.
    """
    source = as_source(path)
    ckpt = format_of(source, formats).open(source, limits or Limits())
    if verify:
        check_digests(ckpt)
    return ckpt


def as_source(path: PathLike | Source) -> Source:
    """A local file as a Source; a Source as it is.

    Raises:
        UnsupportedFeatureError: it is a folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        if not hasattr(path, "read") or not hasattr(path, "size"):
            raise TypeError(f"a checkpoint is opened by its path, or as a tk.Source, not from a {type(path).__name__}")
        return path
    if Path(path).is_dir():
        raise UnsupportedFeatureError(
            "is a folder; sharded and distributed checkpoints are not read yet",
            file=os.fspath(path),
            hint="give one file; the weights in a run are tk.Run(path).open(), its list is `torchkeep runs`",
        )
    return MappedSource(path)


def format_of(source: Source, formats: Iterable[str | Format] | None = None) -> Format:
    """The format whose files begin like this one.

    Raises:
        UnknownFormatError, UnsupportedFeatureError: none does; the message names what the file looks like.
    """
    probe = Probe(bytes(source.read(0, min(source.size, PROBE_BYTES))), source.size)
    for part in formats if formats is not None else FORMATS:
        candidate: Format = make_part(FORMATS, part, "format")
        if candidate.sniff(probe):
            return candidate
    raise foreign.explain(probe, source.name)


def check_digests(ckpt: Checkpoint) -> None:
    """Hash every tensor that has a digest in the file.

    Raises:
        CorruptCheckpointError: one differs, or there are no digests.
    """
    if ckpt.facts is None or not ckpt.facts.header:
        raise CorruptCheckpointError(
            "carries no digests to verify", file=ckpt.file, hint="open it without verify=True, or convert it once"
        )
    digests = ckpt.facts.digests
    names = [name for name in digests if name in ckpt]
    found = digest_tensors([ckpt[name].load() for name in names])
    wrong = [name for name, digest in zip(names, found, strict=True) if digests[name] != digest]
    if wrong or len(names) < len(digests):
        listed = ", ".join(wrong[:5]) or "the list of tensors"
        raise CorruptCheckpointError(f"{listed} changed after it was written", file=ckpt.file)


def load(
    path: PathLike | Source,
    *,
    device: torch.device | str | None = None,
    mmap: bool = False,
    verify: bool = False,
    limits: Limits | None = None,
) -> Any:
    """Load the whole saved object: what `torch.load` gives, without running code from the file.

    Tensors that shared memory share it again. Plain values come back as they were; objects of other classes, NumPy's
    among them, are inert `Record`s with `.args` and `.state`. A file of a model's state gives a dict of tensors.

    Args:
        path: a file in any format that `open` reads.
        device: where to put all tensors; the CPU if None, wherever they were saved from.
        mmap: leave them in the file, as views of a private mapping: at once, and without memory of their own, but
            only as long as nobody overwrites the file in place, as `torch.save` does.
        verify: check the digests that torchkeep wrote into the file first.
        limits: how much the file may cost.
    """
    ckpt = open_checkpoint(path, limits=limits, verify=verify)
    storages = Storages(device, mapped=mmap)
    loaded: dict[tuple[object, ...], torch.Tensor] = {}

    def tensor(lazy: LazyTensor) -> torch.Tensor:
        key = (*lazy.identity, lazy.kind, lazy.requires_grad)
        if key not in loaded:
            loaded[key] = _as_saved(lazy, lazy.load(device, storages=storages))
        return loaded[key]

    tree = dict(ckpt.tensors) if ckpt.tree is trees.ABSENT else ckpt.tree
    return trees.rebuild(tree, tensor)


def _as_saved(lazy: LazyTensor, value: torch.Tensor) -> torch.Tensor:
    if lazy.kind == "parameter":
        return nn.Parameter(value, requires_grad=lazy.requires_grad)
    return value.requires_grad_() if lazy.requires_grad else value
