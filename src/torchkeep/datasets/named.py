"""A data set of the user's own code, by its name: `package.module:attribute`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ..core.transfer import Examples
from ..errors import DataError
from ._arrays import Size
from .pairs import Pairs

_HOW = "write it as 'package.module:attribute', where it can be imported"


class Named:
    """What a module of the user has under a name; a class or a function is called without arguments.

    This imports the module, which is the only code that reading data runs: the user has named it.
    """

    name = "module"
    wants = "package.module:attribute, a data set or a function that gives one"

    def reads(self, source: Any) -> bool:
        """Names with a colon between them."""
        if not isinstance(source, str):
            return False
        module, _, attribute = source.partition(":")
        return all(piece.isidentifier() for piece in (*module.split("."), *attribute.split(".")))

    def read(self, source: Any, *, size: Size | None, limit: int | None) -> Examples:
        """What the data set that is found gives, read as if it had been passed itself."""
        found = _made(source)
        pairs = Pairs()
        if not pairs.reads(found):
            raise DataError(f"{source} gives a {type(found).__name__}, which is no data set", hint=pairs.wants)
        return pairs.read(found, size=size, limit=limit, title=source)


def _made(source: str) -> Any:
    module, _, path = source.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for key in path.split("."):
            found = getattr(found, key)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{source} cannot be imported: {error}", hint=_HOW) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{source} cannot be imported: {said}", hint="import it in Python to see where it fails"
        ) from error
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return found
    try:
        return found()
    except Exception as error:
        raise DataError(
            f"{source} failed: {type(error).__name__}: {error}",
            hint="it is called without arguments; call it in Python to see where it fails",
        ) from error
