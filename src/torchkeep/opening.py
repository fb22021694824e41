"""Opening: from a path to a Checkpoint, without running anything from the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .core import tree as trees
from .core.checkpoint import Checkpoint
from .core.digests import digest_tensors
from .core.limits import Limits
from .core.source import Source
from .core.tensors import LazyTensor, Storages
from .engines import reader_for
from .engines.filling import Job, Place, bytes_of, fill, storage_place
from .engines.folder import FolderSource
from .engines.ranges import RangeSource, is_url
from .errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFeatureError
from .formats import Format
from .formats._dispatch import recognise
from .formats.safetensors import stored_tensors

PathLike = str | os.PathLike[str]

_WORTH = 1 << 18  # bytes from which on reading beside others is quicker than copying from the mapping

MapLocation = torch.device | str | Mapping[str, str] | Callable[[Any, str], Any] | None
"""Where loaded tensors go; everything that `map_location` of torch.load takes."""


def open_checkpoint(
    path: PathLike | Source,
    *,
    limits: Limits | None = None,
    formats: Iterable[str | Format] | None = None,
    verify: bool = False,
    engine: str | None = None,
) -> Checkpoint:
    """Open a checkpoint: its names, shapes and findings now, its values when they are asked for.

    >>> ckpt = tk.open("old/resnet50.pth"); print(ckpt)            # doctest: +SKIP
    >>> ckpt.model["fc.weight"].load()                              # doctest: +SKIP

    The format is recognised by content. Nothing in the file is imported or called: unknown classes become inert
    records, and dangerous names are listed in `findings`.

    Args:
        path: a file, a folder of shards, the address of a remote file (http, https, s3, gs, az), or a Source.
        limits: how much the file may cost.
        formats: names or instances of the formats to try, in this order; all if None.
        verify: check the digests that torchkeep wrote into the file, which reads all of it.
        engine: how a local file is read: `mapped` into memory, or `parallel`, by several large reads at a time into
            memory of one's own. If None, mapped on the disks of this machine and parallel on network file systems.

    Raises:
        CheckpointNotFoundError, UnknownFormatError, UnsupportedFeatureError: nothing there that can be read.
        CorruptCheckpointError: it is damaged.
        UnsafeCheckpointError: it costs more than `limits`.
    """
    source = as_source(path, engine)
    limits = limits or Limits()
    ckpt = recognise(source, limits, formats).open(source, limits)
    if verify:
        check_digests(ckpt, source, limits)
    return ckpt


def as_source(path: PathLike | Source, engine: str | None = None) -> Source:
    """A local file or folder, or a remote file, as a Source; a Source as it is."""
    remote = isinstance(path, str) and is_url(path)
    if engine is not None and (remote or not isinstance(path, (str, os.PathLike))):
        raise ValueError(f"engine={engine!r} is for local files: a remote file or a Source has its own way of reading")
    if isinstance(path, str) and remote:
        return RangeSource(path)
    if not isinstance(path, (str, os.PathLike)):
        if not hasattr(path, "read") or not hasattr(path, "size"):
            raise TypeError(f"a checkpoint is opened by its path, or as a tk.Source, not from a {type(path).__name__}")
        return path
    reader = reader_for(path, engine)
    return FolderSource(path, reader) if Path(path).is_dir() else reader(path)


def check_digests(ckpt: Checkpoint, source: Source, limits: Limits) -> None:
    """Hash every tensor that has a digest in the file.

    Raises:
        CorruptCheckpointError: one differs, or there are no digests.
    """
    if ckpt.facts is None or not ckpt.facts.header:
        raise CorruptCheckpointError(
            "carries no digests to verify", file=ckpt.file, hint="open it without verify=True, or convert it once"
        )
    digests = ckpt.facts.digests
    stored = stored_tensors(source, limits)
    names = [name for name in digests if name in stored]
    found = digest_tensors([stored[name].load() for name in names])
    wrong = [name for name, digest in zip(names, found, strict=True) if digests[name] != digest]
    if wrong or len(names) < len(digests):
        listed = ", ".join(wrong[:5]) or "the list of tensors"
        raise CorruptCheckpointError(f"{listed} changed after it was written", file=ckpt.file)


def load(
    path: PathLike | Source,
    *,
    device: MapLocation = None,
    strict: bool = False,
    mmap: bool = False,
    verify: bool = False,
    limits: Limits | None = None,
    engine: str | None = None,
) -> Any:
    """Load the whole saved object: what `torch.load` gives, without running code from the file.

    Tensors that shared memory share it again. Plain values and NumPy arrays come back as they were; objects of other
    classes are inert `Record`s with `.args` and `.state`. A file of a model's state gives a dict of tensors.

    Args:
        path: a file in any format that `open` reads.
        device: where to put the tensors, as `map_location` of torch.load takes it: a device for all; a dict from the
            device a tensor was saved from to another, as text (those not named stay on the CPU); a function of
            (storage, saved device) that answers the storage to use, or None to leave it on the CPU. None: the CPU,
            wherever they were saved from. `devices()` says what is here.
        strict: refuse a file that names dangerous code, or holds objects that could only come back as records.
        mmap: leave them in the file, as views of a private mapping: at once, and without memory of their own, but
            only as long as nobody overwrites the file in place, as `torch.save` does.
        verify: check the digests that torchkeep wrote into the file first.
        limits: how much the file may cost.
        engine: how a local file is read, as for `open`. On network file systems `mmap` works with `mapped` only.

    Raises:
        OpenError: the file cannot be read.
        UnsafeCheckpointError: with `strict`, it names code that could run.
        UnsupportedFeatureError: with `strict`, it holds an object of a class, at the place that is named.
    """
    if mmap and engine not in {None, "mapped"}:
        raise ValueError(f"mmap=True leaves tensors in a mapped file, and engine={engine!r} maps none: leave one out")
    ckpt = open_checkpoint(path, limits=limits, verify=verify, engine=engine)
    if strict:
        _check_plain(ckpt)
    places = _Places(device, mapped=mmap)
    if not mmap:
        places.read(ckpt.tensors.values())
    loaded: dict[tuple[object, ...], torch.Tensor] = {}

    def tensor(lazy: LazyTensor) -> torch.Tensor:
        key = (*lazy.identity, lazy.kind, lazy.requires_grad)
        if key not in loaded:
            loaded[key] = _as_saved(lazy, places.load(lazy))
        return loaded[key]

    tree = dict(ckpt.tensors) if ckpt.tree is trees.ABSENT else ckpt.tree
    return trees.rebuild(tree, tensor)


class _Ready(Storages):
    """Storages on the CPU of which some were read beforehand."""

    def __init__(self, ready: Mapping[Place, torch.UntypedStorage]) -> None:
        super().__init__("cpu", mapped=False)
        self._ready = ready

    def get(self, tensor: LazyTensor) -> torch.UntypedStorage:
        """The storage that was read, else one that is read now."""
        place = storage_place(tensor)
        found = self._ready.get(place) if place else None
        return super().get(tensor) if found is None else found


class _Places:
    """Puts tensors where the caller wants them, sharing storages that were shared."""

    def __init__(self, wanted: MapLocation, *, mapped: bool) -> None:
        self._wanted = wanted
        self._mapped = mapped
        self._storages: dict[str, Storages] = {}
        self._moved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def read(self, tensors: Iterable[LazyTensor]) -> None:
        """Read what will be wanted on the CPU by several threads at once, where that is quicker than one by one."""
        moved = callable(self._wanted) and not isinstance(self._wanted, torch.device)
        wanted = [storage_place(lazy) for lazy in tensors if moved or self._target(lazy.device) == "cpu"]
        flat = {
            place: torch.empty(place.nbytes, dtype=torch.uint8, device="cpu")
            for place in wanted
            if place is not None and (place.nbytes >= _WORTH or place.source.engine != "mapped")
        }
        fill([Job(place.source, place.offset, bytes_of(memory)) for place, memory in flat.items()])
        self._storages["cpu"] = _Ready({place: memory.untyped_storage() for place, memory in flat.items()})

    def load(self, lazy: LazyTensor) -> torch.Tensor:
        """One tensor, where it belongs."""
        if callable(self._wanted) and not isinstance(self._wanted, torch.device):
            return self._answered(lazy, self._wanted)
        target = self._target(lazy.device)
        if target not in self._storages:
            self._storages[target] = Storages(target, mapped=self._mapped)
        return lazy.load(None if lazy.device == "meta" else target, storages=self._storages[target])

    def _target(self, saved: str) -> str:
        wanted: Any = self._wanted.get(saved) if isinstance(self._wanted, Mapping) else self._wanted
        return "cpu" if wanted is None else str(torch.device(wanted))

    def _answered(self, lazy: LazyTensor, answer: Callable[[Any, str], Any]) -> torch.Tensor:
        """As torch does: the function gets each storage on the CPU, once, and may answer another one."""
        storages = self._storages.setdefault("cpu", Storages("cpu", mapped=self._mapped))
        value = lazy.load(storages=storages)
        if lazy.storage is None or value.layout is not torch.strided or value.device.type == "meta":
            return value
        base = value.untyped_storage()
        if base._cdata not in self._moved:
            found = answer(base, lazy.device)
            self._moved[base._cdata] = (base, base if found is None else getattr(found, "_untyped_storage", found))
        moved = self._moved[base._cdata][1]
        if moved.data_ptr() == base.data_ptr() and moved.device == base.device:
            return value
        out = torch.empty(0, dtype=value.dtype, device=moved.device)
        return lazy._finish(out.set_(moved, lazy.storage_offset, lazy.spec.shape, lazy.stride))


def _check_plain(ckpt: Checkpoint) -> None:
    dangers = [finding for finding in ckpt.findings if finding.severity == "danger"]
    if dangers:
        raise UnsafeCheckpointError(
            f"{dangers[0].message} (strict loading refuses it)",
            file=ckpt.file,
            place=dangers[0].place,
            hint="`torchkeep scan` lists all of it; without strict=True it is read as data, and nothing runs",
        )
    found = trees.first_record(ckpt.tree)
    if found is not None:
        path, record = found
        name = record.class_name if isinstance(record, trees.Record) else record.qualified
        raise UnsupportedFeatureError(
            f"is a {name}, which strict loading does not leave as a record",
            file=ckpt.file,
            place=path or "the object itself",
            hint="load it without strict=True and read .args and .state, or only the tensors: tk.open(path).load()",
        )


def _as_saved(lazy: LazyTensor, value: torch.Tensor) -> torch.Tensor:
    if lazy.kind == "parameter":
        return nn.Parameter(value, requires_grad=lazy.requires_grad)
    return value.requires_grad_() if lazy.requires_grad else value
