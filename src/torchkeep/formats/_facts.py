"""What torchkeep wrote beside the tensors of a safetensors file, read back: flags, ties, dtypes, digests, the tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
from blake3 import blake3

from ..core import tagged
from ..core.about import About, Parent, with_parents
from ..core.about import read as about_read
from ..core.architecture import Architecture
from ..core.checkpoint import Checkpoint, Provenance, SavedModule, describe_tree
from ..core.composite import QUANTIZED, Composite, Composition, Compressed, Coo, Nested, Quantized
from ..core.facts import KEY, NO_DIGEST, VERSION, FileFacts, Parts, Runs, listed
from ..core.freezespec import Frozen
from ..core.limits import Limits
from ..core.made import Later, Made
from ..core.modulespec import ModuleSpec
from ..core.origin import Origins, unpacked
from ..core.source import Source
from ..core.tensors import LazyTensor, TensorSpec, check_geometry, contiguous_stride, dtype_name, torch_dtype
from ..core.tree import ABSENT, leaves
from ..errors import CorruptCheckpointError, UnsupportedFeatureError
from ._short import Digests, Lengthened, chosen

_PLACE = f"metadata {KEY!r}"
_QUANTIZED = {dtype_name(dtype): dtype for dtype in QUANTIZED}
_COMPRESSED = ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_PARTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_compressed": ("compressed_indices", "plain_indices", "values"),
    "nested": ("buffer", "sizes", "strides", "offsets"),
}
_NOTHING = msgspec.Raw(b"")
_SHORT, _FEW = 1 << 13, 100  # bytes of tree and module, and tensors, up to which they are decoded at once
_UNREADABLE = (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class _WhenAsked:
    """An attribute of a checkpoint that comes, with those that belong to it, when it is asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ckpt: Any, owner: type) -> Any:
        if ckpt is None:
            return self
        ckpt.__dict__.update(ckpt._asked(self._name))
        return ckpt.__dict__[self._name]


def _when_asked() -> Any:
    return _WhenAsked()


class OnDisk(FileFacts, frozen=True):
    """Facts as they stand in a file, of which the parts that may be long are not decoded."""

    hashes: msgspec.Raw = _NOTHING  # type: ignore[assignment]
    outline: msgspec.Raw = _NOTHING
    module: msgspec.Raw = _NOTHING  # type: ignore[assignment]
    tree: msgspec.Raw = _NOTHING
    origins: msgspec.Raw = _NOTHING  # type: ignore[assignment]
    about: msgspec.Raw = _NOTHING  # type: ignore[assignment]
    architecture: msgspec.Raw = _NOTHING  # type: ignore[assignment]


def _held(name: str) -> Any:
    """A member of FileFacts that may be held as a Later."""
    member: Any = FileFacts.__dict__[name]

    def get(facts: FileFacts) -> Any:
        held = member.__get__(facts)
        return held.get() if isinstance(held, Later) else held

    return property(get)


class SavedFacts(FileFacts, frozen=True):
    """The facts of an opened file. What may be long in them is decoded when it is asked for."""

    origins = _held("origins")
    module = _held("module")
    tree = _held("tree")
    about = _held("about")
    architecture = _held("architecture")


class SavedCheckpoint(Checkpoint):
    """A checkpoint of which the tree and the modules are read when they are asked for."""

    tree = _when_asked()
    kind = _when_asked()
    model_key = _when_asked()
    candidates = _when_asked()
    modules = _when_asked()
    frozen = _when_asked()
    origins = _when_asked()
    about = _when_asked()
    architecture = _when_asked()


