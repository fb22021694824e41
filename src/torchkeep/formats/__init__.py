"""Readers of checkpoint files: each turns headers into lazy tensors, and none runs code from a file."""

from __future__ import annotations

from typing import Protocol

from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.source import Probe, Source


class Format(Protocol):
    """A kind of checkpoint file."""

    name: str

    def sniff(self, probe: Probe) -> bool:
        """Whether the first bytes are those of this format."""
        ...

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read everything but the tensors' values."""
        ...


FORMATS: dict[str, str] = {  # in the order in which they are asked
    "safetensors": "formats.safetensors:Safetensors",
    "compressed": "formats.compressed:Compressed",
    "torchscript": "formats.torchscript:TorchScript",
    "torchscript_old": "formats.torchscript_old:TorchScriptOld",
    "torch_package": "formats.torch_package:TorchPackage",
    "pt2": "formats.pt2:Pt2",
    "npz": "formats.numpy_files:Npz",
    "npy": "formats.numpy_files:Npy",
    "torch_zip": "formats.torch_zip:TorchZip",
    "torch_tar": "formats.torch_tar:TorchTar",
    "torch_legacy": "formats.torch_legacy:TorchLegacy",
    "dcp": "formats.dcp:Dcp",
    "plain_pickle": "formats.plain_pickle:PlainPickle",
    "hf_index": "formats.hf_index:HfIndex",
    "folder": "formats.hf_index:Folder",
}
