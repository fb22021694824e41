"""Converting: any checkpoint into safetensors, whole or in shards, or into a file for torch.load; a block at a time."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from .contents import Contents, lost, of_opened, of_tensors
from .core import tagged
from .core import tree as trees
from .core.checkpoint import Checkpoint
from .core.composite import Chunked, Composite, Compressed, Coo
from .core.facts import FileFacts
from .core.pieces import Cast
from .core.report import ConvertReport, SaveReport
from .core.tensors import LazyTensor, StorageRef, TensorSpec, dtype_name
from .core.tree import ABSENT, Global, Record
from .engines.files import write_file
from .errors import LoadError, SaveError, UnsavableError
from .formats._composites import held_tensor
from .formats._pickle_writer import Unhashable
from .formats.torch_zip_writer import lay_out
from .opening import PathLike, open_checkpoint
from .sharding import shard_size
from .writing import Progress, counted, write_contents

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_CAST = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SHORT = {
    "bf16": torch.bfloat16,
    "half": torch.float16,
    "float": torch.float32,
    "double": torch.float64,
    **{
        f"{start}{bits}": dtype
        for start in ("f", "fp")
        for bits, dtype in (("16", torch.float16), ("32", torch.float32), ("64", torch.float64))
    },
    **{dtype_name(dtype): dtype for dtype in _CAST},
}
_MODULE_LEAVES = 1_000_000


def convert(
    source: PathLike,
    target: PathLike,
    *,
    model_only: bool = False,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write any checkpoint anew, without running code from it and without loading it whole.

    As safetensors, tensors keep their names, flags and ties; sparse, quantized and nested ones are stored as their
    parts. The rest of the object, inert records included, is kept as JSON in the file's metadata, so `tk.load` of
    the new file gives what `tk.load` of the old one gives. As a torch zip, it is what torch.load opens with
    weights_only: plain values, containers and tensors; what is more than that is replaced, and the report says by what.

    Args:
        source: anything that `open` reads.
        target: ends in `.safetensors`, or in `.pth`, `.pt`, `.ckpt` or `.bin` for a torch zip; an existing file is
            replaced in one step, but never `source` itself.
        model_only: keep the model's weights alone, under their own names.
        dtype: cast floating-point tensors to this dtype, e.g. `bf16`; complex, whole and quantized ones stay.
        max_shard_size: for safetensors: bytes of a file, as a number or as `5GB` or `500MiB`. Where one file does not
            hold all, as many are written as it takes, and `<target>.index.json`, last; they replace nothing.
        progress: called with (bytes done, bytes in all).

    Raises:
        OpenError: the source cannot be read.
        SaveError: the target cannot be written; nothing half-written is left.
    """
    path = Path(target)
    if path.suffix not in {".safetensors", *TORCH_SUFFIXES}:
        endings = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise SaveError(f"{path} has another ending than {endings}", hint="the ending says what is written")
    if max_shard_size is not None and path.suffix != ".safetensors":
        raise SaveError("only safetensors files are written in shards", hint="give a target that ends in .safetensors")
    most = None if max_shard_size is None else shard_size(max_shard_size)
    ckpt = open_checkpoint(source)
    _check_apart(path, source, ckpt)
    if model_only:
        if not ckpt.model_key and ckpt.kind not in {"weights", "module"}:
            raise LoadError(f"{ckpt.file} holds no model that torchkeep recognises", hint="convert it whole")
        ckpt = ckpt.model
    casting = None if dtype is None else _Casting(_dtype(dtype))
    if casting is not None:
        ckpt = casting.checkpoint(ckpt)
    if path.suffix == ".safetensors":
        contents, notes = _contents(ckpt, model_only)
        saved = write_contents(contents, path, most=most, progress=progress)
    else:
        saved, notes = _torch_zip(ckpt, path, model_only, progress)
    notes += casting.notes() if casting is not None else ()
    return ConvertReport(os.fspath(source), str(path), saved, notes)


def _check_apart(path: Path, source: PathLike, ckpt: Checkpoint) -> None:
    """Refuse to write over the source, or over one of the files that it consists of."""
    tensors = [part for tensor in ckpt.values() for part in (tensor, *tensor.parts.values())]
    held = {tensor.source.name for tensor in tensors}
    held |= {tensor.storage.source.name for tensor in tensors if tensor.storage is not None and tensor.storage.source}
    files = {os.fspath(source), *held, *(name.partition(": ")[0] for name in held)}  # a record says `file: record`
    if path.exists() and any(_is_same(path, name) for name in files):
        raise SaveError(f"{path} is the file that is being converted", hint="write to another name")


def _is_same(path: Path, name: str) -> bool:
    try:
        return path.samefile(name)
    except (OSError, ValueError):  # no name of a file at all
        return False


