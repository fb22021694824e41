"""What torchkeep writes into a safetensors file beside the tensors: JSON under one key of the file's metadata."""

from __future__ import annotations

from typing import Any

import msgspec

from .modulespec import ModuleSpec

KEY = "torchkeep"
NO_DIGEST = "0" * 64


class Parts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that is stored as the tensors it is made of.

    Attributes:
        layout: `sparse_coo`, `sparse_csr`, `sparse_csc`, `sparse_bsr`, `sparse_bsc`, `quantized` or `nested`.
        dtype, shape: of the whole; the dtype of a quantized one is torch's, e.g. `qint8`.
        parts: what each part is called in the layout -> its name in the file.
        options: what else the layout needs, as tagged JSON: `coalesced`; `scheme`, `scale`, `zero_point`, `axis`.
    """

    layout: str
    dtype: str
    shape: tuple[int, ...]
    parts: dict[str, str]
    options: dict[str, Any] = {}


class FileFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The facts of one file. Every member is optional for a reader: the file is a good safetensors file without them.

    Attributes:
        version: of the format.
        kind: `module` (a live model was saved), `object` (a tree of plain values) or `pack` (part of a run).
        header: BLAKE3 over the whole header with these 64 digits as zeros.
        digests: BLAKE3 of each tensor's bytes.
        dtypes: tensors whose dtype safetensors lacks, stored as U8: name -> (dtype, shape).
        empty: tensors without bytes, which were on the meta device: name -> (dtype, shape).
        composites: tensors that are stored as their parts; the names of the parts are in the file instead of theirs.
        parameters, buffers: names of the tensors that were parameters or buffers.
        requires_grad: names of the tensors with the flag.
        tied: name -> the name in the file whose memory it shares.
        devices: name -> device, for what was not on the CPU.
        module: the description of the model, without its values.
        tree: the saved object as tagged JSON, its tensors by name; of a module, its extra state.
        whole: in the first of several shards, the kind of them all together; `tree` and `module` are theirs.
        producer: versions of what wrote it.
    """

    version: int = 1
    kind: str = "object"
    header: str = ""
    digests: dict[str, str] = {}
    dtypes: dict[str, tuple[str, tuple[int, ...]]] = {}
    empty: dict[str, tuple[str, tuple[int, ...]]] = {}
    composites: dict[str, Parts] = {}
    parameters: list[str] = []
    buffers: list[str] = []
    requires_grad: list[str] = []
    tied: dict[str, str] = {}
    devices: dict[str, str] = {}
    module: ModuleSpec | None = None
    tree: Any = msgspec.UNSET
    whole: str = ""
    producer: dict[str, str] = {}
