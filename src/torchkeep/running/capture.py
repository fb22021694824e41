"""Turning live objects into named tensors and plain values: the content of a snapshot."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import tagged
from ..core import tree as trees
from ..core.live import check_savable, state_of, unwrapped
from ..errors import UnsavableError
from ..freezing import held_modules


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


def capture(model: nn.Module | None, optimizer: Any, scheduler: Any, extra: Any) -> Captured:
    """Everything a snapshot holds.

    Raises:
        UnsavableError: some value cannot be written without pickle; `.path` says where.
    """
    captured = Captured()
    if model is not None:
        _model(captured, model)
    if optimizer is not None:
        _optimizer(captured, optimizer, parameter_names(model))
    if scheduler is not None:
        state = captured.add_tree("scheduler", scheduler.state_dict())
        captured.state["scheduler"] = {"class": class_name(scheduler), "state": state}
    if extra is not None:
        captured.state["extra"] = captured.add_tree("extra", extra)
    _random(captured)
    for name, tensor in captured.tensors.items():
        check_savable(name, tensor)
        if tensor.device.type == "meta":
            raise UnsavableError(
                f"{name!r} is on the meta device and has no values", path=name, hint="load weights first"
            )
    return captured


def class_name(obj: Any) -> str:
    """Module and name of an object's class."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def parameter_names(model: nn.Module | None) -> dict[int, str]:
    """Identity of a parameter -> its name in the model."""
    return {} if model is None else {id(parameter): name for name, parameter in unwrapped(model).named_parameters()}


def _model(captured: Captured, model: nn.Module) -> None:
    inner = unwrapped(model)
    tensors, extra = state_of(inner)
    captured.tensors.update({f"model/{name}": tensor for name, tensor in tensors.items()})
    captured.state["model"] = {
        "class": class_name(inner),
        "held": held_modules(inner),
        "extra": captured.add_tree("model-extra", extra),
    }


def group_names(optimizer: Any, names: Mapping[int, str]) -> list[list[str]]:
    """The names of the parameters of each group; `#group.position` for one that is not in the model."""
    return [
        [names.get(id(parameter), f"#{number}.{place}") for place, parameter in enumerate(group["params"])]
        for number, group in enumerate(optimizer.param_groups)
    ]


def _optimizer(captured: Captured, optimizer: Any, names: Mapping[int, str]) -> None:
    """An optimizer by parameter name: its own state dict counts positions, which change with the model."""
    state = optimizer.state_dict()
    by_group = group_names(optimizer, names)
    numbers: dict[Any, str] = {}
    groups: list[dict[str, Any]] = []
    for group, group_of_names in zip(state["param_groups"], by_group, strict=True):
        numbers.update(zip(group["params"], group_of_names, strict=True))
        rest = {key: value for key, value in group.items() if key not in {"params", "param_names"}}
        groups.append({"names": group_of_names, "options": captured.add_tree(f"optimizer/#group{len(groups)}", rest)})
    moments = {}
    for number, value in state["state"].items():
        name = numbers.get(number, f"#state.{number}")
        moments[name] = captured.add_tree(f"optimizer/{name}", value)
    others = {key: value for key, value in state.items() if key not in {"state", "param_groups"}}
    captured.state["optimizer"] = {
        "class": class_name(optimizer),
        "groups": groups,
        "state": moments,
        "others": captured.add_tree("optimizer/#others", others),
    }


def _random(captured: Captured) -> None:
    """The generators of Python, NumPy and torch, the long parts as tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    value = {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": (version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
    }
    captured.state["rng"] = captured.add_tree("rng", value)
