"""What modules inside a model give, by their names."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..errors import SurgeryError
from .layers import site_of
from .trial import mapped, target_of


class Features(nn.Module):
    """A model that gives what some of its modules give: `features(images)["layer2"]`.

    Attributes:
        model: the model, which is shared and not copied.
        names: the modules.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run the whole model on its own arguments.

        Returns:
            For each name what the module gave, in its last call where there are several. Tensors are copies, which a
            later operation in place does not change; gradients flow through them.

        Raises:
            SurgeryError: the model did not call one of the modules.
        """
        found: dict[str, Any] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[name] = mapped(output, torch.clone)

            return hook

        with ExitStack() as hooks:
            for name in self.names:
                hooks.callback(site_of(self.model, name).layer.register_forward_hook(keep(name)).remove)
            self.model(*args, **kwargs)
        missing = [name for name in self.names if name not in found]
        if missing:
            raise SurgeryError(
                f"the model did not call {', '.join(map(repr, missing))}",
                hint="name modules that its forward calls, such as the members of an nn.ModuleList",
            )
        return {name: found[name] for name in self.names}

    def extra_repr(self) -> str:
        """The names."""
        return ", ".join(self.names)


def extract_features(model: nn.Module, names: str | Iterable[str]) -> Features:
    """A module that gives what modules inside a model give, by their names, without tracing and without changing it.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> features = extract_features(model, ["0", "1"])
    >>> {name: tuple(tensor.shape) for name, tensor in features(torch.zeros(2, 4)).items()}
    {'0': (2, 8), '1': (2, 8)}

    Hooks are there only while it runs, so none are left to be removed, and deep copies and pickles of it are its own.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        names: dotted paths of modules; the empty path is the model itself.

    Raises:
        SurgeryError: there is no such module, or no name at all.
    """
    model = target_of(model)
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise SurgeryError("no module is named", hint='extract_features(model, ["layer2", "layer3"])')
    for name in listed:
        site_of(model, name)
    return Features(model, listed)
