"""Keeping modules in eval mode through every later `model.train()`."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from ..core.live import module_at, named_modules, unwrapped
from ..core.names import nearest
from ..errors import SelectorError


class StayEval:
    """Stands in for `module.train` on a held module: whatever it is asked for, the module stays in eval mode.

    It lies in the instance's `__dict__`, so class and state dict of the module are as before and no other module is
    concerned. A deep copy or an unpickled copy of the module has its own.

    Attributes:
        wanted: the mode that was last asked for, which is the module's when it is released.
    """

    def __init__(self, module: nn.Module) -> None:
        # Weak, because a cycle would keep a deleted model's memory until the garbage collector comes by.
        self._module: weakref.ref[nn.Module] | None = weakref.ref(module)
        self.wanted = module.training

    @property
    def module(self) -> nn.Module | None:
        """The module that is held; None in a shallow copy that outlived the original."""
        return None if self._module is None else self._module()

    def __call__(self, mode: bool = True) -> nn.Module | None:
        self.wanted = mode
        module = self.module
        return None if module is None else type(module).train(module, False)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "wanted": self.wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module = None if state["module"] is None else weakref.ref(state["module"])
        self.wanted = state["wanted"]


def is_held(module: nn.Module) -> bool:
    """Whether a module is held in eval mode by `freeze`."""
    return isinstance(module.__dict__.get("train"), StayEval)


def held_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that are held in eval mode, parents first; the root is the empty path.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> _ = freeze(model, "0")
    >>> held_modules(model)
    ['0']
    """
    modules = dict(named_modules(model))
    return [path for path in _first_paths(model).values() if is_held(modules[path])]


def hold(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Hold modules in eval mode without touching requires_grad.

    >>> hold(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)), ["0"])
    ['0']

    Args:
        model: the model.
        paths: dotted paths as `held_modules` gives them; only these modules, not those below them, are held.

    Returns:
        The paths that were not held before.

    Raises:
        SelectorError: the model has no module of such a path. Nothing was changed.
    """
    names = _first_paths(model)
    return [names[id(module)] for module in hold_all(_resolve(model, paths))]


def restore_held(model: nn.Module, paths: Iterable[str]) -> None:
    """Hold exactly these modules in eval mode and release all others; requires_grad is not touched.

    >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    >>> restore_held(model, ["0"])
    >>> restore_held(model, ["1"])
    >>> held_modules(model)
    ['1']

    Args:
        model: the model.
        paths: dotted paths as `held_modules` gives them.

    Raises:
        SelectorError: the model has no module of such a path. Nothing was changed.
    """
    model = unwrapped(model)
    wanted = _resolve(model, paths)
    keep = {id(module) for module in wanted}
    release(model, {id(module) for _, module in named_modules(model) if is_held(module)} - keep)
    hold_all(wanted)


def _first_paths(model: nn.Module) -> dict[int, str]:
    """The first path of each module, parents first."""
    paths: dict[int, str] = {}
    for path, module in named_modules(model):
        paths.setdefault(id(module), path)
    return paths


def _resolve(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    """The modules of some paths, in the order of the model."""
    modules = dict(named_modules(model))
    wanted = set(paths)
    for path in wanted - modules.keys():
        close = nearest(path, modules)
        hint = f"the nearest are {', '.join(map(repr, close))}" if close else ""
        raise SelectorError(f"the model has no module {path!r}", hint=hint)
    return list({id(module): module for path, module in modules.items() if path in wanted}.values())


def hold_all(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Hold modules, given parents first; returns those that were not held."""
    listed = list(modules)
    new = [module for module in listed if not is_held(module)]
    for module in new:
        module.__dict__["train"] = StayEval(module)
    for module in _tops(listed):
        type(module).train(module, False)
    return new


def release(model: nn.Module, keys: set[int]) -> list[nn.Module]:
    """Release held modules, given by id, and give them the mode of what is around them."""
    modules = {id(module): module for _, module in named_modules(model)}
    paths = {path: modules[key] for key, path in _first_paths(model).items() if key in keys}
    wanted = {id(module): module.__dict__.pop("train").wanted for module in paths.values()}
    tops = {id(module) for module in _tops(paths.values())}
    for path, module in paths.items():
        if id(module) in tops:
            module.train(_mode_around(model, path) if path else wanted[id(module)])
    return list(paths.values())


def _tops(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Those that lie in none of the others, so that a class's own `train` is called once and has the last word."""
    covered: set[int] = set()
    for module in modules:
        if id(module) not in covered:
            covered.update(map(id, module.modules()))
            yield module


def _mode_around(model: nn.Module, path: str) -> bool:
    while path:
        path = path.rpartition(".")[0]
        above = module_at(model, path)
        if not is_held(above):
            return above.training
    return model.training
