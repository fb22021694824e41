"""Other numbers of classes and of input channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..adapters.channels import with_channels
from ..core.operations import Operation
from ..errors import SurgeryError
from ..freezing import is_held
from .layers import CONVS, Change, Conv, Site, check_count, find, owners, site_of
from .trial import carried_out, mapped, shapes

# Attributes under which models keep the number of classes for themselves.
_COUNTS = ("num_classes", "n_classes", "num_labels", "out_features")


def resize_head(model: nn.Module, classes: int, *, name: str | None = None, example: Any = None) -> Change:
    """Exchange the classifier for a fresh one with another number of classes.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000))
    >>> print(resize_head(model, 3).after)
    Linear(in_features=8, out_features=3, bias=True)

    The new layer has the old one's class, place, sizes, bias or none, dtype, device, training mode, requires_grad flags
    and hooks, and values from torch's own initialiser for such a layer. A head that has this many classes already is
    left as it is, values too. Do this before making the optimizer, which would go on with the old parameters.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        classes: how many outputs the new head has.
        name: dotted path of the head; None takes the last layer with parameters, as `head_of` finds it.
        example: an input of the model, by which the head is found, and which the model is run on before and after: a
            tensor, a tuple of arguments, or a dict of keyword arguments. That changes neither the model nor any
            generator.

    Raises:
        SurgeryError: there is no Linear or Conv where the head should be, or it cannot be exchanged because it is
            parametrized, has parameters of another kind, or is used elsewhere too; or the model fails on the example.
            The model is untouched.
    """
    check_count("classes", classes)
    site = find(model, name, last=True, kinds=(nn.Linear, *CONVS), what="head", example=example)
    layer: Any = site.layer
    size = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    before = repr(layer)
    if getattr(layer, size) == classes:
        return Change("resize_head", site.name, before, before, f"it has {classes} classes already")
    notes = _head_notes(site, getattr(layer, size), example)
    parameters = _fresh(site, classes)
    operation = Operation("resize_head", site.name, {"classes": classes})
    check = carried_out(site.model, operation, lambda: site.replace(parameters, **{size: classes}), example)
    after = repr(site_of(site.model, site.name).layer)
    return Change("resize_head", site.name, before, after, "; ".join(notes), check)


def adapt_input(model: nn.Module, channels: int, *, name: str | None = None, example: Any = None) -> Change:
    """Make the first convolution take another number of channels without changing what it computes.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> grey = torch.rand(1, 1, 5, 5)
    >>> before = model(grey.expand(1, 3, 5, 5))
    >>> print(adapt_input(model, 1).after)
    Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
    >>> torch.allclose(model(grey), before, atol=1e-6)
    True

    With one channel the new kernels are the sums over the old input channels: a grey image gives what it gave when
    repeated over all channels. With more channels than before the new ones start at zero: they are ignored until
    training gives them weight. Bias, dtype, device, training mode, requires_grad flags and hooks stay. Do this before
    making the optimizer, which would go on with the old parameter.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        channels: how many channels its input will have.
        name: dotted path of the stem; None takes the first layer with parameters, as `stem_of` finds it.
        example: an input of the model as it is, with its old channels: a tensor, a tuple of arguments, or a dict of
            keyword arguments. The stem is found by it, and what the model gives for it, or for one channel of it, is
            compared with what it gives after. That changes neither the model nor any generator.

    Raises:
        SurgeryError: there is no convolution where the stem should be, it cannot be exchanged, there is no way to
            keep what it computes, as from 3 channels to 2, or the model fails on the example. The model is untouched.
    """
    check_count("channels", channels)
    site = find(model, name, last=False, kinds=CONVS, what="stem", example=example)
    layer: Any = site.layer
    before = repr(layer)
    if layer.in_channels == channels:
        return Change("adapt_input", site.name, before, before, f"it takes {channels} channels already")
    _check_channels(site, layer, channels)
    old = layer.in_channels
    if channels == 1:
        note = f"a grey image now gives what it gave when repeated over {old} channels with the same normalisation"
    else:
        note = f"channels {old} to {channels - 1} start with zero weights, so they are ignored until trained"
    weight = nn.Parameter(with_channels(layer.weight.detach(), channels), requires_grad=layer.weight.requires_grad)
    operation = Operation("adapt_input", site.name, {"channels": channels})

    def change() -> None:
        site.replace({"weight": weight, "bias": layer.bias}, in_channels=channels)

    given, wanted = (None, None) if example is None else _both(example, old, channels)
    check = carried_out(site.model, operation, change, given, then=wanted)
    after = repr(site_of(site.model, site.name).layer)
    return Change("adapt_input", site.name, before, after, note, check)


def _both(example: Any, old: int, channels: int) -> tuple[Any, Any]:
    """An input with the old number of channels, and one with the new number that shows the same."""
    found: list[int] = []

    def images(value: Any, *, new: bool) -> Any:
        def convert(tensor: torch.Tensor) -> torch.Tensor:
            places = [place for place in (1, 0, -1) if tensor.ndim > 2 and tensor.shape[place] == old]
            if not places or found:
                return tensor
            found.append(places[0])
            if channels == 1:
                grey = tensor.narrow(places[0], 0, 1)
                return grey if new else grey.repeat_interleave(old, places[0])
            more = tensor.narrow(places[0], 0, 1).repeat_interleave(channels - old, places[0])
            return torch.cat([tensor, more], places[0]) if new else tensor

        found.clear()
        if isinstance(value, Mapping):
            return {key: mapped(item, convert) for key, item in value.items()}
        return mapped(value, convert)

    pair = images(example, new=False), images(example, new=True)
    if not found:
        raise SurgeryError(
            f"the example, {shapes(example)}, has no tensor with {old} channels",
            hint="pass an input of the model as it is",
        )
    return pair


def _fresh(site: Site, classes: int) -> dict[str, nn.Parameter | None]:
    """Newly initialised parameters for the head, with the old one's dtypes, device and flags."""
    layer: Any = site.layer
    options = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    try:
        if isinstance(layer, nn.Linear):
            fresh: nn.Module = nn.Linear(layer.in_features, classes, **options)
        else:
            kept = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
            options |= {key: getattr(layer, key) for key in kept}
            kind = next(kind for kind in CONVS if isinstance(layer, kind))
            fresh = kind(layer.in_channels, classes, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SurgeryError(f"{site.name!r} cannot be made with {classes} classes: {error}") from error
    for key, parameter in fresh._parameters.items():
        if parameter is not None:
            parameter.requires_grad = layer._parameters[key].requires_grad
    return fresh._parameters


def _head_notes(site: Site, old: int, example: Any) -> list[str]:
    notes = []
    if is_held(site.layer) or not any(parameter.requires_grad for parameter in site.layer.parameters()):
        notes.append("the new head is frozen as the old one was, and untrained: unfreeze it")
    if example is None and owners(site.model)[-1] != site.name:
        notes.append("it is not the last layer of the model: whatever takes its output must take the new size")
    stale = [key for key in _COUNTS if vars(site.model).get(key) == old]
    notes += [f"the model's attribute {key!r} still says {old}" for key in stale]
    return notes


def _check_channels(site: Site, layer: Conv, channels: int) -> None:
    if layer.groups != 1:
        raise SurgeryError(
            f"{site.name!r} has {layer.groups} groups, so no kernel sees all input channels",
            hint="exchange it by hand",
        )
    if not (layer.weight.is_floating_point() or layer.weight.is_complex()):
        raise SurgeryError(f"the weight of {site.name!r} holds {layer.weight.dtype}, which cannot be adapted")
    if 1 < channels < layer.in_channels:
        raise SurgeryError(
            f"{site.name!r} takes {layer.in_channels} channels, and nothing says which of them {channels} channels "
            "stand for, so what it computes cannot be kept",
            hint="adapt to 1 channel, or choose the kernels by hand",
        )
