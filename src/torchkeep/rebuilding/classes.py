"""Which class a name in a file means: one that the caller gave, one of torch.nn's, or one of a package he trusts."""

from __future__ import annotations

import functools
import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn

from ..core.names import nearest
from ..errors import RebuildError

# Functions that torch's layers keep as attributes, under every name that pickles have had for them.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": getattr(nn.functional, name)
    for name in ("relu", "gelu", "silu", "mish", "elu", "selu", "celu", "tanh", "sigmoid", "leaky_relu", "softplus")
    for module in ("torch.nn.functional", "torch._C._nn", "torch")
}

# Classes of the standard library that run nothing of what they are given.
_PLAIN: dict[str, Any] = {
    "argparse.Namespace": Namespace,
    "types.SimpleNamespace": SimpleNamespace,
    "functools.partial": functools.partial,
    "builtins.slice": slice,
    "builtins.range": range,
}

_MOVED = {"torch.nn.modules.linear._LinearWithBias": "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}


class Classes:
    """Answers what a name means, and remembers what it was asked and did not know."""

    def __init__(self, given: Mapping[str, Any] | None = None, trust: Sequence[str] = ()) -> None:
        """Args:
            given: name, as the file has it -> class, or a function that makes the module.
            trust: packages and modules, `mypackage.` or `mypackage.nets`, whose names may be imported.

        Raises:
            TypeError, ValueError: these are none.
        """
        self.given = dict(given or {})
        for name, cls in self.given.items():
            if not callable(cls):
                raise TypeError(f"classes[{name!r}] is a {type(cls).__name__}, and neither a class nor a function")
        if isinstance(trust, str):
            raise TypeError(f"trust is a list of packages: trust=[{trust!r}]")
        self.trust = tuple(name.rstrip(".") for name in trust)
        for name in self.trust:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"trust names packages, such as 'mypackage.', and {name!r} is none")

    def find(self, module: str, name: str) -> Any | None:
        """The class or function of a qualified name; None where the caller neither gave nor trusts it.

        Raises:
            RebuildError: it is trusted and cannot be imported.
        """
        qualified = f"{module}.{name}"
        if qualified in self.given:
            return self.given[qualified]
        found = torch_layer(qualified) or _FUNCTIONS.get(qualified) or _PLAIN.get(qualified)
        if found is not None:
            return found
        return self._imported(module, name) if self.trusts(module) else None

    def find_class(self, qualified: str) -> Any | None:
        """`find`, of a module's class: of a class inside of another, the module is the longest that can be meant."""
        if qualified in self.given:
            return self.given[qualified]
        pieces = qualified.split(".")
        for count in range(len(pieces) - 1, 0, -1):
            module, name = ".".join(pieces[:count]), ".".join(pieces[count:])
            found = self.find(module, name) if count == len(pieces) - 1 or module in sys.modules else None
            if found is not None:
                return found
        return None

    def how(self, qualified: str) -> str:
        """Where a module of this class would come from: `given`, `torch.nn`, `trusted`, or `skeleton`."""
        if qualified in self.given:
            return "given"
        if torch_layer(qualified) is not None:
            return "torch.nn"
        return "trusted" if self.trusts(qualified.rpartition(".")[0]) else "skeleton"

    def trusts(self, module: str) -> bool:
        """Whether names of a module may be imported."""
        return any(module == one or module.startswith(one + ".") for one in self.trust)

    def check_given(self, known: Collection[str], file: str) -> None:
        """Refuse a class that was given for a name that the file does not have.

        Raises:
            RebuildError: there is one.
        """
        for name in self.given:
            if name not in known:
                close = nearest(name, known) or sorted(known)[:5]
                raise RebuildError(
                    f"{file} names no {name!r}",
                    classes=(name,),
                    hint=f"it names {', '.join(map(repr, close))}" if close else "it names no class at all",
                )

    def _imported(self, module: str, name: str) -> Any:
        try:
            found: Any = importlib.import_module(module)
            for key in name.split("."):
                found = getattr(found, key)
        except (ImportError, AttributeError) as error:
            raise RebuildError(
                f"{module}.{name} is trusted and cannot be imported: {error}",
                classes=(f"{module}.{name}",),
                hint=f"pass classes={{{f'{module}.{name}'!r}: TheClass}} if it was moved or renamed",
            ) from error
        return found


def torch_layer(qualified: str) -> type[nn.Module] | None:
    """The class of torch.nn of this name; it is looked up among what torch has, and nothing is imported."""
    module, _, name = _MOVED.get(qualified, qualified).rpartition(".")
    if not module.startswith(("torch.nn.modules.", "torch.nn.parallel.data_parallel")):
        return None
    found = getattr(sys.modules.get(module), name, None)
    own = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module
    return found if own else None
