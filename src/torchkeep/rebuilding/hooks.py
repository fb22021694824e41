"""Hooks of old pickles: none is run, and those of torch.nn that compute a weight from other tensors are made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from ..core.blueprint import Part
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record, as_tensor

_WEIGHT, _SPECTRAL, _PRUNE = "torch.nn.utils.weight_norm.", "torch.nn.utils.spectral_norm.", "torch.nn.utils.prune."
_COMPANIONS = {f"{_SPECTRAL}SpectralNormStateDictHook", f"{_SPECTRAL}SpectralNormLoadStateDictPreHook"}
_MOST_ITERATIONS = 1000
_NUMBER = (int, float)


@dataclass(frozen=True)
class _Kind:
    """One class of hooks: what it keeps, where the name of its tensor stands, and what the module must have for it."""

    cls: type[Any]
    fields: Mapping[str, type[Any] | tuple[type[Any], ...]]
    key: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()


def _pruning(name: str, **fields: type[Any] | tuple[type[Any], ...]) -> _Kind:
    return _Kind(getattr(prune, name), {"_tensor_name": str, **fields}, "_tensor_name", ("_orig",), ("_mask",))


_KINDS = {
    f"{_WEIGHT}WeightNorm": _Kind(WeightNorm, {"name": str, "dim": (int, type(None))}, "name", ("_g", "_v")),
    f"{_SPECTRAL}SpectralNorm": _Kind(
        SpectralNorm,
        {"name": str, "dim": int, "n_power_iterations": int, "eps": _NUMBER},
        "name",
        ("_orig",),
        ("_u", "_v"),
    ),
    f"{_PRUNE}Identity": _pruning("Identity"),
    f"{_PRUNE}RandomUnstructured": _pruning("RandomUnstructured", amount=_NUMBER),
    f"{_PRUNE}L1Unstructured": _pruning("L1Unstructured", amount=_NUMBER),
    f"{_PRUNE}RandomStructured": _pruning("RandomStructured", amount=_NUMBER, dim=int),
    f"{_PRUNE}LnStructured": _pruning("LnStructured", amount=_NUMBER, n=(int, float, str), dim=int),
    f"{_PRUNE}CustomFromMask": _pruning("CustomFromMask", mask=LazyTensor),
    f"{_PRUNE}PruningContainer": _pruning("PruningContainer", _pruning_methods=tuple),
}


@dataclass(frozen=True)
class Hooks:
    """The hooks of a module.

    Attributes:
        known: what is made anew: the kind, and what the hook keeps.
        left: (kind of hook, name of the function or class) of all others.
    """

    known: tuple[tuple[_Kind, Mapping[str, Any]], ...] = ()
    left: tuple[tuple[str, str], ...] = ()


def hooks_of(part: Part) -> Hooks:
    """The hooks of a module that the file has."""
    known, left, done = [], [], set()
    for hook in part.hooks.get("_forward_pre_hooks", ()):
        found = _known(hook, part)
        if found is None:
            left.append(("_forward_pre_hooks", _name(hook)))
        else:
            known.append(found)
            done.add(id(hook))
    for kind, hooks in part.hooks.items():
        if kind != "_forward_pre_hooks":
            left += [(kind, _name(hook)) for hook in hooks if not (isinstance(hook, bool) or _belongs(hook, done))]
    return Hooks(tuple(known), tuple(left))


def _known(hook: Any, part: Part) -> tuple[_Kind, Mapping[str, Any]] | None:
    kind = _KINDS.get(hook.class_name) if isinstance(hook, Record) and isinstance(hook.cls, Global) else None
    kept = _kept(hook, kind) if kind is not None else None
    if kind is None or kept is None:
        return None
    name = kept[kind.key]
    here = all(part.parameters.get(name + end) is not None for end in kind.parameters) and all(
        part.buffers.get(name + end) is not None for end in kind.buffers
    )
    return (kind, kept) if here else None


def _kept(hook: Record, kind: _Kind) -> Mapping[str, Any] | None:
    """What a hook keeps, where it is what such a hook keeps."""
    state = hook.state
    if not isinstance(state, dict) or not state.keys() >= kind.fields.keys():
        return None
    kept = {key: as_tensor(state[key]) if wanted is LazyTensor else state[key] for key, wanted in kind.fields.items()}
    if not all(isinstance(kept[key], wanted) for key, wanted in kind.fields.items()):
        return None
    if not 0 < kept.get("n_power_iterations", 1) <= _MOST_ITERATIONS:
        return None
    if kind.cls is prune.PruningContainer:
        methods = [_method(method) for method in kept["_pruning_methods"]]
        return None if None in methods else kept | {"_pruning_methods": tuple(methods)}
    return kept


def _method(method: Any) -> tuple[_Kind, Mapping[str, Any]] | None:
    kind = _KINDS.get(method.class_name) if isinstance(method, Record) else None
    if kind is None or kind.cls is prune.PruningContainer or not issubclass(kind.cls, prune.BasePruningMethod):
        return None
    kept = _kept(method, kind)
    return None if kept is None else (kind, kept)


def _belongs(hook: Any, done: set[int]) -> bool:
    """Whether it is one that comes with a hook that is made anew."""
    inner = _unwrapped(hook)
    named = isinstance(inner, Record) and inner.class_name in _COMPANIONS and isinstance(inner.state, dict)
    return named and id(inner.state.get("fn")) in done


def _unwrapped(hook: Any) -> Any:
    if isinstance(hook, Record) and hook.class_name == "torch.nn.modules.module._WrappedHook":
        return hook.state.get("hook") if isinstance(hook.state, dict) else hook
    return hook


def _name(hook: Any) -> str:
    inner = _unwrapped(hook)
    if isinstance(inner, Global):
        return inner.qualified
    return inner.class_name if isinstance(inner, Record) else type(inner).__name__


def hook_again(module: nn.Module, part: Part, tensor: Callable[[Any], Any]) -> None:
    """Give a module the hooks of torch.nn that compute its weights."""
    for kind, kept in hooks_of(part).known:
        hook = _made(kind, kept, tensor)
        module.register_forward_pre_hook(hook)
        if isinstance(hook, SpectralNorm):
            module._register_state_dict_hook(SpectralNormStateDictHook(hook))
            module._register_load_state_dict_pre_hook(SpectralNormLoadStateDictPreHook(hook))


def _made(kind: _Kind, kept: Mapping[str, Any], tensor: Callable[[Any], Any]) -> Any:
    hook: Any = object.__new__(kind.cls)
    if kind.cls is WeightNorm and kept["dim"] is None:  # as it was before torch had -1 for it
        kept = {**kept, "dim": -1}
    for key, value in kept.items():
        if key == "_pruning_methods":
            hook.__dict__[key] = tuple(_made(method, inner, tensor) for method, inner in value)
        else:
            hook.__dict__[key] = tensor(value) if isinstance(value, LazyTensor) else value
    return hook


def told(part: Part) -> Iterator[str]:
    """The hooks that are not made anew, as text: where, of which kind, and what."""
    for kind, name in hooks_of(part).left:
        yield f"{part.path or 'the model'}: {name} ({kind.strip('_').removesuffix('s').replace('_', ' ')})"
