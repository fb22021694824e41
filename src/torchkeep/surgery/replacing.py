"""Another module, or the same with other keywords, in the place of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core.live import module_at, named_parameters, spec_of
from ..core.operations import Operation
from ..errors import SurgeryError
from ..freezing import is_held
from .describing import (
    CONTAINERS,
    check_keywords,
    constructor_of,
    describe,
    is_plain,
    listed,
    made_by,
    same_structure,
    torch_class,
)
from .layers import (
    OLD_HOOKS,
    Change,
    Site,
    check_alone,
    check_computed,
    check_unreferenced,
    child_site,
    other_places,
    text_of,
    ties,
    twin_of,
)
from .recording import forget
from .trial import carried_out, target_of

_HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
}


def replace(model: nn.Module, name: str, new: nn.Module | Mapping[str, Any], *, example: Any = None) -> Change:
    """Put another module in the place of one, or the same layer with other keywords.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000))
    >>> print(replace(model, "1", nn.GELU()))
    replace 1: ReLU() -> GELU(approximate='none')
    >>> print(replace(model, "2", {"out_features": 3}))
    replace 2: Linear(in_features=8, out_features=1000, bias=True) -> Linear(in_features=8, out_features=3, bias=True)
      fresh values: weight, bias

    The new module gets the dtype, device, training mode and forward and backward hooks of the old one, and is frozen
    and held in eval mode if that was. With keywords, parameters and buffers whose shapes stay are the same objects as
    before, so an optimizer goes on with them; the others are initialised by the layer's own rule.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        name: dotted path of the module.
        new: the module, which is taken as it is and not copied, or keywords of the constructor, for a layer of torch.nn
            or a subclass with nothing of its own: `{"out_features": 10}`, `{"stride": 1, "bias": False}`.
        example: an input of the model to run it on before and after: a tensor, a tuple of arguments, or a dict of
            keyword arguments. That changes neither the model nor any generator.

    Raises:
        SurgeryError: there is no such module, it cannot be exchanged, or the model fails on the example. The model is
            untouched.
    """
    model = target_of(model)
    site = child_site(model, name)
    if isinstance(new, Mapping):
        return _with_keywords(site, dict(new), example)
    if not isinstance(new, nn.Module):
        raise SurgeryError(
            f"{name!r} cannot be replaced by a {type(new).__name__}", hint="pass a module, or a dict of keywords"
        )
    return _with_module(site, new, describe(new, model), example)


def _with_module(site: Site, new: nn.Module, said: dict[str, Any], example: Any) -> Change:
    before, old = text_of(site.layer), site.layer
    if new is old:
        return Change("replace", site.name, before, before, "it is this module already")
    check_new(site, new)
    check_unreferenced([site])
    others = other_places(site)
    notes = [f"the module {path!r} keeps the old layer" for path in others]
    notes += [f"the tie with {name!r} is gone" for name in ties(site)]
    shared = "shared" in said
    still = is_still(old) and not shared
    if not shared:
        fit(new, old, site.model)

    def change() -> None:
        if not shared:
            notes.extend(carry_hooks(old, new, stays=bool(others)))
            new.train(old.training)
        if still:
            new.requires_grad_(False)
        site.put(new)

    if still and any(True for _ in new.parameters()):
        notes.append("the new module is frozen as the old one was: unfreeze it to train it")
    check = carried_out(site.model, Operation("replace", site.name, {"module": said}), change, example)
    if "class" in said and len(said) > 1:
        forget(new.modules())
    return Change("replace", site.name, before, text_of(new), "; ".join(notes), check)


def is_still(module: nn.Module) -> bool:
    """Whether a module is frozen: no parameter of it is trained, and it has some, or it is held."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return is_held(module) or (bool(flags) and not any(flags))


def check_new(site: Site, new: nn.Module) -> None:
    """Refuse a module that contains the place it is to go to."""
    inside = {id(module) for module in new.modules()}
    if id(site.parent) in inside or id(site.model) in inside:
        raise SurgeryError(f"the new module contains {site.name!r} itself, so it would lie in itself")


