"""What a module needs beside its state: properties, derived values, torch's norms, options that are new in its code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..core.blueprint import Part
from ..core.tree import Global, Record

_NORMS: dict[str, Any] = {
    "torch.nn.utils.weight_norm.WeightNorm": WeightNorm,
    "torch.nn.utils.spectral_norm.SpectralNorm": SpectralNorm,
}


def parametrized(module: nn.Module) -> None:
    """Give a module the properties that compute its parametrized tensors."""
    parametrize._inject_new_class(module)
    for name in module._modules["parametrizations"]._modules:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)


def refresh(module: nn.Module) -> None:
    """Make what is derived from the tensors of a module again."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def normed(module: nn.Module, part: Part) -> None:
    """Let a module compute its weight by torch's weight or spectral norm again, if it did.

    Nothing but these two of torch's classes is hooked in, and their options are checked.
    """
    for hook in part.hooks.get("_forward_pre_hooks", ()):
        cls = _NORMS.get(hook.class_name) if isinstance(hook, Record) and isinstance(hook.cls, Global) else None
        options = hook.state if cls is not None else None
        if cls is None or not isinstance(options, Mapping) or not _is_known(options, cls):
            continue
        norm = cls.__new__(cls)
        norm.__dict__.update(options)
        held = {*module._parameters, *module._buffers}
        suffixes = ("_g", "_v") if cls is WeightNorm else ("_orig", "_u", "_v")
        if not all(norm.name + suffix in held for suffix in suffixes):
            continue
        hooked: list[Any] = list(module._forward_pre_hooks.values())
        if not any(type(one) is cls and one.name == norm.name for one in hooked):
            module.register_forward_pre_hook(norm)
        module.__dict__[norm.name] = (
            norm.compute_weight(module) if cls is WeightNorm else norm.compute_weight(module, do_power_iteration=False)
        )


def _is_known(options: Mapping[Any, Any], cls: Any) -> bool:
    kinds: dict[str, type] = {"name": str, "dim": int}
    if cls is SpectralNorm:
        kinds |= {"n_power_iterations": int, "eps": float}
    return options.keys() == kinds.keys() and all(type(options[key]) is kind for key, kind in kinds.items())


def new_options(module: nn.Module) -> dict[str, Any]:
    """Set options of its constructor that its methods ask for and the module lacks to their defaults.

    Returns:
        What was set.
    """
    try:
        options = inspect.signature(type(module).__init__).parameters.values()
    except (TypeError, ValueError):
        return {}
    lacking = {one.name: one.default for one in options if one.default is not one.empty and not _has(module, one.name)}
    added = {name: lacking[name] for name in lacking.keys() & _asked(type(module))} if lacking else {}
    module.__dict__.update(added)
    return added


def _has(module: nn.Module, name: str) -> bool:
    held = (module.__dict__, module._parameters, module._buffers, module._modules)
    return any(name in one for one in held) or inspect.getattr_static(type(module), name, None) is not None


def _asked(cls: type) -> set[str]:
    """Names that the methods of a class outside of torch ask for, its constructor's apart."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in {"torch", "builtins"}:
            continue
        stack = [one.__code__ for key, one in vars(base).items() if isinstance(one, FunctionType) and key != "__init__"]
        while stack:
            code = stack.pop()
            found.update(code.co_names)
            stack += [one for one in code.co_consts if isinstance(one, CodeType)]
    return found
