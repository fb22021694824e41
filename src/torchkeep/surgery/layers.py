"""Finding a layer, refusing what cannot be exchanged safely, and exchanging it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..core.live import unwrapped
from ..core.names import nearest
from ..core.table import shorten
from ..errors import SurgeryError
from ..freezing import hold, is_held

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Change:
    """What one operation on a model did.

    Attributes:
        verb: `resize_head` or `adapt_input`.
        name: dotted path of the layer.
        before: the layer as it was, e.g. `Linear(in_features=512, out_features=1000, bias=True)`.
        after: the layer as it is; equal to `before` when nothing had to be done.
        note: what the caller should know, may be empty.
    """

    verb: str
    name: str
    before: str
    after: str
    note: str = ""

    @property
    def changed(self) -> bool:
        """Whether the layer was exchanged."""
        return self.before != self.after

    def __str__(self) -> str:
        what = f"{self.before} -> {self.after}" if self.changed else f"{self.before}, left as it is"
        return f"{self.verb} {self.name}: {what}" + (f"\n  {self.note}" if self.note else "")


@dataclass(frozen=True)
class Site:
    """A layer and where in its model it hangs."""

    model: nn.Module
    name: str
    layer: nn.Module

    def replace(self, parameters: dict[str, nn.Parameter | None], **sizes: int) -> nn.Module:
        """Put a twin of the layer with other parameters in its place.

        The twin shares everything else, the dicts of hooks too: so the handles of registered hooks still remove them.
        """
        twin = copy.copy(self.layer)
        twin.__dict__.update(sizes, _parameters=parameters)
        if is_held(self.layer):
            del twin.__dict__["train"]  # bound to the old layer
        parent, _, key = self.name.rpartition(".")
        self.model.get_submodule(parent)._modules[key] = twin
        if is_held(self.layer):
            hold(self.model, [self.name])
        return twin


def check_count(what: str, value: Any) -> None:
    """Refuse anything but a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SurgeryError(f"{what} must be a positive integer, not {value!r}")


def find(model: nn.Module, name: str | None, *, last: bool, kinds: tuple[type[nn.Module], ...], what: str) -> Site:
    """The layer of a name, or the first or last one that owns parameters, when it can be exchanged.

    Args:
        model: the model.
        name: dotted path, or None to find the layer.
        last: look for the last layer, not the first.
        kinds: classes the layer may have, or derive from without parameters of its own.
        what: the word for it in messages, `head` or `stem`.

    Raises:
        SurgeryError: there is no such layer, or it cannot be exchanged.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise SurgeryError(
            "the model is wrapped by DistributedDataParallel, which would go on with the old parameters",
            hint="change the model first and wrap it then",
        )
    model = unwrapped(model)
    site = _first_or_last(model, last=last, what=what) if name is None else _named(model, name)
    _check_kind(site, kinds, what, found=name is None)
    _check_plain(site)
    _check_alone(site)
    return site


def owners(model: nn.Module) -> list[str]:
    """Paths of the modules that own parameters; a parametrized one owns those of its parametrizations."""
    paths = [path for path, module in model.named_modules() if list(_own(module))]
    return list(dict.fromkeys(f".{path}".partition(".parametrizations.")[0][1:] for path in paths))


def _first_or_last(model: nn.Module, *, last: bool, what: str) -> Site:
    paths = owners(model)
    if not paths:
        raise SurgeryError(f"the model has no parameters, so it has no {what}")
    path = paths[-1 if last else 0]
    return Site(model, path, model.get_submodule(path))


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module._parameters.values() if parameter is not None)


def _named(model: nn.Module, name: str) -> Site:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name in modules:
        return Site(model, name, modules[name])
    close = nearest(name, modules)
    hint = f"the nearest are {', '.join(map(repr, close))}" if close else ""
    raise SurgeryError(f"the model has no module {name!r}", hint=hint)


def _check_kind(site: Site, kinds: tuple[type[nn.Module], ...], what: str, *, found: bool) -> None:
    layer, cls = site.layer, type(site.layer)
    label = f"{site.name!r}, a {cls.__name__}," if site.name else f"the model itself, a {cls.__name__},"
    if parametrize.is_parametrized(layer):
        raise SurgeryError(
            f"{label} is parametrized: its {', '.join(_parametrized(layer))} is computed from other tensors",
            hint="torch.nn.utils.parametrize.remove_parametrizations it first, and parametrize the new layer again",
        )
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


_OLD_HOOKS = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm", BasePruningMethod: "prune"}


def _check_plain(site: Site) -> None:
    """Refuse layers whose weight is not simply a parameter."""
    layer = site.layer
    for hook in layer._forward_pre_hooks.values():
        for kind, function in _OLD_HOOKS.items():
            if isinstance(hook, kind):
                raise SurgeryError(
                    f"{site.name!r} is changed by torch.nn.utils.{function}: its weight is computed from other tensors",
                    hint="remove it first, and apply it to the new layer again",
                )
    extra = [*(layer._parameters.keys() - {"weight", "bias"}), *layer._buffers, *layer._modules]
    if extra or layer._parameters.get("weight") is None:
        found = f"it owns {', '.join(map(repr, extra))} too" if extra else "it has no parameter 'weight'"
        raise SurgeryError(
            f"{site.name!r}, a {type(layer).__name__}, is more than a weight and a bias: {found}",
            hint="make it a plain layer first (LoRA: merge it), or exchange it by hand",
        )


def _check_alone(site: Site) -> None:
    """Refuse a layer that is used elsewhere too, where the old one would stay."""
    aliases = [path for path, module in site.model.named_modules(remove_duplicate=False) if module is site.layer]
    others = [f"the module {path!r}" for path in aliases if path != site.name]
    mine = set(map(id, _own(site.layer)))
    for name, parameter in site.model.named_parameters(remove_duplicate=False):
        if id(parameter) in mine and name.rpartition(".")[0] not in aliases:
            others.append(f"the tied parameter {name!r}")
    for path, module in site.model.named_modules():
        keys = [key for key, value in vars(module).items() if key != "_modules" and _refers(value, site.layer)]
        others += [f"the attribute {key!r} of {repr(path) if path else 'the model'}" for key in keys]
    if others:
        raise SurgeryError(
            f"{site.name!r} is also in use as {', '.join(others)}, which would keep the old layer",
            hint="untie them first, or exchange the layer by hand in every place",
        )


def _refers(value: Any, layer: nn.Module) -> bool:
    if isinstance(value, (list, tuple)):
        return any(item is layer for item in value)
    return any(item is layer for item in value.values()) if isinstance(value, dict) else value is layer
