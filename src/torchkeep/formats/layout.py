"""How tensors are laid out in a safetensors file that is about to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch
from blake3 import blake3

from ..core.facts import KEY, NO_DIGEST, FileFacts
from ..core.limits import Limits
from ..core.tensors import DTYPES, TensorSpec, dtype_name
from ..errors import UnsavableError
from ._pause import collector_paused
from ._short import shortened

_METADATA = "__metadata__"
_ALIGN = 4096  # the data begins at a multiple of this, a page; spaces after the header are part of the format
_HEADER, _HASHES = b'\\"header\\":\\"', b'\\",\\"hashes\\":\\"'


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


@collector_paused()
def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], *, room: int = 0) -> Layout:
    """Order bytes by the size of the elements, largest first, so that each tensor starts at a multiple of it.

    The header lists the tensors in the order in which they are given, and takes `room` bytes or more.
    """
    if _METADATA in specs:
        raise UnsavableError(
            f"a tensor cannot be called {_METADATA!r}: safetensors means something else by it",
            path=_METADATA,
            hint="rename it",
        )
    codes: dict[torch.dtype, str | None] = {}
    for spec in specs.values():
        if spec.dtype not in codes:
            codes[spec.dtype] = DTYPES[dtype_name(spec.dtype)].safetensors
    order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    header |= dict.fromkeys(specs)
    end = 0
    for name in order:
        spec = specs[name]
        nbytes, code = spec.nbytes, codes[spec.dtype]
        start, end = end, end + nbytes
        shape = spec.shape if code else (nbytes,)
        header[name] = {"dtype": code or "U8", "shape": shape, "data_offsets": (start, end)}
    try:
        text = msgspec.json.encode(header)
    except UnicodeEncodeError as error:
        place = f"{error.object:.200}"
        raise UnsavableError(
            f"{place!r} is no valid text, and a name in a safetensors file has to be", path=place, hint="rename it"
        ) from error
    text += b" " * (max(room, len(text) + 8) - len(text) - 8)
    text += b" " * (-(len(text) + 8) % _ALIGN)
    if len(text) > Limits().header_bytes:
        raise UnsavableError(
            f"names and plain values take {len(text):,} bytes, a safetensors header has {Limits().header_bytes:,}",
            hint="save large bytes and long lists of numbers as tensors",
        )
    return Layout(len(text).to_bytes(8, "little") + text, tuple(order), len(text) + 8 + end)


@collector_paused()
def lay_out_file(specs: Mapping[str, TensorSpec], facts: FileFacts, metadata: Mapping[str, str]) -> Layout:
    """The layout of a file with facts, in their short form, in front of the other metadata."""
    text = msgspec.json.encode(shortened(facts, specs)).decode()
    return lay_out(specs, {KEY: text} | {key: value for key, value in metadata.items() if key != KEY})


def with_digests(header: bytes, digests: list[str]) -> bytes:
    """The header of `lay_out_file` with the digests of the tensors, in the order of `specs`, and its own.

    They take the place of zeros of the same length, so nothing is laid out again.
    """
    at = header.index(_HEADER) + len(_HEADER)  # the first: the facts are the first text, and this the first in them
    out = bytearray(header)
    if digests:
        start = at + len(NO_DIGEST) + len(_HASHES)
        assert header[start - len(_HASHES) : start] == _HASHES
        hashes = "".join(digests).encode()
        assert header[start : start + len(hashes)].count(b"0") == len(hashes)
        out[start : start + len(hashes)] = hashes
    out[at : at + len(NO_DIGEST)] = blake3(memoryview(out)[8:]).hexdigest().encode()
    return bytes(out)
