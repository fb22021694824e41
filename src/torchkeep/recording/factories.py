"""The function that makes a whole model, as text that can be kept."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SaveError
from .constructing import plain_call
from .inert import Unsayable


@dataclass(frozen=True)
class Factory:
    """What makes a model.

    Attributes:
        name: `package.module:function`.
        call: [arguments, named arguments] as tagged JSON.
    """

    name: str
    call: list[Any]


def factory_of(given: str | Callable[..., Any], kwargs: Mapping[str, Any] | None) -> Factory:
    """A factory that can be found under its name, and whose signature takes the arguments.

    Raises:
        SaveError: it cannot be found, or does not take them.
    """
    name = given if isinstance(given, str) else f"{given.__module__}:{given.__qualname__}"
    found = _imported(name)
    if not isinstance(given, str) and found is not given:
        raise SaveError(
            f"the factory {name} is not what is found under its name",
            hint="pass a function that stands at the top of a module",
        )
    if not callable(found):
        raise SaveError(f"the factory {name} is a {type(found).__name__}, and no function")
    named = dict(kwargs or {})
    try:
        inspect.signature(found).bind(**named)
    except TypeError as error:
        raise SaveError(
            f"the factory {name}{inspect.signature(found)} does not take kwargs={named!r:.200}: {error}",
            hint="pass what it is to be called with as kwargs={...}",
        ) from error
    except ValueError:  # a builtin without a signature
        pass
    try:
        return Factory(name, plain_call((), named, _refused))
    except Unsayable as error:
        raise SaveError(
            f"the factory {name} cannot be kept: {error.place} {error}",
            hint="pass plain values, and let the function make what it needs of them",
        ) from error


def _refused(module: Any, place: str) -> Any:
    raise Unsayable(place, f"is a module, a {type(module).__name__}")


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    hint = "write it as 'package.module:function', where it can be imported"
    if not path or not all(piece.isidentifier() for piece in (*module.split("."), *path.split("."))):
        raise SaveError(f"{name!r} names no factory", hint=hint)
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for key in path.split("."):
            found = getattr(found, key)
    except (ImportError, AttributeError) as error:
        raise SaveError(f"the factory {name} cannot be imported: {error}", hint=hint) from error
    return found