def _contents(ckpt: Checkpoint, model_only: bool) -> tuple[Contents, tuple[str, ...]]:
    facts = ckpt.facts
    if facts is not None and facts.kind == "module":
        more = {"tree": facts.tree, "module": facts.module, "origins": facts.origins, "surgery": ckpt.surgery}
        return of_tensors(ckpt.tensors, ckpt.metadata, "module", **more), ()
    return of_opened(ABSENT if model_only else ckpt.tree, ckpt.tensors, ckpt.metadata)


# Another dtype


def _dtype(given: torch.dtype | str) -> torch.dtype:
    found = _SHORT.get(given.removeprefix("torch.")) if isinstance(given, str) else given
    if found not in _CAST:
        listed = ", ".join(map(dtype_name, _CAST))
        raise SaveError(f"{given} is no floating-point dtype that tensors are cast to", hint=f"one of {listed}")
    return found


class _Casting:
    """Puts a cast in front of each storage of floating-point numbers, once, so that what was shared stays shared."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._storages: dict[tuple[int, torch.dtype], tuple[StorageRef, StorageRef]] = {}
        self._casts: list[Cast] = []
        self._left: set[torch.dtype] = set()

    def checkpoint(self, ckpt: Checkpoint) -> Checkpoint:
        """The same checkpoint with its numbers in the other dtype."""
        tree = ckpt.tree if ckpt.tree is ABSENT else trees.rebuild(ckpt.tree, self.tensor)
        tensors = {name: self.tensor(tensor) for name, tensor in ckpt.tensors.items()}
        facts = ckpt.facts
        if isinstance(facts, FileFacts) and facts.module is not None:
            entries = tuple(
                replace(entry, dtype=dtype_name(tensors[entry.name].dtype)) if entry.name in tensors else entry
                for entry in facts.module.tensors
            )
            facts = msgspec.structs.replace(facts, module=replace(facts.module, tensors=entries))
        return replace(ckpt, tensors=tensors, tree=tree, facts=facts)

    def tensor(self, tensor: LazyTensor) -> LazyTensor:
        """One tensor; those that are not cast are given back."""
        if isinstance(tensor, Composite):
            return self._composite(tensor)
        if not tensor.dtype.is_floating_point or tensor.dtype == self._dtype:
            return tensor
        if dtype_name(tensor.dtype).startswith("float4"):  # two in a byte, which torch does not take apart
            self._left.add(tensor.dtype)
            return tensor
        spec = TensorSpec(self._dtype, tensor.spec.shape)
        if tensor.storage is None or tensor.storage.offset is None:
            return tensor.replace(spec=spec) if tensor.storage is None else tensor
        return tensor.replace(spec=spec, storage=self._storage(tensor, tensor.storage))

    def _storage(self, tensor: LazyTensor, storage: StorageRef) -> StorageRef:
        key = (id(storage), tensor.dtype)
        if key not in self._storages:
            old = tensor.dtype
            count = storage.nbytes // old.itemsize
            cast = Cast(storage.source or tensor.source, storage.offset or 0, count, old, self._dtype)
            self._casts.append(cast)
            self._storages[key] = (storage, StorageRef(cast.size, 0, source=cast))
        return self._storages[key][1]

    def _composite(self, tensor: Composite) -> LazyTensor:
        """Chunks are cast, and the values of sparse tensors; quantized and nested ones stay what they are."""
        how = tensor.composition
        if not isinstance(how, (Chunked, Coo, Compressed)) or not tensor.dtype.is_floating_point:
            return tensor
        whole = isinstance(how, Chunked)
        parts = {n: self.tensor(part) if whole or n == "values" else part for n, part in tensor.parts.items()}
        spec = TensorSpec(self._dtype, tensor.spec.shape)
        facts = {"device": tensor.device, "requires_grad": tensor.requires_grad, "kind": tensor.kind}
        return Composite(how, parts, tensor.source, spec, **facts)

    def notes(self) -> tuple[str, ...]:
        """What the cast did to the numbers; known when all was written."""
        name, count = dtype_name(self._dtype), sum(cast.overflowed for cast in self._casts)
        notes = [f"{len(self._casts):,} storages of floating-point numbers are cast to {name}"] if self._casts else []
        notes += [f"{count:,} numbers became infinite as {name}"] if count else []
        return (*notes, *(f"tensors of {dtype_name(left)} are not cast" for left in self._left))


# A file for torch.load


def _torch_zip(
    ckpt: Checkpoint, path: Path, model_only: bool, progress: Progress | None
) -> tuple[SaveReport, tuple[str, ...]]:
    """Write what torch.load opens with weights_only."""
    started = time.perf_counter()
    stand_ins = _StandIns()
    module = ckpt.kind == "module" or (isinstance(ckpt.tree, Record) and ckpt.tree.is_module)
    root = _state_dict(ckpt) if module or model_only or ckpt.tree is ABSENT else ckpt.tree
    archive = lay_out(root, path.stem, stand_ins)
    pieces: Iterator[Any] = archive.pieces()
    if progress is not None:
        pieces = counted(pieces, archive.total, progress)
    write_file(path, pieces, nbytes=archive.total)
    notes = (*lost(ckpt.tensors), *stand_ins.notes())
    if module:
        notes += ("the model is written as its state dict",)
    away = sorted({tensor.device for tensor in ckpt.values()} - {"cpu", "meta"})
    if away:
        notes += (f"tensors that were saved from {', '.join(away)} are written as saved from the CPU",)
    report = SaveReport(
        path=str(path),
        bytes_written=archive.total,
        bytes_total=ckpt.nbytes,
        seconds=time.perf_counter() - started,
        tensors_written=len({tensor.identity for tensor in ckpt.values()}),
        tensors_total=len(ckpt),
    )
    return report, notes


def _state_dict(ckpt: Checkpoint) -> Any:
    """The tensors under their names, with what a state dict has beside them: versions, and extra state of modules."""
    state: OrderedDict[str, Any] = OrderedDict(ckpt.model.tensors if ckpt.kind == "module" else ckpt.tensors)
    metadata = getattr(ckpt.tree, "_metadata", None)
    if isinstance(metadata, dict):
        state._metadata = metadata  # type: ignore[attr-defined]
    if isinstance(ckpt.facts, FileFacts) and ckpt.facts.kind == "module" and ckpt.facts.tree is not msgspec.UNSET:
        state |= tagged.decode(ckpt.facts.tree, lambda name: state.pop(name) if name in state else ckpt.tensors[name])
    return state


@dataclass
class _StandIns:
    """What is written in the place of values that torch.load does not take with weights_only, and how often."""

    counts: Counter[str] = field(default_factory=Counter)
    _made: dict[tuple[bool, int], tuple[Any, Any]] = field(default_factory=dict)
    _leaves: int = 0

    def __call__(self, value: Any) -> Any:
        """The stand-in of a value, the same one each time."""
        is_key = isinstance(value, Unhashable)
        key = (is_key, id(value.value if is_key else value))
        if key not in self._made:
            self._made[key] = (value, self._make(value))
        return self._made[key][1]

    def _make(self, value: Any) -> Any:
        if isinstance(value, Unhashable):
            return self._told(f"<key {len(self._made)}: {value.value!r:.100}>", "keys that are objects as text")
        if isinstance(value, Record):
            return self._record(value)
        if isinstance(value, tuple):
            return self._told(None, "tuples inside of themselves as None")
        if isinstance(value, int):
            return self._told(hex(value), "integers of more than 255 bytes as text")
        if isinstance(value, Global):
            return self._told(value.qualified, "names of classes and functions as text")
        if isinstance(value, frozenset):
            return self._told(set(value), "frozensets as sets")
        if isinstance(value, dict):
            return dict(value)  # a defaultdict, without what makes its defaults
        if isinstance(value, np.generic):
            plain = value.item()
            known = isinstance(plain, (bool, int, float, complex, str, bytes))
            return self._told(plain if known else str(value), "NumPy scalars as plain numbers")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 16:
            return self._array(value)
        return self._told(None, f"{type(value).__name__} values as None")

    def _told(self, stand_in: Any, what: str) -> Any:
        self.counts[what] += 1
        return stand_in

    def _record(self, record: Record) -> Any:
        if record.tensor is not None:
            return record.tensor
        if record.is_module:
            leaves = trees.leaves(record)
            self._leaves += len(leaves)
            if self._leaves > _MODULE_LEAVES:
                raise UnsavableError(
                    f"its modules hold more than {_MODULE_LEAVES:,} tensors by all paths together",
                    hint="write to a .safetensors file, which keeps them once",
                )
            state = OrderedDict((leaf.name, leaf.tensor) for leaf in leaves if leaf.role in {"parameter", "buffer"})
            return self._told(state, "modules as their state dicts")
        made_of = ("args", "kwargs", "state", "items", "pairs")
        held = {name: value for name in made_of if (value := getattr(record, name))}
        if held.keys() == {"state"} and isinstance(record.state, dict):
            return self._told(dict(record.state), f"objects of {record.class_name} as dicts of their attributes")
        return self._told(held, f"objects of {record.class_name} as dicts of what they were made of")

    def _array(self, value: Any) -> Any:
        try:
            tensor = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        except TypeError:
            return self._told(None, f"arrays of {value.dtype} as None")
        return self._told(held_tensor(tensor, "array"), "NumPy arrays as tensors")

    def notes(self) -> tuple[str, ...]:
        """One note for each kind of replacement."""
        return tuple(f"{count:,} {what}" for what, count in self.counts.items())
