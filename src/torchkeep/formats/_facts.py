"""What torchkeep wrote beside the tensors of a safetensors file, read back: flags, ties, dtypes, digests, the tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from blake3 import blake3

from ..core import tagged
from ..core.checkpoint import Checkpoint, Provenance, SavedModule, describe_tree
from ..core.composite import QUANTIZED, Composite, Composition, Compressed, Coo, Nested, Quantized
from ..core.facts import KEY, NO_DIGEST, FileFacts, Parts
from ..core.freezespec import Frozen
from ..core.limits import Limits
from ..core.source import Source
from ..core.tensors import LazyTensor, TensorSpec, check_geometry, contiguous_stride, dtype_name, torch_dtype
from ..core.tree import ABSENT, leaves
from ..errors import CorruptCheckpointError, UnsupportedFeatureError

_PLACE = f"metadata {KEY!r}"
_QUANTIZED = {dtype_name(dtype): dtype for dtype in QUANTIZED}
_COMPRESSED = ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_PARTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_compressed": ("compressed_indices", "plain_indices", "values"),
    "nested": ("buffer", "sizes", "strides", "offsets"),
}


def read_facts(metadata: Mapping[str, str], raw_header: bytes, file: str) -> FileFacts | None:
    """The facts in a file's metadata, None where another program wrote the file.

    Raises:
        CorruptCheckpointError: they cannot be read, or the header changed after it was written.
        UnsupportedFeatureError: a later version of torchkeep wrote them.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        facts = msgspec.json.decode(text, type=FileFacts)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"cannot be read: {error}", file=file, place=_PLACE) from error
    if facts.version > FileFacts().version:
        raise UnsupportedFeatureError(
            f"is version {facts.version}, this torchkeep reads up to {FileFacts().version}",
            file=file,
            place=_PLACE,
            hint="upgrade torchkeep",
        )
    if facts.kind == "pack":  # the name of a pack is its digest
        return facts
    if blake3(raw_header.replace(facts.header.encode(), NO_DIGEST.encode())).hexdigest() != facts.header:
        raise CorruptCheckpointError("changed after it was written", file=file, place="header", hint="use another copy")
    return facts


def with_facts(ckpt: Checkpoint, facts: FileFacts, source: Source, limits: Limits) -> Checkpoint:
    """The checkpoint as it was saved: logical dtypes, flags, tied names, and the tree of the saved object."""
    stored = {name: _logical(name, tensor, facts, source.name) for name, tensor in ckpt.tensors.items()}
    for name, (dtype, shape) in facts.empty.items():
        spec = TensorSpec(torch_dtype(dtype, file=source.name), tuple(shape))
        stored[name] = LazyTensor(source, None, spec, contiguous_stride(spec.shape), device="meta")
    _tie(stored, {name: first for name, first in facts.tied.items() if first not in facts.composites}, source.name)
    put_together = {name: _whole(name, parts, stored, source) for name, parts in facts.composites.items()}
    owners = {part: name for name, parts in facts.composites.items() for part in parts.parts.values()}
    stored = {name: tensor for name, tensor in stored.items() if name not in owners} | put_together
    _tie(stored, {name: first for name, first in facts.tied.items() if first in facts.composites}, source.name)
    parameters, buffers, grads = set(facts.parameters), set(facts.buffers), set(facts.requires_grad)
    listed = dict.fromkeys(owners.get(name, name) for name in (*facts.digests, *facts.empty, *facts.tied))
    order = {name: position for position, name in enumerate(listed)}
    tensors = {
        name: stored[name].replace(
            kind="parameter" if name in parameters else "buffer" if name in buffers else "tensor",
            requires_grad=name in grads,
            device=facts.devices.get(name, stored[name].device),
        )
        for name in sorted(stored, key=lambda name: order.get(name, len(order)))
    }
    tree = _tree(facts, tensors, source.name) if facts.kind == "object" else ABSENT
    nothing: tuple[str, str, tuple[str, ...]] = ("module" if facts.kind == "module" else "weights", "", ())
    kind, model_key, candidates = nothing if tree is ABSENT else describe_tree(tree, leaves(tree, limits))
    return Checkpoint(
        ckpt.file,
        ckpt.format,
        tensors,
        tree=tree,
        metadata={key: value for key, value in ckpt.metadata.items() if key != KEY},
        findings=ckpt.findings,
        provenance=Provenance(_producer(facts), ("torchkeep names itself in the file",)),
        kind=kind,
        model_key=model_key,
        candidates=candidates,
        modules=_modules(facts),
        facts=facts,
        frozen=Frozen() if facts.module is None else facts.module.as_frozen,
    )


def _logical(name: str, tensor: LazyTensor, facts: FileFacts, file: str) -> LazyTensor:
    if name not in facts.dtypes:
        return tensor
    dtype, shape = facts.dtypes[name]
    spec = TensorSpec(torch_dtype(dtype, file=file, place=f"tensor {name!r}"), tuple(shape))
    if any(size < 0 for size in spec.shape) or spec.nbytes != tensor.nbytes or tensor.dtype.itemsize != 1:
        raise CorruptCheckpointError(
            f"is said to be {spec} and has {tensor.nbytes:,} bytes", file=file, place=f"tensor {name!r}"
        )
    return tensor.replace(spec=spec, stride=contiguous_stride(spec.shape))


