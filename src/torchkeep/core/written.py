"""Specs and plans as YAML that a person reviews and changes: read back whole, or refused with the place."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ..errors import SelectorError

Kind = TypeVar("Kind")


def to_yaml(value: Any) -> str:
    """A value as text, in the order of its members."""
    text: bytes = msgspec.yaml.encode(value)
    return text.decode()


def from_yaml(text: str | bytes, kind: type[Kind], *, what: str, members: str, file: str = "") -> Kind:
    """A value of a kind from its text.

    Args:
        what: it is called, e.g. `freeze spec`.
        members: it has, for the hint.
        file: where the text is from.

    Raises:
        SelectorError: it is no YAML, has an unknown member, or says something impossible; the message says where.
    """
    where = f"{file}: " if file else ""
    try:
        return msgspec.yaml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        hint = f"members are {members}; quote '*' and names that are numbers"
        raise SelectorError(f"{where}is no {what}: {error}", hint=hint) from error
    except (msgspec.DecodeError, ValueError) as error:
        raise SelectorError(f"{where}is no YAML: {error}", hint="indent with spaces, quote '*'") from error
