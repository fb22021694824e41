"""BLAKE3 of tensors: what makes an unchanged tensor recognisable and a damaged one visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from blake3 import blake3

from .memory import in_place, tensor_bytes
from .pieces import blocks_of
from .threads import THREADS, side_by_side

_BIG = 1 << 20


def digest_bytes(data: Any) -> str:
    """BLAKE3 of some bytes as 64 hex digits."""
    return blake3(data).hexdigest()


def digest_tensor(tensor: torch.Tensor) -> str:
    """BLAKE3 of the elements in row-major order; what does not lie so in memory is read block by block."""
    if tensor.nbytes < _BIG or in_place(tensor):
        return digest_bytes(tensor_bytes(tensor))
    hasher = blake3()
    for block in blocks_of(tensor):
        hasher.update(block)
    return hasher.hexdigest()


def digest_tensors(tensors: Sequence[torch.Tensor], threads: int = THREADS) -> list[str]:
    """BLAKE3 of many tensors: large ones side by side on a few threads, small ones in line."""
    out: list[str] = [""] * len(tensors)

    def one(position: int) -> None:
        out[position] = digest_tensor(tensors[position])

    big = []
    for position, tensor in enumerate(tensors):
        if tensor.nbytes >= _BIG:
            big.append(position)
        else:
            out[position] = digest_bytes(tensor_bytes(tensor))
    big.sort(key=lambda position: -tensors[position].nbytes)  # the largest first, so that all threads end together
    side_by_side(one, big, min(threads, len(big)))
    return out
