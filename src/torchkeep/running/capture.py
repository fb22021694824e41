"""Turning live objects into named tensors and plain values: the content of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import nn

from ..core import tagged
from ..core import tree as trees
from ..core.live import check_savable, named_parameters, state_of, unwrapped
from ..core.origin import origins_of, packed
from ..errors import UnsavableError
from ..freezing import freeze_state, held_modules
from ..surgery import history
from .gradients import waits
from .randomness import generator_state, random_state
from .tracking import GENERATOR, MODULE, OPTIMIZER, class_name, group_names, kind_of, of_kind, parameter_names


@dataclass
class Captured:
    """The state of tracked objects at one moment, by reference: nothing is copied.

    Attributes:
        tensors: full name (`model/...`, `optimizer/...`) -> tensor.
        state: for each object the tagged JSON of what is no tensor.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def add_tree(self, prefix: str, value: Any) -> Any:
        """Take the tensors out of a nested value; returns the rest as tagged JSON."""
        leaves = trees.leaves(value)
        names = {(leaf.path, id(leaf.tensor)): f"{prefix}/{leaf.name}" for leaf in leaves}
        self.tensors.update({f"{prefix}/{leaf.name}": leaf.tensor for leaf in leaves})
        try:
            return tagged.encode(value, lambda path, tensor: names[path, id(tensor)])
        except UnsavableError as error:
            what = prefix.partition("/")[0]
            error.path = f"{what}.{error.path}" if error.path else what
            error.message = f"in {what}: {error.message}"
            raise


def capture(
    objects: Mapping[str, Any], *, extra: Any = None, data: Any = None, gradients: bool | None = None
) -> Captured:
    """Everything a snapshot holds.

    Args:
        objects: the tracked objects by name.
        extra: what the caller wants kept beside them.
        data: positions in the data.
        gradients: keep the gradients of modules, or not; if None, those that no optimizer has applied.

    Raises:
        UnsavableError: some value cannot be written without pickle; `.path` says where.
    """
    captured = Captured()
    names = parameter_names(objects)
    for name, value in objects.items():
        kind = kind_of(name, value)
        if kind == MODULE:
            state = _module(captured, name, value)
        elif kind == OPTIMIZER:
            state = _optimizer(captured, name, value, names)
        else:
            content = generator_state(value) if kind == GENERATOR else value.state_dict()
            state = {"state": captured.add_tree(name, content)}
        captured.state[name] = {
            "kind": kind,
            "class": class_name(unwrapped(value) if kind == MODULE else value),
            **state,
        }
    if gradients is not False:
        captured.state["gradients"] = _gradients(captured, of_kind(objects, MODULE), whole=bool(gradients))
    if data:
        captured.state["data"] = captured.add_tree("data", data)
    if extra is not None:
        captured.state["extra"] = captured.add_tree("extra", extra)
    captured.state["rng"] = captured.add_tree("rng", random_state())
    for name, tensor in captured.tensors.items():
        check_savable(name, tensor)
        if tensor.device.type == "meta":
            raise UnsavableError(
                f"{name!r} is on the meta device and has no values", path=name, hint="load weights first"
            )
    return captured


def _module(captured: Captured, name: str, module: nn.Module) -> dict[str, Any]:
    tensors, extra = state_of(module)
    captured.tensors.update({f"{name}/{key}": tensor for key, tensor in tensors.items()})
    state: dict[str, Any] = {
        "held": held_modules(module),
        "buffers": [key for key, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)],
        "extra": captured.add_tree(f"{name}-extra", extra),
    }
    origins = {name: origin for name, origin in origins_of(module).items() if name in tensors}
    more = {
        "freeze": freeze_state(module),
        "origins": packed(origins) if origins else None,
        "surgery": list(history(module)) or None,
    }
    return state | {key: tagged.encode(msgspec.to_builtins(one)) for key, one in more.items() if one is not None}


def _gradients(captured: Captured, modules: Mapping[str, nn.Module], *, whole: bool) -> list[str]:
    """The gradients that still wait, or all, as tensors; returns the names of the modules that were looked at."""
    for tracked, module in modules.items():
        for name, parameter in named_parameters(module):
            if parameter.grad is not None and (whole or waits(parameter.grad)):
                if parameter.grad.layout is not torch.strided:
                    raise UnsavableError(
                        f"the gradient of {name!r} in {tracked} is sparse and waits to be applied",
                        path=f"gradients.{tracked}.{name}",
                        hint="save after optimizer.step(), or without gradients: save(..., gradients=False)",
                    )
                captured.tensors[f"gradients/{tracked}/{name}"] = parameter.grad
    return list(modules)


def _optimizer(captured: Captured, tracked: str, optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """An optimizer by parameter name: its own state dict counts positions, which change with the model."""
    state = optimizer.state_dict()
    by_group = group_names(optimizer, names)
    numbers: dict[Any, str] = {}
    groups: list[dict[str, Any]] = []
    for group, group_of_names in zip(state["param_groups"], by_group, strict=True):
        numbers.update(zip(group["params"], group_of_names, strict=True))
        rest = {key: value for key, value in group.items() if key not in {"params", "param_names"}}
        groups.append({"names": group_of_names, "options": captured.add_tree(f"{tracked}/#group{len(groups)}", rest)})
    moments = {}
    for number, value in state["state"].items():
        name = numbers.get(number, f"#state.{number}")
        moments[name] = captured.add_tree(f"{tracked}/{name}", value)
    others = {key: value for key, value in state.items() if key not in {"state", "param_groups"}}
    return {
        "groups": groups,
        "state": moments,
        "values": captured.add_tree(f"{tracked}/#values", _values(optimizer, by_group)),
        "others": captured.add_tree(f"{tracked}/#others", others),
    }


def _values(optimizer: Any, by_group: list[list[str]]) -> dict[str, torch.Tensor]:
    """The parameters that are in no tracked module, such as those of a loss: nothing else would keep them."""
    pairs = zip(by_group, optimizer.param_groups, strict=True)
    named = [pair for names, group in pairs for pair in zip(names, group["params"], strict=True)]
    return {name: parameter.detach() for name, parameter in named if name.startswith("#")}
