"""A module whose class is not here: the right children, tensors and flags, and no forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.blueprint import Part
from ..errors import RebuildError

PART = "_torchkeep_part"


class Skeleton(nn.Module):
    """Stands for a module of a class that is not here; its attributes, as far as they are plain, are its own.

    Its state dict, parameters, modes and children are those of the file. Calling it raises `RebuildError`.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.__dict__[PART] = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Says which class is missing and how to give it."""
        part = part_of(self)
        name = part.class_name
        raise RebuildError(
            f"{part.path or 'the model'} is a {name}, which is not here: it has its state and nothing to compute with",
            classes=(name,),
            hint=f"load it with classes={{{name!r}: YourClass}}{_trusting(name)}",
        )

    def _get_name(self) -> str:
        return f"{part_of(self).class_name.rpartition('.')[2]} (skeleton)"


def _trusting(name: str) -> str:
    package = name.partition(".")[0]
    known = package.isidentifier() and package != "__main__"
    return f", or with trust=[{package + '.'!r}] where its package is installed" if known else ""


def part_of(skeleton: Skeleton) -> Part:
    """What the file says of the module that a skeleton stands for."""
    part: Part = skeleton.__dict__[PART]
    return part
