"""BLAKE3 of tensors: what makes an unchanged tensor recognisable and a damaged one visible."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from blake3 import blake3

from ..errors import UnsavableError

_BIG = 1 << 20
THREADS = min(4, os.cpu_count() or 1)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor in row-major order as bytes; a view wherever the layout allows, else one copy.

    Raises:
        UnsavableError: it is sparse, quantized or of another kind that is not made of strided elements.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise UnsavableError(f"a {kind} tensor cannot be written yet", hint="save tensor.to_dense() or its parts")
    plain = tensor
    if tensor.is_conj() or tensor.is_neg() or tensor.device.type != "cpu" or not tensor.is_contiguous():
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if not plain.numel():
        return memoryview(b"")
    # A view by address costs a tenth of the torch calls that would say the same, which counts with 20,000 tensors.
    array = (ctypes.c_ubyte * plain.nbytes).from_address(plain.data_ptr())
    array.owner = plain  # type: ignore[attr-defined] # keeps the memory as long as the view
    return memoryview(array).cast("B")


def digest_bytes(data: Any) -> str:
    """BLAKE3 of some bytes as 64 hex digits."""
    return blake3(data).hexdigest()


def digest_tensors(tensors: Sequence[torch.Tensor]) -> list[str]:
    """BLAKE3 of many tensors: large ones side by side on a few threads, small ones in line."""
    out: list[str] = [""] * len(tensors)

    def one(position: int) -> None:
        out[position] = digest_bytes(tensor_bytes(tensors[position]))

    big = []
    for position, tensor in enumerate(tensors):
        if tensor.nbytes >= _BIG:
            big.append(position)
        else:
            one(position)
    if len(big) > 1:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, big))
    elif big:
        one(big[0])
    return out
