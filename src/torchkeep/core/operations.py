"""What was done to the structure of a model, as data: kept with it, written into its file, done again to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..errors import CorruptCheckpointError

# Arguments that name places in the model, by which a record moves along when the model becomes a part of another.
_PLACES = ("after", "before", "identity", "modules", "out")


class Operation(msgspec.Struct, frozen=True):
    """One change of a model: `str(operation)` says it in a line.

    Attributes:
        verb: the function of `tk.surgery`, e.g. `resize_head`.
        name: dotted path of the module that was changed; empty for the whole model.
        arguments: what else the function was told or found, as values that JSON knows. A module is a dict with its
            `class`, and `kwargs` or `children` where these say all of it.
    """

    verb: str
    name: str = ""
    arguments: dict[str, Any] = {}

    def below(self, path: str) -> Operation:
        """The same operation as a model sees it that has this one under a path."""
        moved = {key: _moved(value, path) if key in _PLACES else value for key, value in self.arguments.items()}
        module = moved.get("module")
        if isinstance(module, Mapping) and "shared" in module:
            moved["module"] = {"shared": _moved(module["shared"], path)}
        return Operation(self.verb, _moved(self.name, path), moved)

    def __str__(self) -> str:
        said = [f"{key}={_text(value)}" for key, value in self.arguments.items() if value not in (None, False, [], {})]
        return " ".join([self.verb, self.name or "(the model)", ", ".join(said)]).rstrip()


def operations_from(values: Any) -> tuple[Operation, ...]:
    """Operations out of plain values, as a manifest has them.

    Raises:
        CorruptCheckpointError: they are none.
    """
    try:
        return tuple(msgspec.convert(values, list[Operation]))
    except msgspec.ValidationError as error:
        raise CorruptCheckpointError(f"the record of surgery cannot be read: {error}") from error


def _moved(place: Any, path: str) -> Any:
    if isinstance(place, list):
        return [_moved(one, path) for one in place]
    if not isinstance(place, str):
        return place
    return ".".join(part for part in (path, place) if part)


def _text(value: Any, depth: int = 8) -> str:
    if not depth:
        return "..."
    if isinstance(value, Mapping) and "class" in value:
        name = str(value["class"]).rpartition(".")[2]
        if "children" in value:
            return f"{name}({', '.join(_text(child, depth - 1) for child in _values(value['children']))})"
        return f"{name}({_pairs(value['kwargs'], depth - 1)})" if "kwargs" in value else name
    if isinstance(value, Mapping):
        return f"{{{_pairs(value, depth - 1)}}}"
    return f"[{', '.join(_text(item, depth - 1) for item in value)}]" if isinstance(value, list) else str(value)


def _values(children: Any) -> Iterable[Any]:
    return children.values() if isinstance(children, Mapping) else [children]


def _pairs(values: Any, depth: int) -> str:
    if not isinstance(values, Mapping):
        return _text(values, depth)
    return ", ".join(f"{key}={_text(value, depth)}" for key, value in values.items())
