"""Freezing parts of a model for good: no gradients, no moving normalisation statistics, no dropout.

`requires_grad=False` keeps an optimizer away from a parameter, and nothing more: BatchNorm goes on averaging whatever
passes through it and dropout goes on dropping. So a module all of whose parameters are frozen is also *held* in
eval mode, and stays there through every later `model.train()`.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from .core.live import unwrapped
from .core.names import Selector, fold, is_under, nearest
from .core.table import Table, human_count, shorten
from .errors import SelectorError


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


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` or `unfreeze` did.

    Attributes:
        action: `froze` or `unfroze`.
        selection: the selector, as text.
        parameters: names of the parameters whose requires_grad was changed.
        modules: paths of the modules that are now held in eval mode and were not, or the other way round; the root
            is the empty path.
        unchanged: names of chosen parameters that were already as asked for.
        skipped: names of chosen parameters that cannot require gradients, because they hold integers.
        shared: (name, other names) of chosen parameters and modules that have several names.
        elements: elements of `parameters`.
        trainable: elements of the model that require gradients now.
        total: elements of the model.
    """

    action: str
    selection: str
    parameters: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()
    elements: int = 0
    trainable: int = 0
    total: int = 0

    def table(self) -> Table:
        """The report, folded for people."""
        eval_mode = "held in eval" if self.action == "froze" else "released"
        share = f" ({self.trainable / self.total:.1%})" if self.total else ""
        return Table(
            title=f"{self.action} {self.selection!r}",
            facts=(
                ("parameters", _counted(self.parameters, f" ({human_count(self.elements)} elements)")),
                (eval_mode, _counted([path or "(the whole model)" for path in self.modules])),
                ("trainable", f"{human_count(self.trainable)} of {human_count(self.total)} elements{share}"),
                ("unchanged", f"{len(self.unchanged)} parameters were so already" if self.unchanged else ""),
                ("skipped", f"{shorten(self.skipped)} cannot require gradients" if self.skipped else ""),
            ),
            notes=tuple(f"{name} is also known as {', '.join(others)}" for name, others in self.shared),
        )

    def __str__(self) -> str:
        return str(self.table())


def _counted(names: Iterable[str], size: str = "") -> str:
    listed = list(names)
    return f"{len(listed)}{size}: {shorten(name for name, _ in fold(listed))}" if listed else "none"


def freeze(model: nn.Module, selection: Any) -> FreezeReport:
    """Freeze a part of a model: parameters, normalisation statistics and dropout.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    >>> report = freeze(model, "* but 2")
    >>> report.modules, model.train()[1].training
    (('0', '1'), False)

    Chosen parameters get `requires_grad=False` and lose their gradient. Every module all of whose parameters, and
    those of its descendants, are then frozen is held in eval mode, through every later `train()`; so are modules
    without parameters (dropout, say) when the selector chooses them or they lie in a held module. Gradients still
    flow through. Dropout that a partly frozen module applies by function call stays on. Freezing again adds to what
    is frozen; a tied parameter is frozen under all its names.

    A pickle of the whole model needs torchkeep to be read; its state dict does not.

    Args:
        model: the model; DataParallel and torch.compile are seen through, so names do not have their prefix.
        selection: what `Selector` takes: `"backbone.*"`, `"* but head"`, `"first 3"`, `"re:^enc"` or a list. Blocks,
            for `first n` and `last n`, are the children of the model that own parameters, or of its only such child.

    Raises:
        SelectorError: the selector cannot be read, or chooses no parameter and no module.
    """
    view = _View(model)
    chosen = view.chosen(Selector.of(selection))
    changed = [index for index in chosen.parameters if view.parameters[index].requires_grad]
    for index in chosen.parameters:
        parameter = view.parameters[index]
        parameter.requires_grad = False
        parameter.grad = None
    frozen = _now_frozen(view, chosen)
    held = _hold(module for key, module in view.modules.items() if key in frozen)
    return _report("froze", view, chosen, changed, held)


