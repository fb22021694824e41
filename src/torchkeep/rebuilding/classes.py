"""Which class a name in a file means: one that the caller gave, one of torch.nn's, or one of a package he trusts."""

from __future__ import annotations

import functools
import importlib
import pathlib
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from ..core.names import nearest
from ..core.tree import Global
from ..errors import RebuildError

# Functions that torch's layers keep as attributes, under every name that pickles have had for them.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": getattr(nn.functional, name)
    for name in (
        *("relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "tanh", "sigmoid", "leaky_relu", "softplus"),
        *("hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "softsign", "tanhshrink", "softmax", "log_softmax"),
    )
    for module in ("torch.nn.functional", "torch._C._nn", "torch")
} | {
    f"torch.{name}": getattr(torch, name)
    for name in (
        "abs",
        "exp",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "square",
        "sin",
        "cos",
        "erf",
        "sign",
        "neg",
        "reciprocal",
    )
}

# Classes of the standard library that run nothing of what they are given.
_PLAIN: dict[str, Any] = {
    "argparse.Namespace": Namespace,
    "types.SimpleNamespace": SimpleNamespace,
    "functools.partial": functools.partial,
    "builtins.slice": slice,
    "builtins.range": range,
    "collections.deque": deque,
    "pathlib.PosixPath": pathlib.PurePath,
    "pathlib.WindowsPath": pathlib.PurePath,
    "pathlib.PurePosixPath": pathlib.PurePosixPath,
    "torch.nn.utils.parametrizations._OrthMaps": parametrizations._OrthMaps,
    "__builtin__.slice": slice,
    "__builtin__.xrange": range,
}

_LAYERS = ("torch.nn.modules.", "torch.nn.parallel.data_parallel", "torch.nn.utils.parametriz")

_PIECES = 100  # of the name of a class

_MOVED = {"torch.nn.modules.linear._LinearWithBias": "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}


class Classes:
    """Answers what a name means, and remembers what it was asked and did not know."""

    def __init__(self, given: Mapping[str, Any] | None = None, trust: Sequence[str] = ()) -> None:
        """Args:
            given: name, as the file has it -> class, or a function that makes the module. Or a package, with a dot at
                its end -> the package that it is now, `{"old.": "new."}`, whose names may then be imported.
            trust: packages and modules, `mypackage.` or `mypackage.nets`, whose names may be imported.

        Raises:
            TypeError, ValueError: these are none.
        """
        known = dict(given or {})
        self.moved = {name.rstrip("."): known.pop(name).rstrip(".") for name in [*known] if _is_package(name, known)}
        self.given = known
        for name, cls in known.items():
            if not callable(cls):
                raise TypeError(
                    f"classes[{name!r}] is a {type(cls).__name__}, and neither a class nor a function; packages that "
                    "were moved are given with dots, {'old.': 'new.'}"
                )
        if isinstance(trust, str):
            raise TypeError(f"trust is a list of packages: trust=[{trust!r}]")
        self.trust = (*(name.rstrip(".") for name in trust), *self.moved.values())
        for name in self.trust:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"trust names packages, such as 'mypackage.', and {name!r} is none")

    def find(self, module: str, name: str) -> Any | None:
        """The class or function of a qualified name; None where the caller neither gave nor trusts it.

        Raises:
            RebuildError: it is trusted and cannot be imported, or what is found is of a package that is not trusted.
        """
        qualified = f"{module}.{name}"
        found = torch_layer(qualified) if qualified not in self.given else None
        return found or _FUNCTIONS.get(qualified) or self.find_object(Global(module, name))

    def find_object(self, name: Global) -> Any | None:
        """`find`, of what may be called with what a file says: torch's own layers and functions are not among it."""
        if name.qualified in self.given:
            return self.given[name.qualified]
        if name.qualified in _PLAIN:
            return _PLAIN[name.qualified]
        name = Global(self._now(name.module), name.name)
        return _options(name.qualified) or (self._imported(name) if self.trusts(name.module) else None)

    def find_class(self, qualified: str) -> Any | None:
        """`find`, of a module's class: of a class inside of another, the module is the longest that has it."""
        if qualified in self.given:
            return self.given[qualified]
        pieces = qualified.split(".")
        if len(pieces) > _PIECES:
            return None
        failed: RebuildError | None = None
        for count in range(len(pieces) - 1, 0, -1):
            try:
                found = self.find(".".join(pieces[:count]), ".".join(pieces[count:]))
            except RebuildError as error:
                failed = failed or error
            else:
                if found is not None:
                    return found
        if failed is not None:
            raise failed
        return None

    def find_factory(self, name: str) -> Any | None:
        """The function of `package.module:function`; None where the caller neither gave nor trusts it.

        Raises:
            RebuildError: it is trusted and cannot be imported, or it is no function.
        """
        module, _, path = name.partition(":")
        module = self._now(module)
        found = self.given.get(name)
        if found is None and name and self.trusts(module):
            found = self._imported(Global(module, path))
        if found is not None and not callable(found):
            raise RebuildError(f"the factory {name} is a {type(found).__name__}, and no function", classes=(name,))
        return found

    def how(self, qualified: str) -> str:
        """Where a module of this class would come from, `given`, `torch.nn`, `trusted`, `skeleton`; imports nothing."""
        if qualified in self.given:
            return "given"
        if torch_layer(qualified) is not None:
            return "torch.nn"
        return "trusted" if self.trusts(self._now(qualified.rpartition(".")[0])) else "skeleton"

    def trusts(self, module: str) -> bool:
        """Whether names of a module may be imported."""
        return any(module == one or module.startswith(one + ".") for one in self.trust)

    def _now(self, module: str) -> str:
        """The module that a module of the file is now: the longest package that was moved counts."""
        inside = [old for old in self.moved if module == old or module.startswith(old + ".")]
        old = max(inside, key=len, default="")
        return self.moved[old] + module[len(old) :] if old else module

    def check_given(self, known: Collection[str], file: str) -> None:
        """Refuse a class that was given for a name that the file does not have.

        Raises:
            RebuildError: there is one.
        """
        unknown = [name for name in self.given if name not in known]
        unknown += [f"{old}." for old in self.moved if not any(name.startswith(f"{old}.") for name in known)]
        if unknown:
            close = nearest(unknown[0], known) or sorted(known)[:5]
            raise RebuildError(
                f"{file} names no {unknown[0]!r}",
                classes=(unknown[0],),
                hint=f"it names {', '.join(map(repr, close))}" if close else "it names no class at all",
            )

    def _imported(self, name: Global) -> Any:
        """What a trusted module has under a name, where it is of a trusted module itself and not from elsewhere."""
        try:
            found: Any = importlib.import_module(name.module)
            for key in name.name.split("."):
                found = getattr(found, key)
        except Exception as error:  # whatever the code of a module raises, and names that are none
            raise RebuildError(
                f"{name.qualified} is trusted and cannot be imported: {error}",
                classes=(name.qualified,),
                hint=f"pass classes={{{name.qualified!r}: TheClass}} if it was moved or renamed",
            ) from error
        home = getattr(found, "__module__", None)
        if not callable(found) or not isinstance(home, str) or not self.trusts(home):
            raise RebuildError(
                f"{name.qualified} is of {home or 'no module'}, which is not trusted",
                classes=(name.qualified,),
                hint=f"pass classes={{{name.qualified!r}: TheClass}} if it is meant",
            )
        return found


def _is_package(name: str, given: Mapping[str, Any]) -> bool:
    return name.endswith(".") and isinstance(given[name], str)


def _options(qualified: str) -> type | None:
    """The dataclass of torch.nn of this name: options of its layers."""
    module, _, name = qualified.rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module.startswith("torch.nn.modules.") else None
    return found if isinstance(found, type) and is_dataclass(found) and found.__module__ == module else None


def torch_layer(qualified: str) -> type[nn.Module] | None:
    """The class of torch.nn of this name; it is looked up among what torch has, and nothing is imported."""
    module, _, name = _MOVED.get(qualified, qualified).rpartition(".")
    if not module.startswith(_LAYERS):
        return None
    found = getattr(sys.modules.get(module), name, None)
    own = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module
    return found if own else None
