"""Finding a layer, refusing what cannot be exchanged safely, and exchanging it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..core.live import module_at, named_modules, named_parameters, unwrapped
from ..core.names import is_under, nearest
from ..core.table import shorten
from ..errors import SurgeryError
from ..freezing import hold, is_held
from .recording import forget
from .trial import calls, target_of

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Change:
    """What one operation on a model did.

    Attributes:
        verb: the function that was called, e.g. `resize_head`.
        name: dotted path of the layer.
        before: the layer as it was, e.g. `Linear(in_features=512, out_features=1000, bias=True)`.
        after: the layer as it is; equal to `before` when nothing had to be done.
        note: what the caller should know, may be empty.
        check: what the model gave for the example before and after, e.g. `float32[1, 1000] -> float32[1, 10]`; empty
            where no example was given.
    """

    verb: str
    name: str
    before: str
    after: str
    note: str = ""
    check: str = ""

    @property
    def changed(self) -> bool:
        """Whether the layer was exchanged."""
        return self.before != self.after

    def __str__(self) -> str:
        what = f"{self.before} -> {self.after}" if self.changed else f"{self.before}, left as it is"
        lines = [f"{self.verb} {self.name}: {what}", *([f"output {self.check}"] if self.check else []), self.note]
        return "\n  ".join(line for line in lines if line)


@dataclass(frozen=True)
class Site:
    """A layer and where in its model it hangs."""

    model: nn.Module
    name: str
    layer: nn.Module

    @property
    def parent(self) -> nn.Module:
        """The module that the layer is a child of."""
        return module_at(self.model, self.name.rpartition(".")[0])

    @property
    def key(self) -> str:
        """Under which name the layer hangs there."""
        return self.name.rpartition(".")[2]

    @property
    def inner(self) -> dict[int, nn.Module]:
        """The layer and all modules in it, by id."""
        return {id(module): module for module in self.layer.modules()}

    def replace(self, parameters: dict[str, nn.Parameter | None], **sizes: int) -> nn.Module:
        """Put a twin of the layer with other parameters in its place."""
        twin = twin_of(self.layer)
        twin.__dict__.update(sizes, _parameters=parameters)
        self.put(twin)
        return twin

    def put(self, new: nn.Module) -> None:
        """Put another module in the place of the layer, inside whatever wraps it; it is held where that was."""
        holder, key = self.parent, self.key
        while unwrapped(child := holder._modules[key]) is not child:  # type: ignore[arg-type]
            assert child is not None
            holder, key = child, next(name for name, one in child._modules.items() if one is not None)
        holder._modules[key] = new
        if is_held(self.layer):
            hold(self.model, [self.name, *(f"{self.name}.{path}" for path, _ in named_modules(new) if path)])


def twin_of(layer: nn.Module) -> nn.Module:
    """A shallow copy that shares even the dicts of hooks: so the handles of registered hooks still remove them."""
    twin = copy.copy(layer)
    forget([twin])
    if is_held(layer):
        del twin.__dict__["train"]  # bound to the old layer
    return twin


def check_count(what: str, value: Any) -> None:
    """Refuse anything but a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SurgeryError(f"{what} must be a positive integer, not {value!r}")


def find(
    model: nn.Module,
    name: str | None,
    *,
    last: bool,
    kinds: tuple[type[nn.Module], ...],
    what: str,
    example: Any = None,
) -> Site:
    """The layer of a name, or the first or last one that owns parameters, when it can be exchanged.

    Args:
        model: the model.
        name: dotted path, or None to find the layer.
        last: look for the last layer, not the first.
        kinds: classes the layer may have, or derive from without parameters of its own.
        what: the word for it in messages, `head` or `stem`.
        example: an input of the model, to find the layer by what is called.

    Raises:
        SurgeryError: there is no such layer, or it cannot be exchanged.
    """
    model = target_of(model)
    found = name is None
    name = _end_of(model, example, last=last, what=what) if name is None else name
    site = site_of(model, name)
    _check_kind(site, kinds, what, found=found)
    _check_plain(site)
    check_alone(site)
    return site