def unfreeze(model: nn.Module, selection: Any = "*") -> FreezeReport:
    """Train a part of a model again: the opposite of `freeze`.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    >>> _ = freeze(model, "*")
    >>> unfreeze(model, "2").modules, model[2].training, model[1].training
    (('', '2'), True, False)

    Chosen parameters get `requires_grad=True`, unless they hold integers. Modules that are no longer frozen as a whole
    are released and take the training flag of the nearest module above them that is not held; the root takes
    the mode it was last asked for. A module without parameters is released when it is chosen, or when all parameters
    around it are trained again.

    Args:
        model: the whole model: of a part of it, the modules above that are held would not be seen and stay held.
        selection: as for `freeze`; everything by default.

    Raises:
        SelectorError: the selector cannot be read, or chooses no parameter and no module.
    """
    view = _View(model)
    chosen = view.chosen(Selector.of(selection))
    able = [index for index in chosen.parameters if _can_train(view.parameters[index])]
    changed = [index for index in able if not view.parameters[index].requires_grad]
    for index in able:
        view.parameters[index].requires_grad = True
    released = _release(view.model, _no_longer_frozen(view, chosen, set(changed)))
    return _report("unfroze", view, chosen, changed, released)


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
    return [path for path, module in unwrapped(model).named_modules() if is_held(module)]


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
    model = unwrapped(model)
    names = {id(module): path for path, module in model.named_modules()}
    return [names[id(module)] for module in _hold(_resolve(model, paths))]


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
    _release(model, {id(module) for module in model.modules() if is_held(module)} - keep)
    _hold(wanted)


@dataclass(frozen=True)
class _Chosen:
    """What a selector chose: ids of parameters, in the order of the model, and of modules without parameters."""

    selection: str
    parameters: list[int]
    modules: set[int]


