"""A store in a few lines that keeps the contract, and others that each break one part of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from torchkeep.core.source import Buffer, Held
from torchkeep.errors import KeyNotFoundError
from torchkeep.stores.memory import MemoryStore


class Toy:
    """A dict; what a second store on the same bytes is, it is itself."""

    source_type: Any = Held

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.mutex = threading.Lock()

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        data = self.gather(pieces, nbytes)
        with self.mutex:
            if key in self.values and not replace:
                return False
            self.values[key] = data
            return True

    def gather(self, pieces: Iterable[Buffer], nbytes: int) -> bytes:
        return b"".join(memoryview(piece).tobytes() for piece in pieces)

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        with self.mutex:
            self.values[key] = self.values.get(key, b"") + data

    def source(self, key: str) -> Any:
        if key not in self.values:
            raise KeyNotFoundError(f"there is no {key}")
        return self.source_type(self.values[key], key)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class Overwriting(Toy):
    """Puts whatever is there already."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        return super().put(key, pieces, replace=True)


class Boasting(Toy):
    """Says that it put what it did not put."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        return super().put(key, pieces, replace=replace) or True


class Piecemeal(Toy):
    """Shows what is not finished, and keeps it when the writer fails."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        if key in self.values and not replace:
            return False
        self.values[key] = b""
        for piece in pieces:
            self.values[key] += memoryview(piece).tobytes()
        return True


class Looking(Toy):
    """Looks first and writes later."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        free = replace or key not in self.values
        data = self.gather(pieces, nbytes)
        if free:
            self.values[key] = data
        return free


class Clearing(Toy):
    """Deletes the old value before it puts the new one."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        if replace:
            self.delete(key)
        return super().put(key, pieces)


class InTwo(Toy):
    """Writes all at once, in two steps."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        data = self.gather(pieces, nbytes)
        with self.mutex:
            if key in self.values and not replace:
                return False
            half = len(data) // 2
            self.values[key] = data[:half] + self.values.get(key, b"")[half:]
            threading.Event().wait(0.002)
            self.values[key] = data
            return True


class Littering(Toy):
    """Lists what it has not finished under another name."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        self.values[f"{key}.tmp"] = b""
        done = super().put(key, pieces, replace=replace)
        del self.values[f"{key}.tmp"]
        return done


class Swallowing(Toy):
    """Takes what came before an error for everything."""

    def gather(self, pieces: Iterable[Buffer], nbytes: int) -> bytes:
        out = b""
        with contextlib.suppress(ValueError):
            for piece in pieces:
                out += memoryview(piece).tobytes()
        return out


class Padding(Toy):
    """Counts elements, not bytes."""

    def gather(self, pieces: Iterable[Buffer], nbytes: int) -> bytes:
        return b"".join(memoryview(piece).tobytes()[: len(piece)] for piece in pieces)


class Short(Toy):
    """Drops pieces beyond the thousandth."""

    def gather(self, pieces: Iterable[Buffer], nbytes: int) -> bytes:
        return super().gather(list(pieces)[:1000], nbytes)


class Forgetful(Toy):
    """An append is there only once it is durable."""

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        if durable or not data:
            super().append(key, data)


class Racing(Toy):
    """Appends by reading and writing, with nothing to keep others out."""

    def append(self, key: str, data: bytes, *, durable: bool = False) -> None:
        old = self.values.get(key, b"")
        threading.Event().wait(0.0001)
        self.values[key] = old + data


class Prefixes(Toy):
    """Takes a prefix for the beginning of a name."""

    def keys(self, prefix: str) -> list[str]:
        return super().keys(prefix.rstrip("/"))


class Unsorted(Toy):
    def keys(self, prefix: str) -> list[str]:
        return super().keys(prefix)[::-1]


class FewKeys(Toy):
    """Lists one page of keys, as object stores do."""

    def keys(self, prefix: str) -> list[str]:
        return super().keys(prefix)[:100]


class Unescaped(Toy):
    """Takes keys for addresses."""

    def put(self, key: str, pieces: Iterable[Buffer], *, nbytes: int = 0, replace: bool = False) -> bool:
        return super().put(key.partition("?")[0], pieces, replace=replace)


class Strict(Toy):
    def delete(self, key: str) -> None:
        del self.values[key]


class Undeleting(Toy):
    def delete(self, key: str) -> None:
        pass


class Raw(Toy):
    """Lets errors of its own through."""

    def source(self, key: str) -> Any:
        return Held(self.values[key], key)


class Nothing(Toy):
    """Takes an empty value for none."""

    def source(self, key: str) -> Any:
        if not self.values.get(key):
            raise KeyNotFoundError(f"there is no {key}")
        return Held(self.values[key], key)


class Sliced:
    """A source that does not check ranges."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self.size, self.data = name, len(data), data

    def read(self, offset: int, nbytes: int) -> Buffer:
        return self.data[offset : offset + nbytes]


class Unchecked(Toy):
    source_type = Sliced


class Live(Toy):
    """Its sources look at what is there now."""

    def source(self, key: str) -> Any:
        found = super().source(key)
        found.read = lambda offset, nbytes: self.values[key][offset : offset + nbytes]
        return found


class Lent(Toy):
    """Its sources lend the store's own memory."""

    def gather(self, pieces: Iterable[Buffer], nbytes: int) -> Any:
        return bytearray(super().gather(pieces, nbytes))

    def source(self, key: str) -> Any:
        found = super().source(key)
        found.read = lambda offset, nbytes: memoryview(self.values[key])[offset : offset + nbytes]
        return found


class Unlocked(MemoryStore):
    """A lock that keeps nobody out."""

    def lock(self) -> None:
        pass


class Sticky(MemoryStore):
    """A lock that anybody can give back."""

    def unlock(self) -> None:
        self._space.holder = (lambda: None, 0)


class Unguarded(MemoryStore):
    @contextlib.contextmanager
    def guard(self, exclusive: bool) -> Iterator[None]:
        yield


class Leaving(MemoryStore):
    """A guard that an error keeps closed."""

    @contextlib.contextmanager
    def guard(self, exclusive: bool) -> Iterator[None]:
        self.inside = super().guard(exclusive)
        self.inside.__enter__()
        yield
        self.inside.__exit__(None, None, None)
