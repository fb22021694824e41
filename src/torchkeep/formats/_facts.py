"""What torchkeep wrote beside the tensors of a safetensors file, read back: flags, ties, dtypes, digests, the tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from blake3 import blake3

from ..core import tagged
from ..core.checkpoint import Checkpoint, Provenance, SavedModule, describe_tree
from ..core.facts import KEY, NO_DIGEST, FileFacts
from ..core.limits import Limits
from ..core.source import Source
from ..core.tensors import LazyTensor, TensorSpec, contiguous_stride, torch_dtype
from ..core.tree import ABSENT, leaves
from ..errors import CorruptCheckpointError, UnsupportedFeatureError

_PLACE = f"metadata {KEY!r}"


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
    for name, canonical in facts.tied.items():
        if canonical not in stored or name in stored:
            raise CorruptCheckpointError(
                f"ties {name!r} to {canonical!r}, which is not there", file=source.name, place=_PLACE
            )
        stored[name] = stored[canonical]
    parameters, buffers, grads = set(facts.parameters), set(facts.buffers), set(facts.requires_grad)
    order = {name: position for position, name in enumerate((*facts.digests, *facts.empty, *facts.tied))}
    tensors = {
        name: stored[name].replace(
            kind="parameter" if name in parameters else "buffer" if name in buffers else "tensor",
            requires_grad=name in grads,
            device=facts.devices.get(name, stored[name].device),
        )
        for name in sorted(stored, key=lambda name: order.get(name, len(order)))
    }
    tree = _tree(facts, tensors, source.name)
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


def _tree(facts: FileFacts, tensors: Mapping[str, LazyTensor], file: str) -> Any:
    if facts.kind != "object" or facts.tree is msgspec.UNSET:
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
