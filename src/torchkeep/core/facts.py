"""What torchkeep writes into a safetensors file beside the tensors: JSON under one key of the file's metadata."""

from __future__ import annotations

from typing import Any

import msgspec

from .modulespec import ModuleSpec

KEY = "torchkeep"
NO_DIGEST = "0" * 64


class FileFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The facts of one file. Every member is optional for a reader: the file is a good safetensors file without them.

    Attributes:
        version: of the format.
        kind: `module` (a live model was saved), `object` (a tree of plain values) or `pack` (part of a run).
        header: BLAKE3 over the whole header with these 64 digits as zeros.
        digests: BLAKE3 of each tensor's bytes.
        dtypes: tensors whose dtype safetensors lacks, stored as U8: name -> (dtype, shape).
        empty: tensors without bytes, which were on the meta device: name -> (dtype, shape).
        parameters, buffers: names of the tensors that were parameters or buffers.
        requires_grad: names of the tensors with the flag.
        tied: name -> the name in the file whose memory it shares.
        devices: name -> device, for what was not on the CPU.
        module: the description of the model, without its values.
        tree: the saved object as tagged JSON, its tensors by name; of a module, its extra state.
        producer: versions of what wrote it.
    """

    version: int = 1
    kind: str = "object"
    header: str = ""
    digests: dict[str, str] = {}
    dtypes: dict[str, tuple[str, tuple[int, ...]]] = {}
    empty: dict[str, tuple[str, tuple[int, ...]]] = {}
    parameters: list[str] = []
    buffers: list[str] = []
    requires_grad: list[str] = []
    tied: dict[str, str] = {}
    devices: dict[str, str] = {}
    module: ModuleSpec | None = None
    tree: Any = msgspec.UNSET
    producer: dict[str, str] = {}
