"""Tensors made of others: read back equal, and refused where their parts do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torchkeep as tk
from torchkeep.core.composite import Chunked, Composite, Compressed, Coo, Nested, check_tiling
from torchkeep.core.source import Held
from torchkeep.core.tensors import LazyTensor, StorageRef, TensorSpec, contiguous_stride
from torchkeep.errors import CorruptCheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize", "ignore:The PyTorch API of nested")

LAYOUTS = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def lazy(values: torch.Tensor) -> LazyTensor:
    data = values.contiguous().numpy().tobytes()
    spec = TensorSpec(values.dtype, tuple(values.shape))
    return LazyTensor(Held(data, "held"), StorageRef(len(data), 0), spec, contiguous_stride(spec.shape))


def composite(composition: Any, shape: tuple[int, ...], **parts: torch.Tensor) -> Composite:
    made = {name: lazy(part) for name, part in parts.items()}
    return Composite(composition, made, Held(b"", "held"), TensorSpec(torch.float32, shape))


def reloaded(value: Any, path: Path, **options: Any) -> tuple[Any, Any]:
    torch.save(value, path, **options)
    return tk.open(path), tk.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_sparse_tensors_of_every_layout_come_back(tmp_path: Path, zipped: bool) -> None:
    dense = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0]])
    saved: dict[str, torch.Tensor] = {"coo": dense.to_sparse(), "hybrid": torch.ones(2, 3, 4).to_sparse(1)}
    for layout in LAYOUTS:
        block = (1, 2) if layout in LAYOUTS[2:] else None
        saved[str(layout)] = dense.to_sparse(layout=layout, blocksize=block)
    ckpt, loaded = reloaded(saved, tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
    for name, value in saved.items():
        assert loaded[name].layout is value.layout, name
        assert f"torch.{ckpt[name].layout}" == str(value.layout)
        assert torch.equal(loaded[name].to_dense(), value.to_dense()), name
        assert ckpt[name].nbytes == sum(part.nbytes for part in ckpt[name].parts.values())


@pytest.mark.parametrize("zipped", [True, False])
def test_quantized_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    values = torch.randn(4, 6)
    channels = {"scales": torch.rand(4, dtype=torch.float64) + 0.1, "zero_points": torch.zeros(4, dtype=torch.int64)}
    saved = {
        "qint8": torch.quantize_per_tensor(values, 0.1, 3, torch.qint8),
        "quint8": torch.quantize_per_tensor(values, 0.1, 3, torch.quint8),
        "qint32": torch.quantize_per_tensor(values, 0.1, 3, torch.qint32),
        "channels": torch.quantize_per_channel(values, axis=0, dtype=torch.qint8, **channels),
    }
    saved["transposed"] = saved["qint8"].t()
    ckpt, loaded = reloaded(saved, tmp_path / "q.pth", _use_new_zipfile_serialization=zipped)
    for name, value in saved.items():
        assert loaded[name].dtype is value.dtype and loaded[name].qscheme() is value.qscheme(), name
        assert loaded[name].stride() == value.stride(), name
        assert torch.equal(loaded[name].int_repr(), value.int_repr()), name
        assert torch.equal(loaded[name].dequantize(), value.dequantize()), name
        assert ckpt[name].layout == "quantized"


def test_nested_tensors_come_back(tmp_path: Path) -> None:
    members = [torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)]
    ckpt, loaded = reloaded({"n": torch.nested.nested_tensor(members)}, tmp_path / "n.pth")
    assert ckpt["n"].layout == "nested"
    for out, member in zip(loaded["n"].unbind(), members, strict=True):
        assert torch.equal(out, member)


def test_indices_outside_of_the_shape_are_refused() -> None:
    indices, values = torch.tensor([[0, 5]]), torch.ones(2)
    with pytest.raises(CorruptCheckpointError, match="outside of its shape"):
        composite(Coo(), (3,), indices=indices, values=values).load()
    with pytest.raises(CorruptCheckpointError, match="outside of its shape"):
        composite(Coo(), (3,), indices=-indices, values=values).load()
    with pytest.raises(CorruptCheckpointError, match="values of shape"):
        composite(Coo(), (9,), indices=indices, values=torch.ones(3)).load()
    with pytest.raises(CorruptCheckpointError, match="no table"):
        composite(Coo(), (9,), indices=indices.float(), values=values).load()
    parts = {"compressed_indices": torch.tensor([0, 1, 2]), "values": values}
    with pytest.raises(CorruptCheckpointError, match="do not fit"):
        composite(Compressed("sparse_csr"), (2, 2), plain_indices=torch.tensor([0, 7]), **parts).load()


def test_nested_members_outside_of_the_buffer_are_refused() -> None:
    parts = {"sizes": torch.tensor([[2, 3]]), "strides": torch.tensor([[3, 1]])}
    whole = composite(Nested(), (6,), buffer=torch.ones(6), offsets=torch.tensor([0]), **parts)
    assert whole.load().unbind()[0].shape == (2, 3)
    for offset in (1, -1):
        broken = composite(Nested(), (6,), buffer=torch.ones(6), offsets=torch.tensor([offset]), **parts)
        with pytest.raises(CorruptCheckpointError, match="outside of its buffer"):
            broken.load()


def test_chunks_are_put_together_and_read_by_rows() -> None:
    whole = torch.arange(24.0).view(4, 6)
    pieces = {(0, 0): whole[:1, :4], (0, 4): whole[:1, 4:], (1, 0): whole[1:]}
    tensor = composite(Chunked(tuple(pieces)), (4, 6), **{str(at): part for at, part in pieces.items()})
    assert torch.equal(tensor.load(), whole)
    for index in (
        slice(0, 1),
        slice(1, 3),
        slice(-1, None),
        slice(3, 2),
        0,
        -1,
        (slice(0, 2), 3),
        (2, slice(1, 4)),
        ...,
    ):
        assert torch.equal(tensor[index], whole[index]), index


def test_tilings_are_checked() -> None:
    whole = ((0, 0), (2, 3))
    assert check_tiling((2, 3), [whole]) == ""
    assert check_tiling((2, 3), [((0, 0), (2, 1)), ((0, 1), (2, 2))]) == ""
    assert "elements together" in check_tiling((2, 3), [((0, 0), (2, 2))])
    assert "overlap" in check_tiling((2, 4), [((0, 0), (2, 2)), ((0, 1), (2, 2))])
    assert "outside" in check_tiling((2, 3), [((1, 0), (2, 3))])
    assert "dimensions" in check_tiling((2, 3), [((0,), (6,))])
