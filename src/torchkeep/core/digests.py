"""BLAKE3 of tensors: what makes an unchanged tensor recognisable and a damaged one visible."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from blake3 import blake3

from .memory import in_place, tensor_bytes
from .pieces import blocks_of
from .threads import THREADS, side_by_side

BIG = 1 << 20  # from here on it is worth while to hash beside


def digest_bytes(data: Any) -> str:
    """BLAKE3 of some bytes as 64 hex digits."""
    return blake3(data).hexdigest()


def digest_tensor(tensor: torch.Tensor) -> str:
    """BLAKE3 of the elements in row-major order; what does not lie so in memory is read block by block."""
    if tensor.nbytes < BIG or in_place(tensor):
        return digest_bytes(tensor_bytes(tensor))
    hasher = blake3()
    for block in blocks_of(tensor):
        hasher.update(block)
    return hasher.hexdigest()


class Ahead:
    """Digests of tensors that a few threads find before one asks for them; to be used in a `with`.

    Who has to wait for one hashes another meanwhile. Small tensors are hashed when one asks: handing them over would
    take longer.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], order: Iterable[str], threads: int = THREADS) -> None:
        """Prepare it.

        Args:
            tensors: by name.
            order: the names, in the order in which they are hashed.
            threads: with the one that asks.
        """
        self._tensors = tensors
        self._waiting = deque(name for name in order if tensors[name].nbytes >= BIG)
        self._threads = [
            threading.Thread(target=self._run, name="torchkeep-hash", daemon=True)
            for _ in range(min(threads - 1, len(self._waiting)))
        ]
        self._come: SimpleQueue[tuple[str, str | BaseException]] = SimpleQueue()
        self._found: dict[str, str] = {}

    def __enter__(self) -> Ahead:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # one that had not begun
                thread.join()

    def digest(self, name: str) -> str:
        """The digest of one; waits for it, and raises what hashing raised."""
        if name not in self._found and self._tensors[name].nbytes < BIG:
            return self.tell(name, digest_tensor(self._tensors[name]))
        while name not in self._found:
            if self._come.empty():
                self._hash()
            other, digest = self._come.get()
            if isinstance(digest, BaseException):
                raise digest
            self._found[other] = digest
        return self._found[name]

    def digests(self) -> Mapping[str, str]:
        """All of them, in the order in which the tensors were given."""
        return {name: self.digest(name) for name in self._tensors}

    def tell(self, name: str, digest: str) -> str:
        """Say what the digest of one is, which then is not looked for; returns it."""
        self._found[name] = digest
        return digest

    def _run(self) -> None:
        while self._hash():
            pass

    def _hash(self) -> bool:
        """Hash the next one; False if there is none, or if it cannot be read."""
        try:
            name = self._waiting.popleft()
        except IndexError:
            return False
        try:
            self._come.put((name, digest_tensor(self._tensors[name])))
        except BaseException as error:
            self._come.put((name, error))
            return False
        return True


def digest_tensors(tensors: Sequence[torch.Tensor], threads: int = THREADS) -> list[str]:
    """BLAKE3 of many tensors: large ones side by side on a few threads, small ones in line."""
    out: list[str] = [""] * len(tensors)

    def one(position: int) -> None:
        out[position] = digest_tensor(tensors[position])

    big = []
    for position, tensor in enumerate(tensors):
        if tensor.nbytes >= BIG:
            big.append(position)
        else:
            out[position] = digest_bytes(tensor_bytes(tensor))
    big.sort(key=lambda position: -tensors[position].nbytes)  # the largest first, so that all threads end together
    side_by_side(one, big, min(threads, len(big)))
    return out
