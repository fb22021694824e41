"""An opened checkpoint: a read-only mapping from names to lazy tensors, and all that is known about the file."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ..errors import SelectorError
from . import tree as trees
from .about import About
from .architecture import Architecture
from .freezespec import Frozen
from .names import fold, nearest
from .operations import Operation
from .origin import Origin, counted
from .table import Table, human_bytes, human_count, shorten
from .tensors import LazyTensor, TensorSpec

# Keys under which training scripts keep the model's weights, in the order in which they are preferred.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "module",
    "params",
    "params_ema",
    "model_ema",
    "ema",
    "weights",
    "state_dict_ema",
    "ema_state_dict",
    "model_state_dict_ema",
    "ema_model",
)

EDITED = "edited"  # the format of what a function of `tk.edit` made, and the code of what it has to say
SEVERITIES = ("info", "warning", "danger")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a file that its reader should know.

    Attributes:
        code: stable and short, e.g. `unknown-global`, `trailing-data`.
        severity: `info`, `warning` or `danger`.
        message: one sentence.
        place: where in the file, may be empty.
    """

    code: str
    severity: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who wrote a file, as far as the file shows.

    Attributes:
        producer: e.g. `torch 2.7 or later`, `torchkeep 0.1.0 with torch 2.13.0`; empty when nothing tells.
        reasons: what the producer was concluded from.
        byte_order: `little` or `big`, of the elements of tensors.
        optimizer: the class of the optimizer whose state is in the file, as far as its options tell: `SGD`.
    """

    producer: str = ""
    reasons: tuple[str, ...] = ()
    byte_order: str = "little"
    optimizer: str = ""


@dataclass(frozen=True, slots=True)
class SavedModule:
    """One module of a pickled or described model, as the file tells it; of a plain state dict only path and version.

    Attributes:
        path: dotted, from the saved object's root; empty for the root itself.
        class_name: `module.name` of its class; empty where the file does not say.
        training: its training flag, None where the file does not say.
        attributes: what it held beside tensors and modules: hyper-parameters, configuration. Inert.
        children: names of the modules in it.
        parameters: name -> requires_grad, or None for a parameter that was registered as None.
        buffers: names of its buffers.
        hooks: kind, e.g. `_forward_hooks` -> names of the functions and classes that were hooked in.
        source: source text of its class, where the file has it.
        version: of its part of the state dict, as `_metadata` has it.
    """

    path: str
    class_name: str = ""
    training: bool | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    parameters: Mapping[str, bool | None] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    version: int | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, LazyTensor]):
    """A file of tensors, opened: `ckpt["fc.weight"].load()`, `ckpt.model`, `ckpt.sub("layer4")`, `print(ckpt)`.

    Attributes:
        file: as the caller named it.
        format: the name of its format: `safetensors`, `torch_zip`, `torch_legacy`, `dcp`, `torchscript` ...
        tensors: name -> LazyTensor, in the order of the file.
        tree: the whole saved object with lazy tensors and inert records in it; ABSENT where the format has only names.
        metadata: the format's own text metadata.
        findings: what is odd or dangerous about the file.
        provenance: who wrote it.
        kind: `weights`, `module`, `training`, `tensors` or `object`.
        model_key: the key under which `.model` found the model's weights; empty when they are the whole file.
        candidates: every key under which a model could have been meant.
        modules: the modules of a pickled or described model; of a state dict those that its `_metadata` names.
        facts: what the file says of its tensors beyond the tensors, e.g. digests, when torchkeep wrote it.
        frozen: how the model was frozen, when torchkeep saved it.
        surgery: what `tk.surgery` had done to the model, when torchkeep saved it; `tk.surgery.replay` does it again.
        optimizers: the states of optimizers by the names of their parameters, when a run of torchkeep saved them.
        origins: where tensors were loaded from before torchkeep saved them, by name.
        about: licence, source, training data, classes, preprocessing, a text, and what the model was made of.
        architecture: what it takes to make the model again, when torchkeep saved a whole one; `tk.load_model` does.
    """

    file: str
    format: str
    tensors: Mapping[str, LazyTensor]
    tree: Any = trees.ABSENT
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    provenance: Provenance = Provenance()
    kind: str = "weights"
    model_key: str = ""
    candidates: tuple[str, ...] = ()
    modules: tuple[SavedModule, ...] = ()
    facts: Any = None
    frozen: Frozen = field(default_factory=Frozen)
    surgery: tuple[Operation, ...] = ()
    optimizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    about: About = field(default_factory=About)
    architecture: Architecture | None = None

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return self.tensors[name]
        except KeyError:
            close = nearest(name, self.tensors)
            hint = f"; the nearest names are {', '.join(map(repr, close))}" if close else ""
            raise KeyError(f"{self.file} has no tensor {name!r}{hint}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def keys(self) -> KeysView[str]:
        """The names, in the order of the file."""
        return self.tensors.keys()

    def values(self) -> ValuesView[LazyTensor]:
        """The tensors, in the order of the file."""
        return self.tensors.values()

    def items(self) -> ItemsView[str, LazyTensor]:
        """Names and tensors, in the order of the file."""
        return self.tensors.items()

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """dtype and shape of every tensor."""
        return {name: tensor.spec for name, tensor in self.tensors.items()}

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors, those with several names counted once."""
        return sum(tensor.nbytes for tensor in {tensor.identity: tensor for tensor in self.tensors.values()}.values())

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The devices the tensors were saved from."""
        return tuple(sorted({tensor.device for tensor in self.tensors.values()}))

    @property
    def model(self) -> Checkpoint:
        """The model's weights, found inside the containers that training scripts use.

        `model_key` names the container that was chosen and `candidates` all that could have been meant. Where
        there is no such container, the result is the checkpoint itself. Of a pickled module it is the state dict:
        tensors that are mere attributes, and buffers that are not persistent, are left out.
        """
        found = self.sub(self.model_key) if self.model_key else self
        if not (isinstance(found.tree, trees.Record) and found.tree.is_module):
            return found
        state = {leaf.name for leaf in trees.leaves(found.tree) if leaf.role in {"parameter", "buffer"}}
        return replace(found, tensors={name: tensor for name, tensor in found.tensors.items() if name in state})

    def sub(self, prefix: str) -> Checkpoint:
        """The tensors below a name, with the prefix taken off, as a checkpoint of its own.

        Raises:
            SelectorError: nothing lies below this name.
        """
        lead = prefix + "."
        below = {name[len(lead) :]: tensor for name, tensor in self.tensors.items() if name.startswith(lead)}
        if not below:
            close = nearest(prefix, {name.rpartition(".")[0] for name in self.tensors} - {""})
            hint = (
                f"the nearest are {', '.join(map(repr, close))}" if close else "print the checkpoint to see its names"
            )
            raise SelectorError(f"{self.file} has no tensors below {prefix!r}", hint=hint)
        inside = self.tree.get(prefix, trees.ABSENT) if isinstance(self.tree, dict) else trees.ABSENT
        within = tuple(
            replace(module, path=module.path[len(lead) :])
            for module in self.modules
            if module.path == prefix or module.path.startswith(lead)
        )
        return Checkpoint(
            self.file,
            self.format,
            below,
            tree=inside,
            metadata=self.metadata,
            findings=self.findings,
            provenance=self.provenance,
            kind="module" if isinstance(inside, trees.Record) else "weights",
            modules=within,
            origins={name[len(lead) :]: origin for name, origin in self.origins.items() if name.startswith(lead)},
            about=self.about,
        )

    def load(self, device: torch.device | str | None = None) -> dict[str, torch.Tensor]:
        """Every tensor by name, loaded: `model.load_state_dict(ckpt.model.load())`."""
        return {name: tensor.load(device) for name, tensor in self.tensors.items()}

    def table(self) -> Table:
        """What is in it, folded for people."""
        rows = []
        for name, members in fold(self.tensors):
            first = self.tensors[members[0]]
            specs = {str(self.tensors[member].spec) for member in members}
            rows.append(
                (
                    name or "(the object itself)",
                    str(first.spec) if len(specs) == 1 else f"{len(specs)} shapes",
                    str(len(members)),
                    human_bytes(sum(self.tensors[member].nbytes for member in members)),
                    ", ".join(sorted({self.tensors[member].device for member in members})),
                    _share([self.tensors[member].requires_grad for member in members]),
                )
            )
        elements = sum(tensor.numel() for tensor in self.tensors.values())
        container = f"{self.model_key} (of {', '.join(self.candidates)})" if self.model_key else ""
        return Table(
            title=str(self.file),
            facts=(
                ("format", self.format),
                ("kind", self.kind),
                ("tensors", f"{len(self)} ({human_count(elements)} elements, {human_bytes(self.nbytes)})"),
                ("devices", ", ".join(self.devices)),
                ("producer", self.provenance.producer),
                ("byte order", "" if self.provenance.byte_order == "little" else self.provenance.byte_order),
                ("optimizer", self.provenance.optimizer),
                ("model under", container),
                ("loaded from", counted(self.origins)),
                ("modules", shorten(sorted({module.class_name for module in self.modules if module.class_name}))),
                *self.about.lines(short=True),
                ("graph", self._graph()),
            ),
            columns=("name", "tensor", "count", "size", "device", "grad"),
            rows=tuple(rows),
            notes=(*map(str, self.findings), *_listed(self.surgery)),
        )

    def _graph(self) -> str:
        graph = getattr(self.facts, "graph", None)
        return f"{graph.name}, exported in {graph.mode} mode" if graph else ""

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return f"<Checkpoint {self.file!r} {self.format} {self.kind}: {len(self)} tensors, {human_bytes(self.nbytes)}>"


def _listed(operations: tuple[Operation, ...], most: int = 20) -> list[str]:
    lines = [f"surgery: {operation!s:.500}" for operation in operations[:most]]
    return [*lines, f"and {len(operations) - most} more operations"] if len(operations) > most else lines


def _share(flags: list[bool]) -> str:
    return "yes" if all(flags) else "no" if not any(flags) else f"{sum(flags)} of {len(flags)}"


def describe_tree(tree: Any, leaves: list[trees.Leaf]) -> tuple[str, str, tuple[str, ...]]:
    """What a saved object is: its kind, the key of the model in it, and every key that could be the model.

    The keys of CONTAINERS count when they hold tensors; so does any key with a pickled module under it. It is a
    training checkpoint when the state of an optimizer lies beside them.
    """
    if isinstance(tree, trees.Record) and tree.is_module:
        return "module", "", ()
    if not leaves:
        return "object", "", ()
    if not isinstance(tree, dict):
        return "tensors" if isinstance(tree, (list, tuple)) or trees.as_tensor(tree) is not None else "object", "", ()
    tops = {leaf.path[0] for leaf in leaves if len(leaf.path) > 1}
    held = [key for key in CONTAINERS if key in tops and trees.is_container(tree.get(key))]
    held += [
        key
        for key, child in tree.items()
        if isinstance(key, str) and key not in held and isinstance(child, trees.Record) and child.is_module
    ]
    optimizing = any(_is_optimizer(child) for child in tree.values())
    if held:
        return ("training" if optimizing else "weights"), held[0], tuple(held)
    if optimizing or _is_optimizer(tree):
        return "object", "", ()
    plain = all(trees.as_tensor(child) is not None for child in tree.values())
    nested = all(trees.is_container(child) or trees.as_tensor(child) is not None for child in tree.values())
    return ("weights" if plain or nested else "object"), "", ()


def _is_optimizer(node: Any) -> bool:
    """Whether this is the state of an optimizer, a list or dict of such states, or a pickled optimizer."""
    if isinstance(node, trees.Record):
        return isinstance(node.state, dict) and not node.is_module and _is_optimizer(node.state)
    if isinstance(node, (list, tuple)):
        return bool(node) and all(isinstance(item, dict) and {"state", "param_groups"} <= item.keys() for item in node)
    if not isinstance(node, dict):
        return False
    return {"state", "param_groups"} <= node.keys() or (bool(node) and _is_optimizer(list(node.values())))