class _View:
    """A model's parameters and modules by identity, with all their names."""

    def __init__(self, wrapped: nn.Module) -> None:
        self.model = model = unwrapped(wrapped)
        self.parameters = {id(parameter): parameter for parameter in model.parameters()}
        self.modules = {id(module): module for module in model.modules()}
        self.parameter_names: dict[int, list[str]] = defaultdict(list)
        self.module_names: dict[int, list[str]] = defaultdict(list)
        self.below: dict[int, set[int]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.parameter_names[id(parameter)].append(name)
        for path, module in model.named_modules(remove_duplicate=False):
            self.module_names[id(module)].append(path)
        for key, module in self.modules.items():
            self.below[key] = {id(parameter) for parameter in module.parameters()}

    def chosen(self, selector: Selector) -> _Chosen:
        """Parameters chosen under any of their names, and modules without parameters likewise."""
        blocks = _blocks(self.model)

        def hit(names: list[str]) -> bool:
            return any(selector.matches(name, blocks) for name in names)

        parameters = [key for key in self.parameters if hit(self.parameter_names[key])]
        bare = {key for key in self.modules if not self.below[key] and hit(self.module_names[key])}
        if not parameters and not bare:
            raise self._nothing(selector)
        known = [name for names in (*self.module_names.values(), *self.parameter_names.values()) for name in names]
        for part in selector.unused(known, blocks):
            close = nearest(part, known)
            hint = (
                f"the nearest names are {', '.join(map(repr, close))}" if close else f"the blocks are {shorten(blocks)}"
            )
            raise SelectorError(f"{part!r} in {str(selector)!r} matches nothing in the model", hint=hint)
        return _Chosen(str(selector), parameters, bare)

    def inside(self, keys: Iterable[int]) -> set[int]:
        """Ids of these modules and all modules below them."""
        return {id(inner) for key in keys for inner in self.modules[key].modules()}

    def around(self, key: int) -> set[int]:
        """Ids of the parameters of the nearest module above that has any."""
        path = self.module_names[key][0]
        while path:
            path = path.rpartition(".")[0]
            below = self.below[id(self.model.get_submodule(path))]
            if below:
                return below
        return set()

    def _nothing(self, selector: Selector) -> SelectorError:
        listed = (*self.module_names.values(), *self.parameter_names.values())
        names = [name for names in listed for name in names if name]
        full = selector.choose(names, _blocks(self.model))
        buffers = selector.choose(name for name, _ in self.model.named_buffers())
        if full:
            hint = f"it matches the path of {full[0]!r} and no parameter in it; select {full[0]!r} by name"
        elif buffers:
            hint = f"{shorten(buffers, 2)} are buffers; freeze the module that owns them"
        else:
            close = nearest(str(selector).strip("*."), names) or names[:3]
            hint = f"the nearest names are {', '.join(map(repr, close))}" if close else "the model is empty"
        return SelectorError(f"{str(selector)!r} selects no parameter and no module", hint=hint)


def _blocks(model: nn.Module) -> list[str]:
    """Paths of the stretches the network is made of: the children with parameters, seen through wrappers."""
    path, module = "", model
    while True:
        own = any(True for _ in module.parameters(recurse=False))
        children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
        if own or not children:
            break
        if len(children) > 1:
            return [f"{path}{name}" for name, _ in children]
        path, module = f"{path}{children[0][0]}.", children[0][1]
    return [f"{path}{name}" for name, _ in children] or [path.removesuffix(".")]


def _now_frozen(view: _View, chosen: _Chosen) -> set[int]:
    """Ids of the modules that a freeze makes frozen as a whole."""
    selected = set(chosen.parameters)
    frozen = set(chosen.modules)
    for key, below in view.below.items():
        # A module that only happens to have no trainable parameters is not ours to hold.
        if below & selected and not any(view.parameters[parameter].requires_grad for parameter in below):
            frozen.add(key)
    return view.inside(frozen)


def _no_longer_frozen(view: _View, chosen: _Chosen, changed: set[int]) -> set[int]:
    """Ids of the held modules that an unfreeze makes trainable, at least in part."""
    selected = set(chosen.parameters)
    held = {key for key, module in view.modules.items() if is_held(module)}
    owners = {key for key in held if view.below[key]}

    def trains(key: int) -> bool:
        return any(view.parameters[parameter].requires_grad for parameter in view.below[key])

    # A module of integers cannot train, and is released when all of it was asked for.
    loose = {key for key in owners if trains(key) or view.below[key] <= selected}
    # What is without parameters goes when it was asked for, or when all around it trains again.
    bare = {key for key in held - owners if key in chosen.modules or _trains_around(view, key, changed)}
    return (loose | bare) - view.inside(owners - loose)


def _trains_around(view: _View, key: int, changed: set[int]) -> bool:
    """Whether the parameters nearest to a module without any are all trainable, some of them only now."""
    below = view.around(key)
    able = (view.parameters[parameter] for parameter in below if _can_train(view.parameters[parameter]))
    return bool(below & changed) and all(parameter.requires_grad for parameter in able)


def _can_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _resolve(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    """The modules of some paths, in the order of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = set(paths)
    for path in wanted - modules.keys():
        close = nearest(path, modules)
        hint = f"the nearest are {', '.join(map(repr, close))}" if close else ""
        raise SelectorError(f"the model has no module {path!r}", hint=hint)
    return list({id(module): module for path, module in modules.items() if path in wanted}.values())


def _hold(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Hold modules, given parents first; returns those that were not held."""
    listed = list(modules)
    new = [module for module in listed if not is_held(module)]
    for module in new:
        module.__dict__["train"] = StayEval(module)
    for module in _tops(listed):
        type(module).train(module, False)
    return new


def _release(model: nn.Module, keys: set[int]) -> list[nn.Module]:
    """Release held modules, given by id, and give them the mode of what is around them."""
    paths = {path: module for path, module in model.named_modules() if id(module) in keys}
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
        above = model.get_submodule(path)
        if not is_held(above):
            return above.training
    return model.training


def _report(action: str, view: _View, chosen: _Chosen, changed: list[int], modules: list[nn.Module]) -> FreezeReport:
    def first(keys: Iterable[int]) -> tuple[str, ...]:
        return tuple(view.parameter_names[key][0] for key in keys)

    unable = [key for key in chosen.parameters if not _can_train(view.parameters[key])] if action == "unfroze" else []
    settled = {*changed, *unable}
    return FreezeReport(
        action=action,
        selection=chosen.selection,
        parameters=first(changed),
        modules=tuple(view.module_names[id(module)][0] for module in modules),
        unchanged=first(key for key in chosen.parameters if key not in settled),
        skipped=first(unable),
        shared=_shared(view, [*map(id, modules), *chosen.parameters]),
        elements=sum(_numel(view.parameters[key]) for key in changed),
        trainable=sum(_numel(parameter) for parameter in view.parameters.values() if parameter.requires_grad),
        total=sum(map(_numel, view.parameters.values())),
    )


def _shared(view: _View, keys: Iterable[int]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Other names of modules and parameters; what lies in a shared module is not listed again."""
    found: dict[str, tuple[str, ...]] = {}
    for key in keys:
        name, *others = view.module_names.get(key) or view.parameter_names[key]
        if others and not any(is_under(name, known) for known in found):
            found[name] = tuple(others)
    return tuple(found.items())


def _numel(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()
