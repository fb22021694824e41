"""Recording what the constructor of a class is called with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from .inert import Inert, Unsayable

CONSTRUCTION = "_torchkeep_construction"

Model = TypeVar("Model", bound=nn.Module)


def recorded(cls: type[Model]) -> type[Model]:
    """Remember with each module of a class what it was constructed with, so that `tk.load_model` calls it again.

    >>> @recorded
    ... class Net(nn.Module):
    ...     def __init__(self, width: int = 8) -> None:
    ...         super().__init__()
    ...         self.fc = nn.Linear(2, width)

    Signature, behaviour, copies and pickles are as before. The arguments are kept as they are before the constructor
    runs: plain values, dataclasses and other objects by what they hold, modules and tensors themselves. A class that
    derives from this one and has a constructor of its own is recorded where it is decorated too.

    Raises:
        TypeError: it is no class of modules.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"recorded decorates a class that derives from nn.Module, and {cls!r} is none")
    own: Any = cls.__dict__.get("__init__")

    def construct(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if own is not None:
            own(module, *args, **kwargs)
        else:
            super(cls, module).__init__(*args, **kwargs)

    @functools.wraps(own or cls.__init__)
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is not __init__:  # of a class that derives from this one
            construct(self, args, kwargs)
            return
        call = _taken(args, kwargs)
        construct(self, args, kwargs)
        self.__dict__[CONSTRUCTION] = call

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


def _taken(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as tagged JSON, with the modules and tensors themselves in it; plain values, so that a pickle of
    the module needs no torchkeep to be read."""
    try:
        return {"call": plain_call(args, kwargs, lambda module, _: module)}
    except Unsayable as error:
        return {"lost": f"{error.place} {error}"}


def plain_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], module: Callable[[nn.Module, str], Any]) -> list[Any]:
    """[arguments, named arguments] as tagged JSON; tensors stand in it themselves.

    Raises:
        Unsayable: one of them cannot be kept.
    """
    inert = Inert(module, lambda tensor, _: tensor)
    values = [inert.said(value, f"argument {at}") for at, value in enumerate(args, 1)]
    return [values, {key: inert.said(value, f"argument {key!r}") for key, value in kwargs.items()}]
