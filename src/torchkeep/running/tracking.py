"""What a run can keep track of, and what each of the things is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.live import named_parameters
from ..errors import SaveError

MODULE, OPTIMIZER, STATE, GENERATOR = "module", "optimizer", "state", "generator"
RESERVED = frozenset({"rng", "extra", "data", "gradients"})
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_EXPECTED = {"model": (MODULE, "nn.Module"), "optimizer": (OPTIMIZER, "optimizer"), "scheduler": (STATE, "scheduler")}


def kind_of(name: str, value: Any) -> str:
    """How an object is saved and restored.

    Raises:
        SaveError: it has no state that can be taken and given back, or the name is taken.
    """
    if name in RESERVED:
        raise SaveError(f"nothing can be tracked as {name!r}: the name is in use", hint="give it another name")
    kind = _kind(value)
    wanted, what = _EXPECTED.get(name, (kind, ""))
    if kind is None or kind != wanted:
        what = what or "object that can be tracked"
        raise SaveError(
            f"{name}= is a {type(value).__name__}, which is no {what}",
            hint="a run tracks modules, optimizers, generators, and whatever has state_dict and load_state_dict; "
            "plain values are passed to save as extra=",
        )
    return kind


def _kind(value: Any) -> str | None:
    if isinstance(value, nn.Module):
        return MODULE
    if isinstance(value, GENERATORS):
        return GENERATOR
    if hasattr(value, "param_groups") and hasattr(value, "state_dict"):
        return OPTIMIZER
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return STATE
    return None


def of_kind(objects: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The tracked objects of one kind."""
    return {name: value for name, value in objects.items() if _kind(value) == kind}


def parameter_names(objects: Mapping[str, Any]) -> dict[int, str]:
    """Identity of a parameter -> its name: that in `model`, or `<tracked name>:<its name there>` of another module."""
    names: dict[int, str] = {}
    modules = of_kind(objects, MODULE)
    for tracked in sorted(modules, key=lambda name: name != "model"):
        prefix = "" if tracked == "model" else f"{tracked}:"
        for name, parameter in named_parameters(modules[tracked]):
            names.setdefault(id(parameter), prefix + name)
    return names


def parameters_by_name(objects: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The same the other way round."""
    modules = of_kind(objects, MODULE)
    found = (parameter for module in modules.values() for _, parameter in named_parameters(module))
    names = parameter_names(objects)
    return {names[id(parameter)]: parameter for parameter in found}


def group_names(optimizer: Any, names: Mapping[int, str]) -> list[list[str]]:
    """The names of the parameters of each group; `#group.position` for one that is in no tracked module."""
    return [
        [names.get(id(parameter), f"#{number}.{place}") for place, parameter in enumerate(group["params"])]
        for number, group in enumerate(optimizer.param_groups)
    ]


def counts_groups(objects: Iterable[Any], optimizer: Any) -> bool:
    """Whether something that is tracked keeps a list with a place for each group of an optimizer."""
    return any(getattr(value, "optimizer", None) is optimizer for value in objects)


def class_name(obj: Any) -> str:
    """Module and name of an object's class."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"
