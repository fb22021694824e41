"""A model as what a selector chooses from: its parameters and modules by identity, with all their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..core.live import module_at, named_buffers, named_modules, named_parameters, unwrapped
from ..core.names import Selector, nearest
from ..core.table import shorten
from ..errors import SelectorError

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
DROPOUTS: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Chosen:
    """What a selector chose: ids of parameters, in the order of the model, and of modules without parameters."""

    selection: str
    parameters: list[int]
    modules: set[int]


class View:
    """A model's parameters and modules by identity, with all their names."""

    def __init__(self, wrapped: nn.Module) -> None:
        self.model = model = unwrapped(wrapped)
        self.parameters = {id(parameter): parameter for parameter in model.parameters()}
        self.modules = {id(module): module for _, module in named_modules(model)}
        self.parameter_names: dict[int, list[str]] = defaultdict(list)
        self.module_names: dict[int, list[str]] = defaultdict(list)
        self.below: dict[int, set[int]] = {}
        for name, parameter in named_parameters(model):
            self.parameter_names[id(parameter)].append(name)
        for path, module in named_modules(model):
            self.module_names[id(module)].append(path)
        for key, module in self.modules.items():
            self.below[key] = {id(parameter) for parameter in module.parameters()}

    def chosen(self, selector: Selector) -> Chosen:
        """Parameters chosen under any of their names, and modules without parameters likewise."""
        blocks = blocks_of(self.model)

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
        return Chosen(str(selector), parameters, bare)

    def chosen_parameters(self, selection: Any) -> set[int]:
        """Ids of the parameters that a selection chooses under any of their names.

        Raises:
            SelectorError: it chooses none.
        """
        found = self.chosen(Selector.of(selection)).parameters
        if not found:
            raise SelectorError(f"{str(Selector.of(selection))!r} selects no parameter")
        return set(found)

    @cached_property
    def names(self) -> dict[int, str]:
        """The first name of each parameter, by its id."""
        return {key: names[0] for key, names in self.parameter_names.items()}

    @cached_property
    def steps(self) -> list[tuple[str, ...]]:
        """The network from its stem to its head in small steps, as `layers_of` gives them."""
        return layers_of(self.model)

    @cached_property
    def _step_at(self) -> dict[str, int]:
        return {path: number for number, step in enumerate(self.steps) for path in step}

    def step_of(self, key: int) -> int | None:
        """The number of the step that a parameter belongs to; None if it lies in no block."""
        name = self.parameter_names[key][0]
        while name not in self._step_at and name:
            name = name.rpartition(".")[0]
        return self._step_at.get(name)

    def first_names(self, keys: Iterable[int]) -> tuple[str, ...]:
        """The first name of each of these parameters, in the order of the model."""
        wanted = set(keys)
        return tuple(self.parameter_names[key][0] for key in self.parameters if key in wanted)

    def inside(self, keys: Iterable[int]) -> set[int]:
        """Ids of these modules and all modules below them."""
        return {id(inner) for key in keys for inner in self.modules[key].modules()}

    def around(self, key: int) -> set[int]:
        """Ids of the parameters of the nearest module above that has any."""
        path = self.module_names[key][0]
        while path:
            path = path.rpartition(".")[0]
            below = self.below[id(module_at(self.model, path))]
            if below:
                return below
        return set()

    def _nothing(self, selector: Selector) -> SelectorError:
        listed = (*self.module_names.values(), *self.parameter_names.values())
        names = [name for names in listed for name in names if name]
        full = selector.choose(names, blocks_of(self.model))
        buffers = selector.choose(name for name, _ in named_buffers(self.model))
        if full:
            hint = f"it matches the path of {full[0]!r} and no parameter in it; select {full[0]!r} by name"
        elif buffers:
            hint = f"{shorten(buffers, 2)} are buffers; freeze the module that owns them"
        else:
            close = nearest(str(selector).strip("*."), names) or names[:3]
            hint = f"the nearest names are {', '.join(map(repr, close))}" if close else "the model is empty"
        return SelectorError(f"{str(selector)!r} selects no parameter and no module", hint=hint)


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of the stretches the network is made of: the children with parameters, seen through wrappers."""
    path, module = "", model
    while True:
        module = unwrapped(module)
        own = any(True for _ in module.parameters(recurse=False))
        children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
        if own or not children:
            break
        if len(children) > 1:
            return [f"{path}{name}" for name, _ in children]
        path, module = f"{path}{children[0][0]}.", children[0][1]
    return [f"{path}{name}" for name, _ in children] or [path.removesuffix(".")]


def layers_of(model: nn.Module) -> list[tuple[str, ...]]:
    """The network from its stem to its head in small steps, each as the paths of its modules.

    A step is a block, or each child of a block that only lists others; a normalisation layer belongs to the step before
    it. Modules are taken in the order in which the model lists them, which nearly always is that of its forward.
    """
    steps: list[tuple[str, ...]] = []
    for block in blocks_of(model):
        for path, module in _taken_apart(block, module_at(model, block)):
            if steps and isinstance(module, NORMS):
                steps[-1] = (*steps[-1], path)
            else:
                steps.append((path,))
    return steps


def _taken_apart(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = [(f"{path}.{key}" if path else key, unwrapped(child)) for key, child in module.named_children()]
    children = [(key, child) for key, child in children if any(True for _ in child.parameters())]
    lists = type(module) in {nn.Sequential, nn.ModuleList, nn.ModuleDict}
    if not lists or not any(child._modules for _, child in children):
        yield path, module
        return
    for below, child in children:
        yield from _taken_apart(below, child)


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter may require gradients: integers may not."""
    return parameter.is_floating_point() or parameter.is_complex()


def numel(parameter: nn.Parameter) -> int:
    """Elements; 0 while a lazy module has not seen its first batch."""
    return 0 if is_lazy(parameter) else parameter.numel()