def fit(new: nn.Module, old: nn.Module, model: nn.Module) -> None:
    """Give a module the device and the dtype of another, or of the model where that one has no tensors.

    Raises:
        SurgeryError: it is on the meta device and has no values to move.
    """
    like = next((tensor for module in (old, model) for tensor in _tensors(module)), None)
    if like is None:
        return
    floating = next((tensor.dtype for module in (old, model) for tensor in _tensors(module) if _floats(tensor)), None)
    mine = list(_tensors(new))
    try:
        if any(tensor.device != like.device for tensor in mine):
            new.to(like.device)
        if floating is not None and any(tensor.dtype != floating for tensor in mine if _floats(tensor)):
            new.to(floating)
    except NotImplementedError as error:
        raise SurgeryError(
            "the new module is on the meta device and the model is not",
            hint="make it with values: module.to_empty(...)",
        ) from error


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _floats(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point()


def carry_hooks(old: nn.Module, new: nn.Module, *, stays: bool = False) -> list[str]:
    """Give a module the forward and backward hooks of another, which the handles still remove where that can be.

    Hooks that compute the old layer's weight, or are its own methods, are left behind. Where the old layer stays in use
    at another place, it keeps its own.
    """
    notes = []
    for key, beside in _HOOKS.items():
        hooks = {number: hook for number, hook in old.__dict__[key].items() if not _is_own(hook, old)}
        if not hooks:
            continue
        if not stays and not new.__dict__[key] and len(hooks) == len(old.__dict__[key]):
            new.__dict__.update({name: old.__dict__[name] for name in (key, *beside)})
        else:
            new.__dict__[key].update(hooks)
            for name in beside:
                new.__dict__[name].update({n: flag for n, flag in old.__dict__[name].items() if n in hooks})
            notes.append(f"{len(hooks)} hooks came along, and their handles no longer remove them")
    if old.__dict__.get("_is_full_backward_hook") is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    return notes


def _is_own(hook: Any, layer: nn.Module) -> bool:
    return getattr(hook, "__self__", None) is layer or isinstance(hook, tuple(OLD_HOOKS))


def _with_keywords(site: Site, changes: dict[str, Any], example: Any) -> Change:
    check_computed(site)
    layer = site.layer
    kind = torch_class(type(layer))
    if kind is None or kind in CONTAINERS:
        raise SurgeryError(
            f"{site.name!r} is a {type(layer).__name__}, whose constructor torchkeep does not know",
            hint="pass a new module instead of keywords",
        )
    check_keywords(kind, changes)
    _check_plain(changes)
    known = constructor_of(layer, kind)
    if known is None:
        raise SurgeryError(
            f"{site.name!r}, a {type(layer).__name__}, is not what {kind.__name__} makes: it has something of its own",
            hint="pass a new module instead of keywords",
        )
    before = text_of(layer)
    if all(key in known and known[key] == value for key, value in changes.items()):
        return Change("replace", site.name, before, before, "it is so already")
    fresh = made_by(kind, known | changes)
    fit(fresh, layer, site.model)
    kept, going = _kept(layer, fresh)
    check_alone(site, going)
    twin = _twin(layer, fresh, kept)
    made = [name for name, _ in fresh.named_parameters() if name not in kept]
    notes = [f"fresh values: {', '.join(made)}"] if made else []
    if made and is_still(layer):
        notes.append("they are frozen as the old ones were: unfreeze them")
    operation = Operation("replace", site.name, {"changes": listed(changes)})
    check = carried_out(site.model, operation, lambda: site.put(twin), example)
    return Change("replace", site.name, before, text_of(twin), "; ".join(notes), check)


def _check_plain(changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if not is_plain(value):
            raise SurgeryError(
                f"{key}={value!r} cannot be recorded: it is no number and no text",
                hint="make the module yourself, and pass that",
            )


def _kept(layer: nn.Module, fresh: nn.Module) -> tuple[dict[str, torch.Tensor], Collection[int]]:
    """The tensors that stay, by name, and the ids of the parameters that go."""
    new = dict(named_parameters(fresh)) | dict(fresh.named_buffers())
    old = dict(named_parameters(layer)) | dict(layer.named_buffers())
    kept = {
        name: tensor
        for name, tensor in old.items()
        if name in new and spec_of(new[name]).shape == spec_of(tensor).shape
    }
    staying = {id(tensor) for tensor in kept.values()}
    return kept, {id(parameter) for parameter in layer.parameters()} - staying


def _twin(layer: nn.Module, fresh: nn.Module, kept: Mapping[str, torch.Tensor]) -> nn.Module:
    """The layer with what a fresh one has, apart from hooks and mode, and with the tensors that stay."""
    flags = {name: parameter.requires_grad for name, parameter in layer.named_parameters()}
    still = is_still(layer)
    for name, parameter in fresh.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad = flags.get(name, not still)
    fresh.train(layer.training)
    for key, child in layer._modules.items():
        new = fresh._modules.get(key)
        if child is not None and new is not None and same_structure(child, new):
            fresh._modules[key] = child
    twin = twin_of(layer)
    twin.__dict__.update(
        {key: value for key, value in fresh.__dict__.items() if "hook" not in key and key != "training"}
    )
    for name, tensor in kept.items():
        path, _, key = name.rpartition(".")
        setattr(module_at(twin, path), key, tensor)
    return twin
