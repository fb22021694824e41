"""The contract of formats: torchkeep's own formats pass it, a toy format passes it, and broken ones do not."""

from __future__ import annotations

import gzip
import io
import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors

import torchkeep as tk
from torchkeep.core.source import Probe, Source
from torchkeep.core.tensors import LazyTensor, StorageRef, TensorSpec, check_geometry, contiguous_stride
from torchkeep.errors import CorruptCheckpointError
from torchkeep.formats.compressed import Compressed
from torchkeep.formats.hf_index import HfIndex
from torchkeep.formats.safetensors import Safetensors
from torchkeep.formats.torch_legacy import TorchLegacy
from torchkeep.formats.torch_zip import TorchZip
from torchkeep.testing import FormatTests, Sample

TENSORS = {"weight": torch.arange(360_000.0).view(600, 600), "bias": torch.ones(3), "empty": torch.zeros(0, 2)}


class Toy:
    """Rows of float32: `TOY1`, a count, then for each name and size, then the elements."""

    name = "toy"

    def sniff(self, probe: Probe) -> bool:
        return probe.head.startswith(b"TOY1")

    def open(self, source: Source, limits: tk.Limits) -> tk.Checkpoint:
        if not self.sniff(Probe(bytes(source.read(0, min(4, source.size))), source.size)):
            raise CorruptCheckpointError("is no toy", file=source.name)
        (count,) = struct.unpack("<I", bytes(source.read(4, 4)))
        at, tensors = 8, {}
        for _ in range(count):
            length, size = struct.unpack("<HI", bytes(source.read(at, 6)))
            name = bytes(source.read(at + 6, length)).decode("utf-8", "replace")
            at += 6 + length
            spec = TensorSpec(torch.float32, (size,))
            check_geometry(spec, (1,), 0, source.size - at, file=source.name, place=name)
            tensors[name] = LazyTensor(source, StorageRef(spec.nbytes, at), spec, contiguous_stride(spec.shape))
            at += spec.nbytes
        return tk.Checkpoint(source.name, self.name, tensors)


def toy(tensors: dict[str, torch.Tensor]) -> bytes:
    out = b"TOY1" + struct.pack("<I", len(tensors))
    for name, tensor in tensors.items():
        out += struct.pack("<HI", len(name), len(tensor)) + name.encode() + tensor.numpy().tobytes()
    return out


def saved(**options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(TENSORS, out, **options)
    return out.getvalue()


class TestToy(FormatTests):
    format = Toy()

    def samples(self) -> list[Sample]:
        tensors = {"a": torch.arange(300_000.0), "b": torch.ones(1)}
        return [Sample(toy(tensors), tensors)]


class TestTorchZip(FormatTests):
    format = TorchZip()

    def samples(self) -> list[Sample]:
        return [Sample(saved(), TENSORS)]


class TestTorchLegacy(FormatTests):
    format = TorchLegacy()

    def samples(self) -> list[Sample]:
        return [Sample(saved(_use_new_zipfile_serialization=False), TENSORS)]


class TestSafetensors(FormatTests):
    format = Safetensors()

    def samples(self) -> list[Sample]:
        return [Sample(save_safetensors(TENSORS), TENSORS)]


class TestCompressed(FormatTests):
    format = Compressed()
    lazy = False

    def samples(self) -> list[Sample]:
        return [Sample(gzip.compress(saved()), TENSORS)]


class TestHfIndex(FormatTests):
    format = HfIndex()

    def samples(self) -> list[Sample]:
        index = json.dumps({"weight_map": dict.fromkeys(TENSORS, "one.safetensors")}).encode()
        return [Sample(index, TENSORS, {"one.safetensors": save_safetensors(TENSORS)})]


class Greedy(Toy):
    """Reads everything when it is opened."""

    def open(self, source: Source, limits: tk.Limits) -> tk.Checkpoint:
        source.read(0, source.size)
        return super().open(source, limits)


class Careless(Toy):
    """Does not check what it reads."""

    def open(self, source: Source, limits: tk.Limits) -> tk.Checkpoint:
        data = bytes(source.read(0, source.size))
        assert data[:4] == b"TOY1"
        return super().open(source, limits)


class Grasping(Toy):
    """Takes every file for its own."""

    def sniff(self, probe: Probe) -> bool:
        return True


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Greedy(), "test_opening_reads_no_values"),
        (Careless(), "test_a_damaged_file_is_no_surprise"),
        (Grasping(), "test_it_leaves_other_files_alone"),
    ],
)
def test_a_format_that_breaks_the_contract_fails(broken: Any, test: str) -> None:
    checks = TestToy()
    checks.format = broken
    with pytest.raises(AssertionError):
        getattr(checks, test)()
