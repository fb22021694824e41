"""Parts by name: a literal table in each room says which class a name stands for and what must be installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ..errors import MissingDependencyError


def make_part(table: Mapping[str, str], part: Any, what: str) -> Any:
    """An instance of the named part; anything that is not a string is an instance already and is passed through.

    Args:
        table: name -> `module:Class`, relative to the package.
        part: a name of the table, or an instance.
        what: the kind of part, for the message.
    """
    return part_named(table, part, what)() if isinstance(part, str) else part


def part_named(table: Mapping[str, str], part: str, what: str) -> Any:
    """The class that a name stands for.

    Raises:
        ValueError: no part has this name.
        MissingDependencyError: it needs a package that is not installed.
    """
    if part not in table:
        raise ValueError(f"there is no {what} {part!r}; known are {', '.join(table)}")
    module, _, name = table[part].partition(":")
    try:
        return getattr(importlib.import_module(f"torchkeep.{module}"), name)
    except ImportError as error:
        raise MissingDependencyError(f"the {what} {part!r} needs a package that is not installed: {error}") from error
