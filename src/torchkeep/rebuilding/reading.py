"""From an opened checkpoint to the blueprint of the model in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..core import tree as trees
from ..core.blueprint import Blueprint, Construction, Part
from ..core.checkpoint import Checkpoint
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import RebuildError
from .saved import of_saved

_HELD = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_OF_TORCH = {"_backend", "_is_full_backward_hook"}  # what torch kept for itself, in some versions
_HOOKS = {key for key, value in vars(nn.Module()).items() if "hook" in key and isinstance(value, Mapping)}


def blueprint_of(ckpt: Checkpoint) -> Blueprint:
    """The blueprint of the model in a checkpoint: a pickled module, or a model that torchkeep saved.

    Raises:
        RebuildError: the file holds weights and says nothing of a model.
    """
    root = ckpt.tree.get(ckpt.model_key) if ckpt.model_key and isinstance(ckpt.tree, dict) else ckpt.tree
    if isinstance(root, Record) and root.is_module:
        return _of_pickle(ckpt, root)
    if ckpt.architecture is not None:
        return of_saved(ckpt, ckpt.architecture)
    if ckpt.format == "torchkeep_run":
        raise RebuildError(
            f"{ckpt.file} is a run, whose snapshots keep weights and no architecture",
            hint="make the model, and tk.load_into(model, run); tk.save(model, path) keeps the model itself",
        )
    if ckpt.kind == "module" and ckpt.facts is not None:
        raise RebuildError(
            f"{ckpt.file} was saved by a torchkeep that kept no more of a model than its modules' names",
            hint="make the model, put the weights into it with tk.load_into(model, path), and tk.save it again",
        )
    if ckpt.format == "pt2":
        raise RebuildError(
            f"{ckpt.file} is a program, whose modules have no classes to make them of",
            hint="tk.load_model(path, trust_graph=True) runs it, where path is the .safetensors beside it that was "
            "saved with example_inputs; torch.export.load runs one that has its weights",
        )
    raise RebuildError(
        f"{ckpt.file} holds tensors, and no word of the model that they are from",
        hint="make the model, and put them into it: tk.load_into(model, path)",
    )


def _of_pickle(ckpt: Checkpoint, root: Record) -> Blueprint:
    """Every pickled module that can be reached, once; those that only attributes lead to as well."""
    found = trees.modules(root)
    places = {id(record): place for place, (_, record) in enumerate(found)}
    parts = tuple(_part(path, record, places, ckpt.metadata) for path, record in found)
    lost = dict(one for path, record in found for one in _lost(path, record))
    return Blueprint(ckpt.file, parts, places, lost=lost)


def _lost(path: str, record: Record) -> Iterator[tuple[str, str]]:
    """Parameters and buffers that are no tensors, such as those of lazy layers that were never run."""
    for held in (record.state["_parameters"], record.state["_buffers"]):
        for key, value in held.items():
            if value is not None and _tensor(value) is None:
                what = value.class_name if isinstance(value, Record) else type(value).__name__
                yield f"{path}.{key}".removeprefix("."), f"is a {what} and no tensor"


def _part(path: str, record: Record, places: Mapping[int, int], sources: Mapping[str, str]) -> Part:
    state: dict[Any, Any] = record.state
    training = state.get("training")
    transient = state.get("_non_persistent_buffers_set")
    hooks = {key: value for key, value in state.items() if key in _HOOKS and isinstance(value, Mapping)}
    kept_apart = _HELD | _OF_TORCH | _HOOKS
    return Part(
        path,
        record.class_name,
        training=training if isinstance(training, bool) else None,
        children={str(key): places.get(id(child)) for key, child in state["_modules"].items()},
        parameters={str(key): _tensor(value) for key, value in state["_parameters"].items()},
        buffers={str(key): _tensor(value) for key, value in state["_buffers"].items()},
        transient=frozenset(map(str, transient)) if isinstance(transient, (set, list, tuple)) else frozenset(),
        attributes={key: value for key, value in state.items() if isinstance(key, str) and key not in kept_apart},
        hooks={key: tuple(value.values()) for key, value in hooks.items() if value},
        source=sources.get(f"source:{record.class_name}", ""),
    )


def _tensor(value: Any) -> LazyTensor | None:
    tensor = trees.as_tensor(value)
    return tensor if isinstance(tensor, LazyTensor) else None


def named_in(blueprint: Blueprint) -> set[str]:
    """Every class and function that a blueprint names."""
    found = set(blueprint.class_names) | ({blueprint.factory} - {""})
    seen: set[int] = set()
    stack: list[Any] = [value for part in blueprint.parts for value in (part.attributes, part.construction, part.hooks)]
    stack += (blueprint.construction, blueprint.objects)
    while stack:
        node = stack.pop()
        if isinstance(node, Global):
            found.add(node.qualified)
        elif isinstance(node, Construction):
            stack += (node.args, node.kwargs)
        elif trees.is_container(node) and id(node) not in seen:
            seen.add(id(node))
            stack += (node.cls, *(child for _, child, _ in trees.children(node))) if isinstance(node, Record) else ()
            stack += () if isinstance(node, Record) else [child for _, child, _ in trees.children(node)]
    return found
