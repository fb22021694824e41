"""Converting: any checkpoint into safetensors, whole or in shards, or into a file for torch.load; a block at a time."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from .contents import lost, of_checkpoint
from .core import tagged
from .core import tree as trees
from .core.checkpoint import EDITED, Checkpoint
from .core.facts import FileFacts
from .core.report import ConvertReport, SaveReport
from .core.tree import ABSENT, Global, Record
from .edit.casting import Casting, as_dtype, cast_notes
from .edit.flat import standing
from .engines.files import write_file
from .errors import LoadError, SaveError, UnsavableError
from .formats._composites import held_tensor
from .formats._pickle_writer import Unhashable
from .formats._torch_versions import TODAY, TorchVersion, torch_version
from .formats.torch_legacy_writer import LegacyFile, lay_out_legacy
from .formats.torch_zip_writer import Archive, lay_out
from .opening import PathLike, open_checkpoint
from .sharding import shard_size
from .writing import Progress, check_apart, counted, write_contents

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_MODULE_LEAVES = 1_000_000


def convert(
    source: PathLike | Checkpoint,
    target: PathLike,
    *,
    model_only: bool = False,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    for_torch: str | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write any checkpoint anew, without running code from it and without loading it whole.

    As safetensors, tensors keep their names, flags and ties; sparse, quantized and nested ones are stored as their
    parts. The rest of the object, inert records included, is kept as JSON in the file's metadata, so `tk.load` of
    the new file gives what `tk.load` of the old one gives. As a torch zip, it is what torch.load opens with
    weights_only: plain values, containers and tensors; what is more than that is replaced, and the report says by what.

    Args:
        source: anything that `open` reads, or a Checkpoint, such as a function of `tk.edit` gives.
        target: ends in `.safetensors`, or in `.pth`, `.pt`, `.ckpt` or `.bin` for a torch zip; an existing file is
            replaced in one step, but never `source` itself.
        model_only: keep the model's weights alone, under their own names.
        dtype: cast floating-point tensors to this dtype, e.g. `bf16`; complex, whole and quantized ones stay.
        max_shard_size: for safetensors: bytes of a file, as a number or as `5GB` or `500MiB`. Where one file does not
            hold all, as many are written as it takes, and `<target>.index.json`, last; they replace nothing.
        for_torch: the version of torch that has to open the file, such as `torch==1.4` or `1.13.1`: the file is laid
            out as that version does it, for its own torch.load. docs/versions.md says what each of them has.
        progress: called with (bytes done, bytes in all).

    Raises:
        OpenError: the source cannot be read.
        SaveError: the target cannot be written; nothing half-written is left.
        UnsavableError: a tensor is of a dtype or a layout that the version in `for_torch` does not have.
    """
    path = Path(target)
    version = TODAY if for_torch is None else torch_version(for_torch)
    if path.suffix not in {".safetensors", *TORCH_SUFFIXES}:
        endings = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise SaveError(f"{path} has another ending than {endings}", hint="the ending says what is written")
    if max_shard_size is not None and path.suffix != ".safetensors":
        raise SaveError("only safetensors files are written in shards", hint="give a target that ends in .safetensors")
    if version.exact and path.suffix == ".safetensors":
        endings = ", ".join(TORCH_SUFFIXES)
        raise SaveError("safetensors files are the same for every torch", hint=f"give a target that ends in {endings}")
    most = None if max_shard_size is None else shard_size(max_shard_size)
    ckpt = standing(source) if isinstance(source, Checkpoint) else open_checkpoint(source)
    title = ckpt.file if isinstance(source, Checkpoint) else os.fspath(source)
    check_apart(path, ckpt, title)
    if model_only:
        if not ckpt.model_key and ckpt.kind not in {"weights", "module"}:
            raise LoadError(f"{ckpt.file} holds no model that torchkeep recognises", hint="convert it whole")
        ckpt = ckpt.model
    if dtype is not None:
        ckpt = Casting(as_dtype(dtype)).checkpoint(ckpt)
    notes: tuple[str, ...]
    if path.suffix == ".safetensors":
        contents, notes = of_checkpoint(ckpt, model_only=model_only), ()
        saved = write_contents(contents, path, most=most, progress=progress)
    else:
        saved, notes = _for_torch(ckpt, path, model_only, version, progress)
    notes += tuple(finding.message for finding in ckpt.findings if finding.code == EDITED)
    notes += cast_notes(ckpt.values(), asked=dtype is not None)
    return ConvertReport(title, str(path), saved, notes)


# A file for torch.load


def _for_torch(
    ckpt: Checkpoint, path: Path, model_only: bool, version: TorchVersion, progress: Progress | None
) -> tuple[SaveReport, tuple[str, ...]]:
    """Write what torch.load opens with weights_only, or what it opens in another version."""
    started = time.perf_counter()
    stand_ins = _StandIns(version)
    module = ckpt.kind == "module" or (isinstance(ckpt.tree, Record) and ckpt.tree.is_module)
    root = _state_dict(ckpt) if module or model_only or ckpt.tree is ABSENT else ckpt.tree
    if version.exact:
        for leaf in trees.leaves(root):
            version.check(leaf.tensor, leaf.name)
    file: Archive | LegacyFile
    if version.is_legacy:
        file = lay_out_legacy(root, stand_ins, version)
    else:
        file = lay_out(root, path.stem, stand_ins, version)
    pieces: Iterator[Any] = file.pieces()
    if progress is not None:
        pieces = counted(pieces, file.total, progress)
    write_file(path, pieces, nbytes=file.total)
    notes = (*lost(ckpt.tensors), *stand_ins.notes(), *file.notes)
    if module:
        notes += ("the model is written as its state dict",)
    away = sorted({tensor.device for tensor in ckpt.values()} - {"cpu", "meta"})
    if away:
        notes += (f"tensors that were saved from {', '.join(away)} are written as saved from the CPU",)
    report = SaveReport(
        path=str(path),
        bytes_written=file.total,
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


_WIDER = {"bool": "uint8", "uint16": "int32", "uint32": "int64"}


@dataclass
class _StandIns:
    """What is written in the place of values that torch.load does not take with weights_only, and how often.

    Attributes:
        version: of torch, which may have fewer dtypes than today's.
    """

    version: TorchVersion = TODAY
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
        if isinstance(value, torch.dtype):
            return self._told(str(value), f"dtypes that {self.version} does not have as text")
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
        if self.version.has_dtype(tensor.dtype):
            return self._told(held_tensor(tensor, "array"), "NumPy arrays as tensors")
        wider = _WIDER.get(str(value.dtype))
        if wider is None:
            return self._told(None, f"arrays of {value.dtype} as None")
        wide = tensor.to(getattr(torch, wider))
        return self._told(held_tensor(wide, "array"), f"NumPy arrays of {value.dtype} as tensors of {wider}")

    def notes(self) -> tuple[str, ...]:
        """One note for each kind of replacement."""
        return tuple(f"{count:,} {what}" for what, count in self.counts.items())
