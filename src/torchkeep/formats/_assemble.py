"""From an unpickled object to a Checkpoint: names, kinds, modules, findings, and who wrote the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core import tree as trees
from ..core.checkpoint import Checkpoint, Finding, Provenance, SavedModule, describe_tree
from ..core.limits import Limits
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import OpenError
from ._names import findings_of
from ._optimizers import optimizer_of
from ._pickle import Use

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hint:
    """Something in a file that bounds the version of torch which wrote it; both bounds are inclusive."""

    reason: str
    low: Version | None = None
    high: Version | None = None


# Attributes of pickled modules, and the first version that writes them. Old modules that were saved again keep their
# old attributes, so the absence of one says nothing.
_ATTRIBUTES: dict[str, Version] = {
    "_non_persistent_buffers_set": (1, 6),
    "_is_full_backward_hook": (1, 8),
    "_load_state_dict_post_hooks": (1, 11),
    "_backward_pre_hooks": (2, 0),
    "_forward_hooks_always_called": (2, 1),
}

# Options in the groups of a saved Adam, and the first version that writes them.
_GROUP_KEYS: dict[str, Version] = {"maximize": (1, 11), "decoupled_weight_decay": (2, 7)}

_NAMES: dict[Global, Hint] = {
    Global("torch.storage", "UntypedStorage"): Hint("it has untyped storages", (1, 13)),
    Global("torch.tensor", "_rebuild_from_type"): Hint("it names torch.tensor._rebuild_from_type", high=(1, 8)),
    Global("torch._tensor", "_rebuild_from_type"): Hint("it names torch._tensor._rebuild_from_type", (1, 9)),
    Global("torch._utils", "_rebuild_sparse_csr_tensor"): Hint("a function rebuilds its CSR tensors", (1, 11), (1, 13)),
    **{
        Global(module, name): Hint(f"it names {module}.{name}", low)
        for module, name, low in (
            ("torch._utils", "_rebuild_parameter", (1, 0)),
            ("torch", "BoolStorage", (1, 1)),
            ("torch", "BFloat16Storage", (1, 2)),
            ("torch._utils", "_rebuild_qtensor", (1, 2)),
            ("torch._utils", "_rebuild_sparse_tensor", (1, 4)),
            ("torch", "ComplexFloatStorage", (1, 6)),
            ("torch", "ComplexDoubleStorage", (1, 6)),
            ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, 10)),
            ("torch._utils", "_rebuild_parameter_with_state", (2, 0)),
            ("torch._utils", "_rebuild_tensor_v3", (2, 2)),
            ("torch._utils", "_rebuild_nested_tensor", (2, 2)),
        )
    },
}


@dataclass(frozen=True, slots=True)
class Contents:
    """What a reader of torch's pickles hands over.

    Attributes:
        tree: the saved object.
        seen: the names in its pickles.
        hints: what the container tells of its writer.
        findings: what is odd about the container.
        metadata: text that was saved beside the object.
        byte_order: of the elements of tensors.
    """

    tree: Any
    seen: Mapping[Global, Use]
    hints: tuple[Hint, ...] = ()
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    byte_order: str = "little"


def checkpoint_from(file: str, format_name: str, contents: Contents, limits: Limits) -> Checkpoint:
    """The Checkpoint of an unpickled object."""
    try:
        leaves = trees.leaves(contents.tree, limits)
        modules = trees.modules(contents.tree, limits)
    except OpenError as error:
        error.file = error.file or file
        raise
    kind, model_key, candidates = describe_tree(contents.tree, leaves)
    return Checkpoint(
        file,
        format_name,
        {leaf.name: _in_role(leaf) for leaf in leaves},
        tree=contents.tree,
        metadata=contents.metadata,
        findings=(*findings_of(contents.seen), *contents.findings),
        provenance=_provenance(contents, [record for _, record in modules]),
        kind=kind,
        model_key=model_key,
        candidates=candidates,
        modules=tuple(_saved_module(path, record, contents.metadata) for path, record in modules)
        or _described_modules(contents.tree),
    )


def _in_role(leaf: trees.Leaf) -> LazyTensor:
    tensor: LazyTensor = leaf.tensor
    return tensor.replace(kind="buffer") if leaf.role in {"buffer", "transient"} and tensor.kind == "tensor" else tensor


def _saved_module(path: str, record: Record, sources: Mapping[str, str]) -> SavedModule:
    state = record.state
    training = state.get("training")
    return SavedModule(
        path,
        record.class_name,
        training if isinstance(training, bool) else None,
        attributes={key: value for key, value in state.items() if not _own(key)},
        children=tuple(map(str, state["_modules"])),
        parameters={str(key): _grad_flag(value) for key, value in state["_parameters"].items()},
        buffers=tuple(map(str, state["_buffers"])),
        hooks={key: _hook_names(state[key]) for key in state if isinstance(key, str) and _is_hooks(key, state[key])},
        source=sources.get(f"source:{record.class_name}", ""),
    )


def _own(key: Any) -> bool:
    """Whether an attribute of a module is torch's bookkeeping and none of its author's."""
    return not isinstance(key, str) or key.startswith("_") or key == "training"


def _grad_flag(value: Any) -> bool | None:
    tensor = trees.as_tensor(value)
    return tensor.requires_grad if isinstance(tensor, LazyTensor) else None


def _hook_names(hooks: Mapping[Any, Any]) -> tuple[str, ...]:
    def name(hook: Any) -> str:
        if isinstance(hook, Global):
            return hook.qualified
        return hook.class_name if isinstance(hook, Record) else type(hook).__name__

    return tuple(map(name, hooks.values()))


def _is_hooks(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.endswith("_hooks") and isinstance(value, Mapping) and bool(value)


def _described_modules(tree: Any) -> tuple[SavedModule, ...]:
    """The modules that the `_metadata` of state dicts names: at the root, or one level below it."""
    below = tree.items() if isinstance(tree, dict) else ()
    found = []
    for key, node in (("", tree), *below):
        metadata = getattr(node, "_metadata", None)
        if not isinstance(metadata, dict) or not isinstance(key, str):
            continue
        paths = [path for path in metadata if isinstance(path, str)]
        known = set(paths)
        children: dict[str, list[str]] = {path: [] for path in paths}
        for path in paths:
            above, _, last = path.rpartition(".")
            if path and above in known:
                children[above].append(last)
        for path in paths:
            version = metadata[path].get("version") if isinstance(metadata[path], dict) else None
            found.append(
                SavedModule(
                    ".".join(filter(None, (key, path))),
                    children=tuple(children[path]),
                    version=version if type(version) is int else None,
                )
            )
    return tuple(found)


def _provenance(contents: Contents, modules: Iterable[Record]) -> Provenance:
    hints = [*contents.hints, *_module_hints(modules), *_group_hints(contents.tree)]
    hints += [hint for named, hint in _NAMES.items() if named in contents.seen]
    lows = [hint.low for hint in hints if hint.low is not None]
    highs = [hint.high for hint in hints if hint.high is not None]
    reasons = tuple(hint.reason for hint in hints)
    producer = _span(max(lows, default=None), min(highs, default=None))
    lightning = contents.tree.get("pytorch-lightning_version") if isinstance(contents.tree, dict) else None
    if isinstance(lightning, str):
        producer = f"{producer}, with Lightning {lightning[:40]}"
        reasons = (*reasons, "it names its Lightning version")
    return Provenance(producer, reasons, contents.byte_order, optimizer_of(contents.tree))


def _span(low: Version | None, high: Version | None) -> str:
    def text(version: Version) -> str:
        return f"{version[0]}.{version[1]}"

    if low and high:
        if low > high:
            return f"torch {text(low)} or later"  # an old container can be asked for, a new attribute cannot
        return f"torch {text(low)} to {text(high)}" if low != high else f"torch {text(low)}"
    if low:
        return f"torch {text(low)} or later"
    return f"torch {text(high)} or earlier" if high else "torch"


def _module_hints(modules: Iterable[Record]) -> list[Hint]:
    attributes: set[str] = set()
    for record in modules:
        attributes.update(key for key in _ATTRIBUTES if key in record.state)
    return [Hint(f"its modules have {name}", low) for name, low in _ATTRIBUTES.items() if name in attributes]


def _group_hints(tree: Any) -> list[Hint]:
    keys: set[Any] = set()
    values = tree.values() if isinstance(tree, dict) else ()
    for value in (tree, *values):
        groups = value.get("param_groups") if isinstance(value, dict) else None
        if isinstance(groups, list):
            adams = (group for group in groups if isinstance(group, dict) and "betas" in group)
            keys.update(key for group in adams for key in _GROUP_KEYS if key in group)
    return [Hint(f"its optimizer's groups have {name!r}", low) for name, low in _GROUP_KEYS.items() if name in keys]
