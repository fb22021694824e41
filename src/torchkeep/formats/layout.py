"""How tensors are laid out in a safetensors file that is about to be written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.limits import Limits
from ..core.tensors import DTYPES, TensorSpec, dtype_name
from ..errors import UnsavableError

_METADATA = "__metadata__"
_ALIGN = 4096  # the data begins at a multiple of this; spaces after the header are part of the format


@dataclass(frozen=True)
class Layout:
    """Where everything goes.

    Attributes:
        header: length, JSON and padding: the file up to the data.
        order: names in the order of their bytes.
        total: size of the file in bytes.
    """

    header: bytes
    order: tuple[str, ...]
    total: int


def without_code(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors whose dtype safetensors lacks, which are stored as U8: name -> (dtype, shape)."""
    return {
        name: (dtype_name(spec.dtype), spec.shape)
        for name, spec in specs.items()
        if DTYPES[dtype_name(spec.dtype)].safetensors is None
    }


def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Layout:
    """Order tensors by the size of their elements, largest first, so that each starts at a multiple of it."""
    if _METADATA in specs:
        raise UnsavableError(
            f"a tensor cannot be called {_METADATA!r}: safetensors means something else by it",
            path=_METADATA,
            hint="rename it",
        )
    order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        spec = specs[name]
        code = DTYPES[dtype_name(spec.dtype)].safetensors
        start, end = end, end + spec.nbytes
        shape = list(spec.shape) if code else [spec.nbytes]
        header[name] = {"dtype": code or "U8", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    if len(text) > Limits().header_bytes:
        raise UnsavableError(
            f"names and plain values take {len(text):,} bytes, a safetensors header has {Limits().header_bytes:,}",
            hint="save large bytes and long lists of numbers as tensors",
        )
    return Layout(len(text).to_bytes(8, "little") + text, tuple(order), len(text) + 8 + end)
