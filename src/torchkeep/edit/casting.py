"""Another dtype for floating-point tensors, cast while they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import torch

from ..core import tree as trees
from ..core.checkpoint import Checkpoint
from ..core.composite import Chunked, Composite, Compressed, Coo
from ..core.facts import FileFacts
from ..core.modulespec import ModuleSpec
from ..core.pieces import Cast
from ..core.source import Source
from ..core.tensors import LazyTensor, StorageRef, TensorSpec, dtype_name
from ..core.tree import ABSENT
from ..errors import SaveError
from .flat import cast_extra, flatten

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


def cast(source: Any, dtype: torch.dtype | str, *, only: Any = None) -> Checkpoint:
    """The model's weights with floating-point tensors in another dtype.

    >>> tk.save(tk.edit.cast("flowers.safetensors", "bf16"), "small.safetensors")      # doctest: +SKIP

    Complex, whole and quantized ones stay. Tensors that share memory are cast together. How many finite numbers became
    infinite is said by the report of the save.

    Args:
        source: a path, a Checkpoint, a run or a snapshot; of a training checkpoint the model is taken.
        dtype: float32, float16, bfloat16 or float64, or short for one of them: `bf16`, `f16`.
        only: selector of the tensors to cast; all if None.

    Raises:
        SaveError: tensors are not cast to this dtype.
        SelectorError: `only` selects nothing.
    """
    flat, wanted = flatten(source), as_dtype(dtype)
    chosen = set(flat.names) if only is None else flat.chosen(only)
    shared = {key for name, tensor in flat.tensors.items() if name in chosen for key in _storages(tensor)}
    casting = Casting(wanted)
    tensors = {
        name: casting.tensor(tensor) if shared.intersection(_storages(tensor)) or name in chosen else tensor
        for name, tensor in flat.tensors.items()
    }
    made = replace(
        flat,
        tensors=tensors,
        extra=cast_extra(flat.extra, casting.tensor) if only is None else flat.extra,
        module=None if flat.module is None else _recast(flat.module, tensors),
        digests={name: digest for name, digest in flat.digests.items() if tensors[name] is flat.tensors[name]},
    )
    return made.checkpoint(f"cast to {dtype_name(wanted)}")


def _storages(tensor: LazyTensor) -> set[int]:
    parts = tensor.parts.values() or (tensor,)
    return {id(part.storage) for part in parts if part.storage is not None}


def _recast(module: ModuleSpec, tensors: Any) -> ModuleSpec:
    """The description of a model whose tensors have another dtype."""
    entries = tuple(
        replace(entry, dtype=dtype_name(tensors[entry.name].dtype)) if entry.name in tensors else entry
        for entry in module.tensors
    )
    return replace(module, tensors=entries)


def as_dtype(given: torch.dtype | str) -> torch.dtype:
    """A dtype that tensors are cast to; raises SaveError for another one."""
    found = _SHORT.get(given.removeprefix("torch.")) if isinstance(given, str) else given
    if found not in _CAST:
        listed = ", ".join(map(dtype_name, _CAST))
        raise SaveError(f"{given} is no floating-point dtype that tensors are cast to", hint=f"one of {listed}")
    return found


class Casting:
    """Puts a cast in front of each storage of floating-point numbers, once, so that what was shared stays shared."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._storages: dict[tuple[int, torch.dtype], tuple[StorageRef, StorageRef]] = {}

    def checkpoint(self, ckpt: Checkpoint) -> Checkpoint:
        """The same checkpoint with its numbers in the other dtype."""
        tree = ckpt.tree if ckpt.tree is ABSENT else trees.rebuild(ckpt.tree, self.tensor)
        tensors = {name: self.tensor(tensor) for name, tensor in ckpt.tensors.items()}
        facts = ckpt.facts
        if isinstance(facts, FileFacts) and facts.module is not None:
            facts = msgspec.structs.replace(facts, module=_recast(facts.module, tensors))
        return replace(ckpt, tensors=tensors, tree=tree, facts=facts)

    def tensor(self, tensor: LazyTensor) -> LazyTensor:
        """One tensor; those that are not cast are given back."""
        if isinstance(tensor, Composite):
            return self._composite(tensor)
        if not tensor.dtype.is_floating_point or tensor.dtype == self._dtype or is_packed(tensor.dtype):
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


def is_packed(dtype: torch.dtype) -> bool:
    """Whether several numbers lie in a byte, which torch does not take apart."""
    return dtype_name(dtype).startswith("float4")


def cast_notes(tensors: Iterable[LazyTensor], *, asked: bool = False) -> tuple[str, ...]:
    """What casts did to the numbers, known when all was written, and if a cast was `asked` for what it left alone."""
    casts: dict[int, Cast] = {}
    left: dict[torch.dtype, None] = {}
    for tensor in tensors:
        for part in tensor.parts.values() or (tensor,):
            source: Source | None = None if part.storage is None else part.storage.source
            if isinstance(source, Cast):
                casts[id(source)] = source
            elif is_packed(part.dtype):
                left[part.dtype] = None
    unchanged = tuple(f"tensors of {dtype_name(one)} are not cast" for one in left)
    if not casts:
        return unchanged if asked else ()
    names = ", ".join(dict.fromkeys(dtype_name(cast.new) for cast in casts.values()))
    count = sum(cast.overflowed for cast in casts.values())
    notes = [f"{len(casts):,} storages of floating-point numbers are cast to {names}"]
    notes += [f"{count:,} numbers became infinite as {names}"] if count else []
    return (*notes, *unchanged)