def site_of(model: nn.Module, name: str) -> Site:
    """The place of a name.

    Raises:
        SurgeryError: there is none.
    """
    modules = dict(named_modules(model))
    if name in modules:
        return Site(model, name, modules[name])
    close = nearest(str(name), modules)
    hint = f"the nearest are {', '.join(map(repr, close))}" if close else ""
    raise SurgeryError(f"the model has no module {name!r}", hint=hint)


def child_site(model: nn.Module, name: str) -> Site:
    """The place of a name, which hangs in another module.

    Raises:
        SurgeryError: there is none, or it is the model itself.
    """
    site = site_of(model, name)
    if not name:
        raise SurgeryError(
            f"the model itself, a {type(model).__name__}, is the layer, so nothing holds it",
            hint="make a new model instead",
        )
    if isinstance(site.parent, torch.jit.ScriptModule):
        raise SurgeryError(f"{name!r} is a part of compiled TorchScript, whose structure is fixed")
    return site


def head_of(model: nn.Module, example: Any = None) -> str:
    """The name of the head: the last layer with parameters that the data pass through.

    >>> head_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Softmax(1)))
    '2'

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        example: an input of the model: a tensor, a tuple of arguments, or a dict of keyword arguments. The model is run
            on it once, in eval mode, and is not changed by that. None goes by the order of registration, which need
            not be that of the forward.

    Raises:
        SurgeryError: the model has no parameters, or fails on the example.
    """
    return _end_of(target_of(model), example, last=True, what="head")


def stem_of(model: nn.Module, example: Any = None) -> str:
    """The name of the stem: the first layer with parameters that the data pass through.

    Args and errors are those of `head_of`.
    """
    return _end_of(target_of(model), example, last=False, what="stem")


def owners(model: nn.Module) -> list[str]:
    """Paths of the modules that own parameters; a parametrized one owns those of its parametrizations."""
    first = {id(module): path for path, module in reversed(list(named_modules(model))) if list(_own(module))}
    paths = [path for path, module in named_modules(model) if first.get(id(module)) == path]
    return list(dict.fromkeys(f".{path}".partition(".parametrizations.")[0][1:] for path in paths))


def _end_of(model: nn.Module, example: Any, *, last: bool, what: str) -> str:
    paths = owners(model)
    if not paths:
        raise SurgeryError(f"the model has no parameters, so it has no {what}")
    if example is None:
        return paths[-1 if last else 0]
    called = calls(model, example)
    known = set(paths)
    found = {path: call for path, call in called.items() if path in known}
    leaves = [
        call for path, call in found.items() if not any(is_under(other, path) and other != path for other in found)
    ]
    if not leaves:
        raise SurgeryError(
            f"the example goes through no module that owns parameters, so the {what} cannot be found by it",
            hint="go without example=, or pass name=",
        )
    return max(leaves, key=lambda call: call.ended).path if last else min(leaves, key=lambda call: call.started).path


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module._parameters.values() if parameter is not None)