def _tie(stored: dict[str, LazyTensor], tied: Mapping[str, str], file: str) -> None:
    for name, canonical in tied.items():
        if canonical not in stored or name in stored:
            raise CorruptCheckpointError(f"ties {name!r} to {canonical!r}, which is not there", file=file, place=_PLACE)
        stored[name] = stored[canonical]


def of_shards(first: Checkpoint, ckpt: Checkpoint, limits: Limits) -> Checkpoint:
    """The checkpoint of all shards together, with the tree and the modules that the first shard keeps for them.

    Args:
        first: the shard that says what the whole is; another one, or one that others wrote, changes nothing.
        ckpt: the tensors of all shards under their names.
        limits: bounds the walk over the tree.
    """
    facts = first.facts
    if not isinstance(facts, FileFacts) or not facts.whole:
        return ckpt
    tree = _tree(facts, ckpt.tensors, first.file) if facts.whole == "object" else ABSENT
    kind, model_key, candidates = "module" if facts.whole == "module" else "weights", "", ckpt.candidates
    if tree is not ABSENT:
        kind, model_key, candidates = describe_tree(tree, leaves(tree, limits))
    return replace(
        ckpt,
        tree=tree,
        kind=kind,
        model_key=model_key,
        candidates=candidates,
        modules=_modules(facts),
        frozen=Frozen() if facts.module is None else facts.module.as_frozen,
        metadata=first.metadata,
        provenance=first.provenance,
    )


def _whole(name: str, parts: Parts, stored: Mapping[str, LazyTensor], source: Source) -> LazyTensor:
    """A tensor out of its parts, which are checked as far as that needs none of their values."""

    def fail(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(what, file=source.name, place=f"tensor {name!r}")

    missing = [part for part in parts.parts.values() if part not in stored]
    if missing:
        raise fail(f"is made of {missing[0]!r}, which is not there")
    held = {key: stored[part] for key, part in parts.parts.items()}
    dtype = _QUANTIZED.get(parts.dtype) or torch_dtype(parts.dtype, file=source.name, place=f"tensor {name!r}")
    spec = TensorSpec(dtype, tuple(parts.shape))
    check_geometry(spec, (0,) * len(spec.shape), 0, spec.dtype.itemsize, file=source.name, place=f"tensor {name!r}")
    composition = _composition(parts, fail)
    if held.keys() != _names_of(composition):
        raise fail(f"is {parts.layout} and made of {', '.join(held) or 'nothing'}")
    if isinstance(composition, Quantized) != (parts.dtype in _QUANTIZED):
        raise fail(f"is {parts.layout} of dtype {parts.dtype}")
    if isinstance(composition, Quantized):
        ints, packed = QUANTIZED[dtype]
        shape = spec.shape if packed == 1 else (-(-spec.numel // packed),)
        if held["ints"].spec != TensorSpec(ints, shape):
            raise fail(f"is {spec} and stored as {held['ints'].spec}")
    return Composite(composition, held, source, spec)


def _composition(parts: Parts, fail: Callable[[str], CorruptCheckpointError]) -> Composition:
    options = tagged.decode(parts.options)
    try:
        if parts.layout == "sparse_coo":
            coalesced = options.pop("coalesced")
            made: Composition = Coo(coalesced if isinstance(coalesced, bool) else None, **options)
        elif parts.layout == "quantized":
            scheme, scale, zero, axis = (options.pop(key) for key in ("scheme", "scale", "zero_point", "axis"))
            if (type(scheme), type(scale), type(zero), type(axis)) != (str, float, int, int):
                raise fail(f"is quantized by {scheme!r}, {scale!r}, {zero!r}, {axis!r}")
            made = Quantized(scheme, scale, zero, axis, **options)
        elif parts.layout == "nested":
            made = Nested(**options)
        elif parts.layout in _COMPRESSED:
            made = Compressed(parts.layout, **options)
        else:
            raise fail(f"has layout {parts.layout[:60]!r}, which torchkeep does not know")
    except (KeyError, TypeError) as error:
        raise fail(f"is {parts.layout} with other options than it has") from error
    return made


def _names_of(composition: Composition) -> set[str]:
    if isinstance(composition, Quantized):
        return {"ints"} if composition.scheme == "per_tensor_affine" else {"ints", "scales", "zero_points"}
    return set(_PARTS["sparse_compressed" if composition.layout in _COMPRESSED else composition.layout])


def _tree(facts: FileFacts, tensors: Mapping[str, LazyTensor], file: str) -> Any:
    if facts.tree is msgspec.UNSET:
        return ABSENT
    try:
        return tagged.decode(facts.tree, lambda name: tensors[name])
    except CorruptCheckpointError as error:
        error.file, error.place = file, _PLACE
        raise


def _producer(facts: FileFacts) -> str:
    return " with ".join(f"{name} {number}" for name, number in facts.producer.items())


def _modules(facts: FileFacts) -> tuple[SavedModule, ...]:
    if facts.module is None:
        return ()
    return tuple(SavedModule(module.path, module.class_name, module.training) for module in facts.module.modules)
