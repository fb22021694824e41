"""Where the bytes of a run live. A store knows keys and bytes, and nothing of snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..core.source import Buffer, Source


class Store(Protocol):
    """Five methods. Keys are relative paths with `/`; what `put` returns from is durable.

    A store may have more, which is used where it is there: `lock` and `unlock` keep other writers out,
    `guard(exclusive)` keeps saving and removing apart, `age(key)` tells seconds since a key was written,
    `flush(prefix)` makes removals durable, `put_named` takes bytes before it is known what they are called,
    `leftovers()` lists what a crash left unfinished, `engine` is text that says how the last `put` wrote.
    `stores/local.py` has all of them.
    """

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        """Store bytes under a key in one step: a reader sees all or nothing. False if the key exists and stays."""
        ...

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """Add to the end of what is under a key; `durable` makes all of it durable."""
        ...

    def source(self, key: str) -> Source:
        """The bytes under a key; raises KeyNotFoundError."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix ending in `/`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        ...
