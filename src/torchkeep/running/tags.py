"""Names for snapshots: small sealed files that point to a sequence."""

from __future__ import annotations

import re

import msgspec

from ..core.manifest import seal, unseal
from ..core.source import read_all
from ..errors import CorruptCheckpointError, KeyNotFoundError
from ..stores import Store
from .monitor import BEST

TAGS = "tags/"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


class Pointer(msgspec.Struct, frozen=True):
    """What every tag says; the one to the best says more."""

    sequence: int


def tag_key(name: str) -> str:
    """The key of a tag in the store.

    Raises:
        ValueError: it cannot be the name of a tag.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a tag; use up to 100 of A-Z a-z 0-9 - _ . and begin with no dot")
    if name == "best":
        raise ValueError("the tag 'best' is the run's own; use another name")
    return f"{TAGS}{name}.json"


def read_tags(store: Store) -> tuple[dict[str, int], dict[str, str]]:
    """Name -> sequence of every tag, and name -> reason of those that are damaged. The pointer to the best is none."""
    found: dict[str, int] = {}
    damaged: dict[str, str] = {}
    for key in store.keys(TAGS):
        if key == BEST or not key.endswith(".json"):
            continue
        name = key.removeprefix(TAGS).removesuffix(".json")
        try:
            found[name] = pointed(store, key)
        except KeyNotFoundError:  # removed since it was listed
            continue
        except CorruptCheckpointError as error:
            damaged[name] = error.brief
    return found, damaged


def pointed(store: Store, key: str) -> int:
    """The sequence that a tag points to.

    Raises:
        KeyNotFoundError: there is no such tag.
        CorruptCheckpointError: it is damaged.
    """
    data = read_all(store.source(key))
    try:
        return msgspec.json.decode(unseal(data, file=key), type=Pointer).sequence
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptCheckpointError(f"cannot be read: {error}", file=key) from error


def write_tag(store: Store, name: str, sequence: int) -> None:
    """Point to a snapshot, in the place of what the name pointed to."""
    store.put(tag_key(name), [seal(msgspec.json.encode(Pointer(sequence)))], replace=True)
