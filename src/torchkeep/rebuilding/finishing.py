"""What a module needs beside its state: properties, derived values, torch's norms, options that are new in its code."""

from __future__ import annotations

import inspect
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def parametrized(module: nn.Module) -> None:
    """Give a module the properties that compute its parametrized tensors."""
    parametrize._inject_new_class(module)
    for name in module._modules["parametrizations"]._modules:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)


def refresh(module: nn.Module) -> None:
    """Make what is derived from the tensors of a module again."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def derived(module: nn.Module) -> None:
    """Compute what a hook of torch's weight or spectral norm would, where the module does not have it yet."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name not in module.__dict__:
            module.__dict__[hook.name] = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm) and hook.name not in module.__dict__:
            module.__dict__[hook.name] = hook.compute_weight(module, do_power_iteration=False)


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
