"""A checkpoint as editing sees it: the weights of one model by name, and what is known of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ..contents import taken_apart
from ..core import tagged
from ..core import tree as trees
from ..core.about import About
from ..core.architecture import Architecture
from ..core.checkpoint import EDITED, Checkpoint, Finding, Provenance, SavedModule
from ..core.facts import FileFacts
from ..core.freezespec import Frozen
from ..core.lineage import parent_of
from ..core.live import is_extra_state
from ..core.modulespec import ModuleEntry, ModuleSpec, TensorEntry
from ..core.names import Selector, nearest
from ..core.operations import Operation
from ..core.origin import Origin
from ..core.source import Slice
from ..core.table import shorten
from ..core.tensors import LazyTensor, StorageRef, dtype_name
from ..errors import SelectorError
from ..pointing import checkpoint_of
from .carrying import Moves, moved_paths, moved_spec

_RUN = "torchkeep_run"


@dataclass(frozen=True)
class Flat:
    """The weights of one model.

    Attributes:
        title: the file, for messages.
        tensors: by name, in the order of the file.
        extra: the extra state of modules, by its name in a state dict, tensors in it still lazy.
        whole: it is all of a model that torchkeep saved.
        module: the description of the model, where the file has one.
        versions: of the modules' parts of the state dict, as torch keeps them; None where there are none.
        modules: what else is known of its modules.
        digests: BLAKE3 of tensors, as far as the file has them.
        origins: where tensors were loaded from before.
        about: what is known of the model that stays true, and the files it was made of.
        surgery, architecture: what was done to the structure of the model, and what makes it again, as long as it is
            whole.
        metadata, findings, provenance: those of the file.
    """

    title: str
    tensors: Mapping[str, LazyTensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    module: ModuleSpec | None = None
    versions: Mapping[str, Any] | None = None
    modules: tuple[SavedModule, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    surgery: tuple[Operation, ...] = ()
    about: About = field(default_factory=About)
    architecture: Architecture | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def names(self) -> list[str]:
        """What can be selected: tensors, and extra state."""
        return [*self.tensors, *self.extra]

    def chosen(self, selection: Any) -> set[str]:
        """The names that a selector chooses.

        Raises:
            SelectorError: some part of it chooses nothing.
        """
        selector, blocks = Selector.of(selection), blocks_in(self.tensors)
        for part in selector.unused(self.names, blocks):
            raise SelectorError(
                f"{part!r} matches nothing in {self.title}",
                hint=self.advice(part) or f"the blocks are {shorten(blocks)}",
            )
        found = set(selector.choose(self.names, blocks))
        if not found:
            raise SelectorError(f"{str(selector)!r} selects nothing in {self.title}", hint=self.advice(str(selector)))
        return found

    def advice(self, wanted: str) -> str:
        """The names that look most like one that is not there."""
        paths = {name.rpartition(".")[0] for name in self.names} - {""}
        close = nearest(wanted.removeprefix("re:").strip("*."), [*self.names, *sorted(paths)])
        return f"the nearest names are {', '.join(map(repr, close))}" if close else ""

    def moved(self, moves: Moves) -> Flat:
        """Only what is in `moves`, under its new names, with what is known of it where that stays true."""
        paths = moved_paths([one.path for one in self.modules], self.names, moves)
        versions = None
        if self.versions is not None:
            there = moved_paths(sorted(self.versions), self.names, moves)
            versions = OrderedDict((there[path], held) for path, held in self.versions.items() if path in there)
        untouched = all(moves.get(name) == name for name in self.names)
        return replace(
            self,
            tensors={moves[name]: tensor for name, tensor in self.tensors.items() if name in moves},
            extra={moves[name]: value for name, value in self.extra.items() if name in moves},
            whole=self.whole and untouched,
            module=None if self.module is None else moved_spec(self.module, moves),
            versions=versions,
            modules=tuple(replace(one, path=paths[one.path]) for one in self.modules if one.path in paths),
            digests={moves[name]: digest for name, digest in self.digests.items() if name in moves},
            origins={moves[name]: origin for name, origin in self.origins.items() if name in moves},
            surgery=self.surgery if untouched else (),
            about=self.about if all(name in moves for name in self.names) else classless(self.about),
            architecture=self.architecture if untouched else None,
        )

    def checkpoint(self, what: str, *said: Finding) -> Checkpoint:
        """The checkpoint that the caller gets.

        Args:
            what: was done, for whoever asks where it comes from.
            said: what the caller should know.
        """
        facts = FileFacts(kind="weights", digests=self.digests, module=self.module)
        tensors: Mapping[str, LazyTensor] = self.tensors
        tree: Any = trees.ABSENT
        if self.whole:
            inside, _, held = taken_apart(dict(self.extra)) if self.extra else ({}, {}, msgspec.UNSET)
            facts = msgspec.structs.replace(facts, kind="module", tree=held)
            tensors = {**tensors, **{name: tensor for name, tensor in inside.items() if isinstance(tensor, LazyTensor)}}
        elif self.extra or self.versions:
            tree = OrderedDict([*tensors.items(), *self.extra.items()])
            if self.versions:
                tree._metadata = self.versions
            tensors = {leaf.name: leaf.tensor for leaf in trees.leaves(tree)}
        modules = self.modules
        if self.module is not None:
            modules = tuple(SavedModule(one.path, one.class_name, one.training) for one in self.module.modules)
        return Checkpoint(
            self.title,
            EDITED,
            tensors,
            tree=tree,
            metadata=self.metadata,
            findings=(*self.findings, *said),
            provenance=replace(self.provenance, reasons=(*self.provenance.reasons, what)),
            kind="module" if self.whole else "weights",
            modules=modules,
            facts=facts,
            frozen=Frozen() if self.module is None else self.module.as_frozen,
            origins=self.origins,
            surgery=self.surgery,
            about=self.about,
            architecture=self.architecture if self.whole else None,
        )


def standing(ckpt: Checkpoint) -> Checkpoint:
    """A checkpoint as it can be written: one of a run with what was equal apart, and the extra state in its place."""
    return flatten(ckpt).checkpoint("written") if ckpt.format == _RUN else ckpt


def note(what: str) -> Finding:
    """Something about an edit that the caller should know."""
    return Finding(EDITED, "info", what)


def flatten(given: Any) -> Flat:
    """The weights of the model in whatever the caller named.

    Raises:
        OpenError, LoadError: there is nothing that can be opened.
    """
    ckpt = checkpoint_of(given)
    model = ckpt.model
    extra = extra_state_of(model)
    inside = tuple(f"{name}." for name in extra)
    held = {
        name: tensor
        for name, tensor in model.tensors.items()
        if not is_extra_state(name) and not (inside and name.startswith(inside))
    }
    digests = digests_of(ckpt)
    if ckpt.format == _RUN:
        held = _apart(held, ckpt.facts)
    spec = _spec_of(model, held)
    return Flat(
        os.fspath(ckpt.file),
        held,
        extra,
        whole=model.kind == "module" and model.facts is not None,
        module=spec,
        versions=getattr(model.tree, "_metadata", None),
        modules=model.modules,
        digests={name: digests[name] for name in held if name in digests},
        origins={name: origin for name, origin in model.origins.items() if name in held},
        surgery=model.surgery,
        about=model.about if ckpt.format == EDITED else _inherited(ckpt),
        architecture=model.architecture,
        metadata=model.metadata,
        findings=(*ckpt.findings, *_left_out(ckpt)),
        provenance=ckpt.provenance,
    )


def _inherited(ckpt: Checkpoint) -> About:
    """What is said of a file, for what is made of it: where it came from is said of it as the parent."""
    return msgspec.structs.replace(ckpt.about, source="", parents=(parent_of(ckpt),))


def classless(about: About) -> About:
    """What stays true of a model that lost some of its tensors, perhaps those of its head."""
    return msgspec.structs.replace(about, classes=())


def extra_state_of(model: Checkpoint) -> dict[str, Any]:
    """The extra state of modules: beside the tensors of a state dict, or in the facts of a saved model."""
    beside: Any = model.tree if isinstance(model.tree, Mapping) else {}
    facts = model.facts
    if isinstance(facts, FileFacts) and facts.kind == "module" and facts.tree is not msgspec.UNSET:
        beside = tagged.decode(facts.tree, lambda name: model.tensors[name])
    return {name: value for name, value in beside.items() if isinstance(name, str) and is_extra_state(name)}


def digests_of(ckpt: Checkpoint, *, whole: bool = False) -> dict[str, str]:
    """BLAKE3 of the model's tensors, by their names in the model, or of all, as far as the file has them."""
    facts = ckpt.facts
    if not isinstance(facts, FileFacts):
        return {}
    lead = f"{ckpt.model_key}." if ckpt.model_key and not whole else ""
    found = {}
    for full in ckpt.tensors:
        digest = facts.digests.get(facts.tied.get(full, full))
        if digest and full.startswith(lead):
            found[full[len(lead) :]] = digest
    return found