def _check_kind(site: Site, kinds: tuple[type[nn.Module], ...], what: str, *, found: bool) -> None:
    layer, cls = site.layer, type(site.layer)
    label = f"{site.name!r}, a {cls.__name__}," if site.name else f"the model itself, a {cls.__name__},"
    check_computed(site)
    if any(is_lazy(parameter) for parameter in _own(layer)):
        raise SurgeryError(f"{label} has no shape yet", hint="run one batch through the model first")
    if not isinstance(layer, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        problem = f"{label} is not {wanted}"
        if found:
            problem = f"the {'last' if what == 'head' else 'first'} module that owns parameters is {label[:-1]}, "
            problem += f"and not {wanted}"
        raise SurgeryError(problem, hint=_candidates(site.model, kinds))
    if not site.name:
        raise SurgeryError(f"{label} is the layer, so nothing holds it", hint="make a new layer instead")


def _parametrized(layer: nn.Module) -> list[str]:
    held = layer.parametrizations
    return list(held) if isinstance(held, nn.ModuleDict) else []


def _candidates(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    names = [path for path, module in model.named_modules() if type(module) in kinds and path]
    listed = shorten([*names[:2], *names[2:][-3:]]) if names else ""
    return f"pass name=, e.g. one of {listed}" if names else "pass name=; but the model has no such layer"


OLD_HOOKS = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm", BasePruningMethod: "prune"}


def check_computed(site: Site) -> None:
    """Refuse layers whose weight is computed from other tensors."""
    layer = site.layer
    label = f"{site.name!r}, a {type(layer).__name__}," if site.name else f"the model itself, a {type(layer).__name__},"
    if parametrize.is_parametrized(layer):
        raise SurgeryError(
            f"{label} is parametrized: its {', '.join(_parametrized(layer))} is computed from other tensors",
            hint="torch.nn.utils.parametrize.remove_parametrizations it first, and parametrize the new layer again",
        )
    for hook in layer._forward_pre_hooks.values():
        for kind, function in OLD_HOOKS.items():
            if isinstance(hook, kind):
                raise SurgeryError(
                    f"{site.name!r} is changed by torch.nn.utils.{function}: its weight is computed from other tensors",
                    hint="remove it first, and apply it to the new layer again",
                )


def _check_plain(site: Site) -> None:
    """Refuse layers whose weight is not simply a parameter."""
    layer = site.layer
    extra = [*(layer._parameters.keys() - {"weight", "bias"}), *layer._buffers, *layer._modules]
    if extra or layer._parameters.get("weight") is None:
        found = f"it owns {', '.join(map(repr, extra))} too" if extra else "it has no parameter 'weight'"
        raise SurgeryError(
            f"{site.name!r}, a {type(layer).__name__}, is more than a weight and a bias: {found}",
            hint="make it a plain layer first (LoRA: merge it), or exchange it by hand",
        )


def check_alone(site: Site, going: Collection[int] | None = None) -> None:
    """Refuse a layer that is used elsewhere too, where the old one would stay.

    Args:
        site: the layer.
        going: ids of the parameters that are exchanged; all of them if None.
    """
    others = [*elsewhere(site, going), *attributes(site)]
    if others:
        raise SurgeryError(
            f"{site.name!r} is also in use as {', '.join(others)}, which would keep the old layer",
            hint="untie them first, or exchange the layer by hand in every place",
        )


def check_unreferenced(sites: Iterable[Site]) -> None:
    """Refuse to take away what an attribute of the model, which nobody sees, would go on using."""
    for site in sites:
        others = attributes(site)
        if others:
            raise SurgeryError(
                f"{site.name!r} is also in use as {', '.join(others)}, which would keep it",
                hint="clear the attribute first, or change the model by hand",
            )


def elsewhere(site: Site, going: Collection[int] | None = None) -> list[str]:
    """Where else the layer and its parameters are in use, as text."""
    places = [f"the module {path!r}" for path in other_places(site)]
    return places + [f"the tied parameter {name!r}" for name in ties(site, going)]


def other_places(site: Site) -> list[str]:
    """The other paths of the layer, and of the modules in it."""
    inner = site.inner
    found = [
        path for path, module in named_modules(site.model) if id(module) in inner and not is_under(path, site.name)
    ]
    return [path for path in found if not any(path != other and is_under(path, other) for other in found)]


def ties(site: Site, going: Collection[int] | None = None) -> list[str]:
    """The names that parameters of the layer have in other modules."""
    inner = site.inner
    mine = {id(parameter) for module in inner.values() for parameter in _own(module)}
    mine &= mine if going is None else set(going)
    modules = {path: id(module) for path, module in named_modules(site.model)}
    return [
        name
        for name, parameter in named_parameters(site.model)
        if id(parameter) in mine and modules[name.rpartition(".")[0]] not in inner
    ]


def attributes(site: Site) -> list[str]:
    """The attributes of other modules that are the layer or a list or dict with it, as text."""
    inner, found = site.inner, []
    for path, module in site.model.named_modules():
        if id(module) not in inner:
            keys = [key for key, value in vars(module).items() if key != "_modules" and _refers(value, inner)]
            found += [f"the attribute {key!r} of {repr(path) if path else 'the model'}" for key in keys]
    return found


def _refers(value: Any, inner: Collection[int]) -> bool:
    if isinstance(value, (list, tuple)):
        return any(id(item) in inner for item in value)
    return any(id(item) in inner for item in value.values()) if isinstance(value, dict) else id(value) in inner


def text_of(module: nn.Module) -> str:
    """A module in a line: as it prints itself, or its class and size."""
    said = repr(module)
    if "\n" not in said:
        return said
    return f"{type(module).__name__} of {sum(1 for _ in module.modules()) - 1} modules"
