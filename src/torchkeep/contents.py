"""What goes into one file, decided before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import msgspec
import torch
from torch import nn

from .core import tagged
from .core import tree as trees
from .core.about import NOTHING, About, licences_differ, with_parents, written
from .core.checkpoint import Checkpoint
from .core.composite import Chunked, Composite
from .core.facts import NO_DIGEST, FileFacts, Parts
from .core.limits import Limits
from .core.live import (
    AnyTensor,
    check_savable,
    named_parameters,
    shared_storages,
    spec_of,
    state_of,
    tied_names,
    unwrapped,
)
from .core.modulespec import ModuleSpec
from .core.operations import Operation
from .core.origin import Origins, lineage_of, origins_of, packed
from .core.tensors import LazyTensor, TensorSpec, contiguous_stride, dtype_name
from .core.version import PRODUCER
from .errors import UnsavableError
from .formats._pause import collector_paused
from .formats.layout import without_code
from .inspecting import inspect
from .lineage import Given, as_about
from .recording import Factory, architecture_of
from .surgery import history


@dataclass(frozen=True)
class Contents:
    """What goes into one file, decided before anything is written.

    Attributes:
        tensors: those that are written, by name; a name tied to another is not among them.
        specs: dtype and shape of each.
        facts: what is written about them, digests still zero.
        notes: for the report.
    """

    tensors: Mapping[str, AnyTensor]
    specs: Mapping[str, TensorSpec]
    facts: FileFacts
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@collector_paused()
def of_module(model: nn.Module, about: Given = None, factory: Factory | None = None) -> Contents:
    """What goes into the file of a live model: what its state dict names, and what makes the modules again."""
    state, extra = state_of(model)
    parameters = {name for name, _ in named_parameters(model)}
    kinds = {name: "parameter" if name in parameters else "buffer" for name in state}
    tensors: dict[str, AnyTensor] = dict(state)
    tree: Any = msgspec.UNSET
    if extra:
        inside, more, tree = taken_apart(extra)
        tensors, kinds = tensors | inside, kinds | more
    origins = packed({name: origin for name, origin in origins_of(model).items() if name in state})
    module, surgery = inspect(unwrapped(model)), history(model)
    facts = with_parents(as_about(about, loaded=origins.files), lineage_of(model, origins.files))
    contents = contents_of(
        tensors, kinds, kind="module", tree=tree, module=module, origins=origins, surgery=surgery, about=facts
    )
    recorded = architecture_of(model, state, factory)
    return replace(
        contents,
        facts=msgspec.structs.replace(contents.facts, architecture=recorded.architecture),
        notes=(*contents.notes, *licences_differ(facts.parents), *recorded.notes),
    )


@collector_paused()
def of_object(
    obj: Any, *, metadata: Mapping[str, str] | None = None, module: ModuleSpec | None = None, about: Given = None
) -> Contents:
    """What goes into the file of a nested object; inert records of an opened checkpoint are kept as records."""
    facts = as_about(about)
    tensors, kinds, tree = taken_apart(obj)
    return contents_of(tensors, kinds, kind="object", tree=tree, module=module, metadata=metadata, about=facts)


def of_checkpoint(ckpt: Checkpoint, *, model_only: bool = False) -> Contents:
    """What goes into the file of an opened checkpoint, whole or, if `model_only`, without what is no tensor."""
    facts = ckpt.facts if isinstance(ckpt.facts, FileFacts) else FileFacts()
    notes: tuple[str, ...] = ()
    if facts.kind == "module":
        contents = of_tensors(ckpt.tensors, ckpt.metadata, "module", tree=facts.tree, module=facts.module)
    else:
        tree = trees.ABSENT if model_only else ckpt.tree
        contents, notes = of_opened(tree, ckpt.tensors, ckpt.metadata, None if facts.whole else facts.module)
    if facts.graph is not None:
        notes = (*notes, f"the graph in {facts.graph.name} belongs to {ckpt.file} alone and is left out")
    kept = msgspec.structs.replace(
        contents.facts,
        origins=packed(ckpt.origins),
        surgery=list(ckpt.surgery),
        about=written(ckpt.about),
        architecture=ckpt.architecture,
    )
    return replace(contents, facts=kept, notes=(*contents.notes, *notes))


def of_opened(
    tree: Any, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str], module: ModuleSpec | None = None
) -> tuple[Contents, tuple[str, ...]]:
    """What goes into the file of an opened checkpoint: the object, or the tensors alone, with a note of why.

    The tree is ABSENT where there is none or none is wanted.
    """
    notes: tuple[str, ...] = ()
    if tree is not trees.ABSENT:
        try:
            return of_object(tree, metadata=metadata, module=module), notes
        except UnsavableError as error:
            notes = (f"the plain values are left out: {error.message}",)
    return of_tensors(tensors, metadata, module=module), notes


def of_tensors(
    tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str], kind: str = "weights", **more: Any
) -> Contents:
    """What goes into the file of opened tensors, without the object that they were in."""
    kinds = {name: tensor.kind for name, tensor in tensors.items()}
    return contents_of(dict(tensors), kinds, kind=kind, metadata=metadata, **more)


def taken_apart(obj: Any) -> tuple[dict[str, AnyTensor], dict[str, str], Any]:
    """A nested object as its tensors by name, the kind of each, and the rest as tagged JSON."""
    leaves = trees.leaves(obj)
    by_place = {(leaf.path, id(leaf.tensor)): leaf.name for leaf in leaves}
    tensors: dict[str, AnyTensor] = {leaf.name: leaf.tensor for leaf in leaves}
    tree = tagged.encode(obj, lambda path, tensor: by_place[path, id(tensor)])
    return tensors, {leaf.name: _kind(leaf) for leaf in leaves}, tree


def _kind(leaf: trees.Leaf) -> str:
    if type(leaf.tensor) is torch.Tensor and not leaf.role:  # by far the most, and quickly told
        return "tensor"
    if isinstance(leaf.tensor, nn.Parameter) or getattr(leaf.tensor, "kind", "") == "parameter":
        return "parameter"
    buffer = leaf.role in {"buffer", "transient"} or getattr(leaf.tensor, "kind", "") == "buffer"
    return "buffer" if buffer else "tensor"


def contents_of(
    tensors: Mapping[str, AnyTensor],
    kinds: Mapping[str, str],
    *,
    kind: str,
    tree: Any = msgspec.UNSET,
    module: ModuleSpec | None = None,
    origins: Origins | None = None,
    metadata: Mapping[str, str] | None = None,
    surgery: Sequence[Operation] = (),
    about: About = NOTHING,
) -> Contents:
    """Decide what is written of named tensors: each once, those on the meta device not at all.

    A tensor that is made of others is written as its parts.
    """
    for name, tensor in tensors.items():
        check_savable(name, tensor)
    notes = lost(tensors)
    devices = {name: device_of(tensor) for name, tensor in tensors.items()}
    logical, (tensors, composites) = tensors, _taken_to_parts(tensors)
    tied = tied_names(tensors)
    if composites:
        tied |= {name: first for name, first in tied_names(logical).items() if first in composites}
    empty = {name: tensor for name, tensor in tensors.items() if name not in tied and devices.get(name) == "meta"}
    own = {name: tensor for name, tensor in tensors.items() if name not in tied and name not in empty}
    specs = {name: spec_of(tensor) for name, tensor in own.items()}
    most = Limits().expanded_bytes
    if any(spec.nbytes > most for spec in {id(spec): spec for spec in specs.values()}.values()):  # they are few
        for name, tensor in own.items():
            _check_expanded(name, tensor, most)
    shared = shared_storages(own)
    if shared:
        notes.append(f"{len(shared)} tensors were views of shared storages and are written apart: {shared[0]}, ...")
    turned = [name for name, tensor in own.items() if not _is_row_major(tensor)]
    if turned:
        notes.append(f"{len(turned)} tensors are written row by row, not in their order in memory: {turned[0]}, ...")
    if composites:
        notes.append(f"{len(composites)} tensors are written as their parts: {next(iter(composites))}, ...")
    if empty:
        notes.append(f"{len(empty)} tensors on the meta device have no values to write")
    facts = FileFacts(
        kind=kind,
        header=NO_DIGEST,
        digests=dict.fromkeys(own, NO_DIGEST),
        dtypes=without_code(specs),
        empty={name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in empty.items()},
        composites=composites,
        parameters=[name for name in logical if kinds[name] == "parameter"],
        buffers=[name for name in logical if kinds[name] == "buffer"],
        requires_grad=[name for name, tensor in logical.items() if tensor.requires_grad],
        tied=tied,
        devices={name: device for name, device in devices.items() if device not in {"cpu", "meta"}},
        module=module,
        tree=tree,
        origins=origins or Origins(),
        producer=PRODUCER,
        surgery=list(surgery),
        about=written(about),
    )
    return Contents(own, specs, facts, tuple(notes), dict(metadata or {}))


def lost(tensors: Mapping[str, AnyTensor]) -> list[str]:
    """Notes on what a file cannot say of some tensors."""
    lazy = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, LazyTensor)}
    local = [name for name, tensor in lazy.items() if tensor.global_shape is not None]
    dressed = [name for name, tensor in lazy.items() if tensor.class_name or tensor.attributes is not None]
    notes = []
    if local:
        notes.append(
            f"{len(local)} tensors are the parts that one process held of distributed ones and are written as plain "
            f"tensors: {local[0]}, ..."
        )
    subclasses = [name for name in dressed if name not in set(local)]
    if subclasses:
        notes.append(f"{len(subclasses)} tensors lose their class or attributes: {subclasses[0]}, ...")
    return notes


def _taken_to_parts(tensors: Mapping[str, AnyTensor]) -> tuple[dict[str, AnyTensor], dict[str, Parts]]:
    """The tensors with each that is made of others replaced by those, and how to put them together again."""
    plain = dict(tensors)
    composites: dict[str, Parts] = {}
    known: dict[object, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Composite) or isinstance(tensor.composition, Chunked):
            continue
        del plain[name]
        if known.setdefault(tensor.identity, name) != name:
            continue  # tied to one that was taken apart
        tensor.load()  # parts that do not fit together are refused now, and not by whoever reads the new file
        names: dict[str, str] = {}
        for key, part in tensor.parts.items():
            names[key] = f"{name}:{key}"
            while names[key] in plain or names[key] in tensors:
                names[key] += ":"
            plain[names[key]] = part
        options = {key: value for key, value in asdict(tensor.composition).items() if key != "layout"}
        composites[name] = Parts(
            tensor.layout, dtype_name(tensor.dtype), tensor.spec.shape, names, tagged.encode(options)
        )
    return plain, composites


def _is_row_major(tensor: AnyTensor) -> bool:
    if isinstance(tensor, torch.Tensor):
        return tensor.is_contiguous()
    return tensor.numel() < 2 or tensor.stride == contiguous_stride(tensor.spec.shape)


def device_of(tensor: AnyTensor) -> str:
    """The device as text."""
    if isinstance(tensor, torch.Tensor) and tensor.is_cpu:
        return "cpu"
    return _device_text(tensor.device)


@cache
def _device_text(device: Any) -> str:
    return str(device)


def _check_expanded(name: str, tensor: AnyTensor, most: int) -> None:
    """A tensor that repeats a small storage would fill the disk when it is written out.

    Raises:
        UnsavableError: it is larger than its storage and than `most`, which is Limits.expanded_bytes.
    """
    if isinstance(tensor, LazyTensor):
        parts = tensor.parts.values() if tensor.parts else (tensor,)
        held = sum(part.storage.nbytes for part in parts if part.storage is not None)
    else:
        held = tensor.untyped_storage().nbytes()
    nbytes = spec_of(tensor).nbytes
    if nbytes > max(most, held):
        raise UnsavableError(
            f"the tensor {name!r} repeats {held:,} bytes to {nbytes:,}",
            path=name,
            hint="save it before it is expanded",
        )
