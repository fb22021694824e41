"""Example inputs: what a model is called with, and which sizes of it are free."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import SaveError

BATCH = "batch"
"""The first dimension of every tensor is free, and the same in all of them."""


@dataclass(frozen=True)
class Example:
    """Arguments of a model.

    Attributes:
        positional, named: the arguments, as a call takes them.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """Everything in them that is no list, tuple or dict, however deep."""
        return pytree.tree_leaves(self._tree)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the leaves."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    @property
    def call(self) -> Any:
        """The arguments in the form in which `example_of` takes them, where only one kind is there."""
        return dict(self.named) if self.named else self.positional

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        """The same with every tensor changed."""
        positional, named = pytree.tree_map_only(torch.Tensor, change, self._tree)
        return Example(positional, named)

    @property
    def _tree(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.positional, dict(self.named)


def example_of(given: Any) -> Example:
    """Arguments as `check=` of a load takes them: a tuple is the positional, a dict the named ones.

    Raises:
        SaveError: there is no tensor in them.
    """
    if isinstance(given, Mapping):
        example = Example((), dict(given))
    else:
        example = Example(given if isinstance(given, tuple) else (given,), {})
    if not example.tensors:
        raise SaveError(
            "example_inputs has no tensor in it",
            hint="give what the model is called with: a tensor, a tuple of positional or a dict of named arguments",
        )
    return example


def batched(example: Example) -> Example:
    """The same with more than one row in each tensor: torch takes a size of one for a size that is always one."""
    if all(tensor.ndim and tensor.shape[0] == 1 for tensor in example.tensors):
        return example.mapped(_with_another)
    return example


def longer(example: Example) -> Example:
    """The same with one row more in each tensor that has as many rows as the first one; a batch of another size."""
    rows = next((tensor.shape[0] for tensor in example.tensors if tensor.ndim), 0)
    return example.mapped(lambda tensor: _with_another(tensor) if tensor.ndim and tensor.shape[0] == rows else tensor)


def _with_another(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor[:1]])


def shapes_of(model: nn.Module, example: Example) -> dict[str, Any]:
    """What torch.export takes as `dynamic_shapes` for a free batch: by argument, as deep as the argument is."""
    try:
        bound = inspect.signature(model.forward).bind(*example.positional, **example.named)
    except TypeError as error:
        raise SaveError(
            f"the model cannot be called with example_inputs: {error}",
            hint="a tuple is its positional, a dict its named arguments",
        ) from error
    rows = {tensor.shape[0] for tensor in example.tensors if tensor.ndim}
    free = partial(_free, constant=1 if len(rows) > 1 else -1)
    return {name: pytree.tree_map(free, value) for name, value in bound.arguments.items()}


def _free(leaf: Any, constant: int) -> Any:
    """A tensor's first dimension, unless it is broadcast: of one row, where others have more."""
    if not isinstance(leaf, torch.Tensor) or not leaf.ndim or leaf.shape[0] == constant:
        return None
    return {0: torch.export.Dim.DYNAMIC}


def sizes(example: Example) -> Iterator[str]:
    """dtype and shape of each tensor as text."""
    for tensor in example.tensors:
        yield f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"