def read_facts(metadata: Mapping[str, str], raw_header: bytes, file: str) -> OnDisk | None:
    """The facts in a file's metadata, None where another program wrote the file.

    Raises:
        CorruptCheckpointError: they cannot be read, or the header changed after it was written.
        UnsupportedFeatureError: a later version of torchkeep wrote them.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    with _readable(file):
        facts = msgspec.json.decode(text, type=OnDisk)
    if facts.version > VERSION:
        raise UnsupportedFeatureError(
            f"is version {facts.version}, this torchkeep reads up to {VERSION}",
            file=file,
            place=_PLACE,
            hint="upgrade torchkeep",
        )
    if facts.kind == "pack":  # the name of a pack is its digest
        return facts
    if _digest_of(raw_header, facts.header.encode()) != facts.header:
        raise CorruptCheckpointError("changed after it was written", file=file, place="header", hint="use another copy")
    return facts


def _digest_of(header: bytes, own: bytes) -> str:
    """BLAKE3 of a header with zeros in the place of its own digest."""
    at = header.find(own)
    if len(own) != len(NO_DIGEST) or at < 0:
        return "none"
    rest = memoryview(header)[at + len(own) :]
    return blake3(memoryview(header)[:at]).update(NO_DIGEST.encode()).update(rest).hexdigest()


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """What cannot be decoded is damage of the file; its own digest may be right where somebody made it so."""
    try:
        yield
    except CorruptCheckpointError as error:
        error.file, error.place = file, _PLACE
        raise
    except _UNREADABLE as error:
        raise CorruptCheckpointError(f"cannot be read: {error}", file=file, place=_PLACE) from error


def with_facts(ckpt: Checkpoint, disk: OnDisk, source: Source, limits: Limits) -> Checkpoint:
    """The checkpoint as it was saved: logical dtypes, flags, tied names, and the tree of the saved object.

    What is long, the tree and the description of a module, is decoded when it is asked for: the header has its own
    digest, so damage to them is found now, and what cannot be decoded nevertheless raises CorruptCheckpointError
    then. What is short is decoded now.

    Args:
        ckpt: as it is without the facts, its tensors in the order of the header where that is what the facts go by.
        disk: the facts.
        source: of the tensors without bytes, and of those made of others.
        limits: bounds the walk over the tree.
    """
    with _readable(source.name):
        named = _expanded(disk, list(ckpt.tensors))
    tensors = _named(ckpt.tensors, named, source)
    facts = _saved(named, tensors, source.name)
    made = SavedCheckpoint.__new__(SavedCheckpoint)
    made.__dict__.update(
        file=ckpt.file,
        format=ckpt.format,
        tensors=tensors,
        metadata={key: value for key, value in ckpt.metadata.items() if key != KEY},
        findings=ckpt.findings,
        provenance=Provenance(_producer(facts), ("torchkeep names itself in the file",)),
        facts=facts,
        surgery=tuple(facts.surgery),
        optimizers={},
        _asked=lambda name: _described(name, facts, tensors, source.name, limits),
    )
    if facts.kind != "object":
        kind = "module" if facts.kind == "module" else "weights"
        made.__dict__.update(tree=ABSENT, kind=kind, model_key="", candidates=())
    if sum(map(_size, (disk.tree, disk.module, disk.outline))) <= _SHORT and len(tensors) <= _FEW:
        _ = made.tree, made.modules, facts.tree
    return made


def _saved(facts: FileFacts, tensors: Mapping[str, LazyTensor], file: str) -> FileFacts:
    """The facts with what may be long to be decoded later."""
    fields = {name: getattr(facts, name) for name in facts.__struct_fields__}
    raw_module, raw_tree = fields["outline" if facts.version > 1 else "module"], fields["tree"]
    raw_origins, raw_about, raw_architecture = fields["origins"], fields["about"], fields["architecture"]

    def tree() -> Any:
        with _readable(file):
            held = msgspec.json.decode(raw_tree)
            return Lengthened(list(tensors)).tree(held) if facts.version > 1 else held

    def module() -> ModuleSpec | None:
        with _readable(file):
            if facts.version > 1:
                held = msgspec.json.decode(raw_module)
                return Lengthened(list(tensors)).module(held, tensors.__getitem__, facts.tied)
            return msgspec.json.decode(raw_module, type=ModuleSpec | None)

    def origins() -> Origins:
        with _readable(file):
            return msgspec.json.decode(raw_origins, type=Origins)

    def about() -> About:
        with _readable(file):
            return msgspec.json.decode(raw_about, type=About)

    def architecture() -> Architecture | None:
        with _readable(file):
            return msgspec.json.decode(raw_architecture, type=Architecture | None)

    fields["tree"] = Later(tree) if _size(raw_tree) else msgspec.UNSET
    fields["module"] = Later(module) if _size(raw_module) else None
    fields["origins"] = Later(origins) if _size(raw_origins) else Origins()
    fields["about"] = Later(about) if _size(raw_about) else About()
    fields["architecture"] = Later(architecture) if _size(raw_architecture) else None
    fields |= {"outline": msgspec.UNSET, "hashes": ""}
    return SavedFacts(**fields)


def _size(raw: msgspec.Raw) -> int:
    return memoryview(raw).nbytes


def _expanded(disk: OnDisk, stored: list[str]) -> OnDisk:
    """The facts with names in the place of their numbers."""
    if disk.version < 2 or disk.kind == "pack":
        return disk
    names = listed(stored, disk)
    devices = [(device, name) for device, runs in disk.runs.devices.items() for name in chosen(runs, names)]
    return msgspec.structs.replace(
        disk,
        hashes=_NOTHING,
        runs=Runs(),
        digests=Digests(stored, disk.hashes),
        parameters=chosen(disk.runs.parameters, names),
        buffers=chosen(disk.runs.buffers, names),
        requires_grad=chosen(disk.runs.requires_grad, names),
        devices={name: device for device, name in devices},
    )


def _described(
    name: str, facts: FileFacts, tensors: Mapping[str, LazyTensor], file: str, limits: Limits
) -> dict[str, Any]:
    if name == "origins":
        with _readable(file):
            return {"origins": unpacked(facts.origins)}
    if name == "about":
        with _readable(file):
            return {"about": with_parents(about_read(facts.about), map(Parent, facts.origins.files))}
    if name == "architecture":
        return {"architecture": facts.architecture}
    if name in {"modules", "frozen"}:
        return {"modules": _modules(facts), "frozen": Frozen() if facts.module is None else facts.module.as_frozen}
    tree = _tree(facts, tensors, file)
    kind, model_key, candidates = ("weights", "", ()) if tree is ABSENT else describe_tree(tree, leaves(tree, limits))
    return {"tree": tree, "kind": kind, "model_key": model_key, "candidates": candidates}


def _named(stored: Mapping[str, LazyTensor], facts: FileFacts, source: Source) -> Mapping[str, LazyTensor]:
    """The tensors under the names that the object had, each made when it is asked for."""
    special = {name: _logical(name, stored[name], facts, source.name) for name in facts.dtypes if name in stored}
    firsts: dict[str, str] = {}
    names: Mapping[str, Any] = stored
    if facts.empty or facts.tied or facts.composites:
        names = firsts = _firsts(special, stored, facts, source)
    if firsts or facts.version < 2:
        place = {name: at for at, name in enumerate(listed(list(facts.digests), facts))}
        names = dict.fromkeys(sorted(names, key=lambda name: place.get(name, len(place))))
    parameters, buffers, grads = set(facts.parameters), set(facts.buffers), set(facts.requires_grad)

    def make(name: str, _: Any) -> LazyTensor:
        first = firsts.get(name, name)
        base = special[first] if first in special else stored[first]
        kind = "parameter" if name in parameters else "buffer" if name in buffers else "tensor"
        device = facts.devices.get(name, base.device)
        if (kind, name in grads, device) == (base.kind, base.requires_grad, base.device):
            return base
        return base.replace(kind=kind, requires_grad=name in grads, device=device)

    return Made(names, make)


def _firsts(
    special: dict[str, LazyTensor], stored: Mapping[str, LazyTensor], facts: FileFacts, source: Source
) -> dict[str, str]:
    """Each name and the one it is tied to, or itself. Tensors without bytes and wholes are made now, into `special`."""
    for name, (dtype, shape) in facts.empty.items():
        spec = TensorSpec(torch_dtype(dtype, file=source.name), tuple(shape))
        special[name] = LazyTensor(source, None, spec, contiguous_stride(spec.shape), device="meta")
    firsts = {name: name for name in (*stored, *facts.empty)}
    _tie(firsts, {name: first for name, first in facts.tied.items() if first not in facts.composites}, source.name)
    parts = Made(firsts, lambda _, first: special[first] if first in special else stored[first])
    wholes = {name: _whole(name, made, parts, source) for name, made in facts.composites.items()}
    owners = {part: name for name, made in facts.composites.items() for part in made.parts.values()}
    firsts = {name: first for name, first in firsts.items() if name not in owners} | {name: name for name in wholes}
    special |= wholes
    _tie(firsts, {name: first for name, first in facts.tied.items() if first in facts.composites}, source.name)
    return firsts


def _logical(name: str, tensor: LazyTensor, facts: FileFacts, file: str) -> LazyTensor:
    dtype, shape = facts.dtypes[name]
    spec = TensorSpec(torch_dtype(dtype, file=file, place=f"tensor {name!r}"), tuple(shape))
    if any(size < 0 for size in spec.shape) or spec.nbytes != tensor.nbytes or tensor.dtype.itemsize != 1:
        raise CorruptCheckpointError(
            f"is said to be {spec} and has {tensor.nbytes:,} bytes", file=file, place=f"tensor {name!r}"
        )
    return tensor.replace(spec=spec, stride=contiguous_stride(spec.shape))


def _tie(firsts: dict[str, str], tied: Mapping[str, str], file: str) -> None:
    for name, canonical in tied.items():
        if canonical not in firsts or name in firsts:
            raise CorruptCheckpointError(f"ties {name!r} to {canonical!r}, which is not there", file=file, place=_PLACE)
        firsts[name] = firsts[canonical]


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
        origins=first.origins,
        about=first.about,
        metadata=first.metadata,
        provenance=first.provenance,
        surgery=first.surgery,
        architecture=first.architecture,
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
