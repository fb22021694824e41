"""What torchkeep writes into a safetensors file beside the tensors: JSON under one key of the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .about import NOTHING, About
from .architecture import Architecture
from .modulespec import ModuleSpec
from .operations import Operation
from .origin import Origins

KEY = "torchkeep"
NO_DIGEST = "0" * 64
VERSION = (
    2  # the highest that is read, and that of files; packs, which have none of what is new in it, are of version 1
)


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


class Runs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which names have a property, by their place among the names of a file: [first, count, first, count ...].

    Attributes:
        parameters, buffers, requires_grad, devices: as the members of these names in FileFacts; devices are the keys.
    """

    parameters: list[int] = []
    buffers: list[int] = []
    requires_grad: list[int] = []
    devices: dict[str, list[int]] = {}


class Graph(msgspec.Struct, frozen=True, omit_defaults=True):
    """A program of torch.export in a file beside that of the weights, which it does not have.

    Attributes:
        name: of the file, in the folder of the weights.
        nbytes, digest: its size, and BLAKE3 of all of it.
        inputs: dtype and shape of each example tensor, e.g. `float32[2, 3, 64, 64]`.
        batch: whether the size of the first dimension is free.
        mode: `train` or `eval`, the mode in which it was exported; `mixed` where modules were in different ones.
        modal: operators in it that did one thing or another by that mode, e.g. `batch_norm`, `dropout`.
        torch: the version that exported it.
    """

    name: str
    nbytes: int
    digest: str
    inputs: list[str] = []
    batch: bool = False
    mode: str = "eval"
    modal: list[str] = []
    torch: str = ""


class FileFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The facts of one file. Every member is optional for a reader: the file is a good safetensors file without them.

    Attributes:
        version: of the facts: 2 where `hashes`, `runs` and `outline` are in place of what they stand for, else 1.
        kind: `module` (a live model was saved), `object` (a tree of plain values) or `pack` (part of a run).
        header: BLAKE3 over the whole header with these 64 digits as zeros.
        hashes: on disk in place of `digests`: those of all tensors one after another, in the order of the header.
        runs: on disk in place of `parameters`, `buffers`, `requires_grad` and `devices`.
        outline: on disk in place of `module`, without what the rest of the file says of its tensors.
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
        origins: where the tensors of a model were loaded from before.
        producer: versions of what wrote it.
        surgery: what was done to the structure of the module, in order.
        about: licence, classes, parents ... as `core.about.written` gives them.
        graph: the program that computes what the module did, where one was saved with it.
        architecture: what it takes to make the module again.
    """

    version: int = 1
    kind: str = "object"
    header: str = ""
    hashes: str = ""
    runs: Runs = Runs()
    outline: Any = msgspec.UNSET
    digests: Mapping[str, str] = {}
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
    origins: Origins = Origins()
    producer: dict[str, str] = {}
    surgery: list[Operation] = []
    about: About = NOTHING
    graph: Graph | None = None
    architecture: Architecture | None = None


def listed(stored: Sequence[str], facts: FileFacts) -> list[str]:
    """The names of a file in their order: those in its header, wholes in the place of their parts, then the others."""
    if not (facts.composites or facts.empty or facts.tied):
        return list(stored)
    owners = {part: name for name, parts in facts.composites.items() for part in parts.parts.values()}
    return list(dict.fromkeys(owners.get(name, name) for name in (*stored, *facts.empty, *facts.tied)))