def _apart(tensors: Mapping[str, LazyTensor], facts: FileFacts) -> dict[str, LazyTensor]:
    """Tensors of a run, which keeps equal ones once, so that only those are one that were one in the model."""
    kinds = dict.fromkeys(facts.parameters, "parameter") | dict.fromkeys(facts.buffers, "buffer")
    storages: dict[str, StorageRef | None] = {}

    def own(name: str, tensor: LazyTensor) -> LazyTensor:
        first = facts.tied.get(name, name)
        if first not in storages:
            old = tensor.storage
            storages[first] = old
            if old is not None and old.offset is not None:
                inner = Slice(old.source or tensor.source, old.offset, old.nbytes)
                storages[first] = StorageRef(old.nbytes, 0, source=inner)
        return tensor.replace(storage=storages[first], kind=kinds.get(name, tensor.kind))

    return {name: own(name, tensor) for name, tensor in tensors.items()}


def _spec_of(model: Checkpoint, tensors: Mapping[str, LazyTensor]) -> ModuleSpec | None:
    """The description of the model in the file, or one of what was frozen where there is no more."""
    facts, frozen = model.facts, model.frozen
    if isinstance(facts, FileFacts) and facts.module is not None:
        return facts.module
    if not frozen:
        return None
    entries = (
        TensorEntry(name, dtype_name(tensor.dtype), tensor.spec.shape, tensor.device, "parameter")
        for name, tensor in tensors.items()
        if name in frozen.still
    )
    held = tuple(ModuleEntry(path, "", training=False, frozen=True) for path in frozen.held)
    return ModuleSpec("", held, tuple(entries), frozen.state)


def _left_out(ckpt: Checkpoint) -> tuple[Finding, ...]:
    if not ckpt.model_key:
        return ()
    others = [str(key) for key in ckpt.tree if key != ckpt.model_key] if isinstance(ckpt.tree, Mapping) else []
    beside = f"; {shorten(others, 4)} beside it are left out" if others else ""
    return (note(f"of {ckpt.file} the model under {ckpt.model_key!r} is taken{beside}"),)


def blocks_in(names: Mapping[str, Any]) -> list[str]:
    """The top-level blocks of dotted names, for `first n` and `last n`, seen through a prefix that all share."""
    lead = ""
    while True:
        below = [name[len(lead) :] for name in names]
        tops = list(dict.fromkeys(name.partition(".")[0] for name in below if "." in name))
        if len(tops) != 1 or any("." not in name for name in below):
            return [lead + top for top in tops] or [lead.removesuffix(".")]
        lead += f"{tops[0]}."


def cast_extra(extra: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Extra state with each tensor in it converted."""
    return {name: trees.rebuild(value, convert) for name, value in extra.items()}
