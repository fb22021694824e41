"""What today's torch and NumPy write besides torch.save, compared with the live objects; and the same, damaged on purpose."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.package import PackageExporter

import torchkeep as tk
from torchkeep.core.tree import leaves
from torchkeep.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    TorchkeepError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedFeatureError,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.register_buffer("steps", torch.arange(4.0))
        self.scale = 2.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale + self.steps


def edited(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The same zip with records changed, or left out where the change answers None."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            body = change(entry.filename, old.read(entry))
            if body is not None:
                new.writestr(entry.filename, body)
    target = path.with_name(f"edited-{path.name}")
    target.write_bytes(out.getvalue())
    return target


def agrees(ckpt: tk.Checkpoint, model: nn.Module) -> None:
    state, parameters = model.state_dict(), dict(model.named_parameters())
    assert set(ckpt) == set(state)
    for name, value in state.items():
        assert torch.equal(ckpt[name].load(), value), name
        assert ckpt[name].kind == ("parameter" if name in parameters else "buffer"), name


# TorchScript


@pytest.mark.parametrize("mobile", [False, True])
def test_script_modules_come_out_as_modules(tmp_path: Path, mobile: bool) -> None:
    model = Net().eval()
    scripted = torch.jit.script(model)
    path = tmp_path / "net.pt"
    path.write_bytes(scripted._save_to_buffer_for_lite_interpreter()) if mobile else scripted.save(str(path))
    ckpt = tk.open(path)
    assert (ckpt.format, ckpt.kind) == ("torchscript", "module")
    agrees(ckpt.model, model)
    modules = {module.path: module for module in ckpt.modules}
    assert modules["inner.0"].class_name == "torch.nn.modules.linear.Linear" and modules[""].training is False
    assert modules[""].attributes["scale"] == 2.5 if "scale" in modules[""].attributes else True
    assert "forward" in modules[""].source
    assert not [finding for finding in ckpt.findings if finding.severity == "danger"]
    assert tk.verify(path).ok or mobile


def test_a_script_that_lies_about_a_tensor_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Net()).save(str(tmp_path / "net.pt"))
    short = edited(tmp_path / "net.pt", lambda name, body: body[:-4] if name.endswith("data/0") else body)
    with pytest.raises(CorruptCheckpointError, match="its record has"):
        tk.open(short)
    gone = edited(tmp_path / "net.pt", lambda name, body: None if name.endswith("data/0") else body)
    assert any(finding.code == "missing-storage" for finding in tk.open(gone).findings)


# torch.package and torch.export


def test_packages_open_with_their_source(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with PackageExporter(tmp_path / "p.pt") as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", model)
        exporter.save_source_string("notes", "x = 1\n")
    ckpt = tk.open(tmp_path / "p.pt")
    assert ckpt.format == "torch_package" and ckpt.metadata["source:notes"] == "x = 1\n"
    agrees(ckpt.model, model)


def test_exported_programs_give_their_weights(tmp_path: Path) -> None:
    model = Net().eval()
    torch.export.save(torch.export.export(model, (torch.ones(2, 3),)), tmp_path / "p.pt2")
    ckpt = tk.open(tmp_path / "p.pt2")
    assert ckpt.format == "pt2" and ckpt.provenance.producer.startswith("torch 2.")
    agrees(ckpt, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path_name": "../../etc/passwd"}, "not there"),
        ({"path_name": "weight_99"}, "not there"),
        ({"tensor_meta": None}, "not described"),
        ({"tensor_meta": {"dtype": 7, "sizes": [{"as_int": 1 << 40}], "strides": [{"as_int": 1}]}}, "need"),
        ({"tensor_meta": {"dtype": 7, "sizes": [{"as_int": -1}], "strides": [{"as_int": 1}]}}, "integers"),
        ({"tensor_meta": {"dtype": 7, "sizes": 3, "strides": []}}, "integers"),
    ],
)
def test_tables_of_weights_that_lie_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "p.pt2")

    def lie(name: str, body: bytes) -> bytes:
        if not name.endswith("_weights_config.json"):
            return body
        table = json.loads(body)
        table["config"]["weight"] |= change
        return json.dumps(table).encode()

    with pytest.raises(CorruptCheckpointError, match=said):
        tk.open(edited(tmp_path / "p.pt2", lie))


# Distributed checkpoints


def training_state() -> dict[str, Any]:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "names": ["a", "b"]}


def test_distributed_checkpoints_are_what_torch_makes_of_them(tmp_path: Path) -> None:
    dcp.save(training_state(), checkpoint_id=tmp_path / "d")
    dcp_to_torch_save(tmp_path / "d", tmp_path / "whole.pth")
    whole = torch.load(tmp_path / "whole.pth", weights_only=False)
    for path in (tmp_path / "d", tmp_path / "d" / ".metadata"):
        ckpt = tk.open(path)
        assert ckpt.format == "dcp"
        assert tk.load(path)["epoch"] == 3
        expected = {leaf.name: leaf.tensor for leaf in leaves(whole)}
        assert set(ckpt) == set(expected)
        assert all(torch.equal(ckpt[name].load(), tensor) for name, tensor in expected.items())
    assert tk.verify(tmp_path / "d").ok


def test_opening_a_distributed_checkpoint_reads_no_chunk(tmp_path: Path, checkpoints: Path) -> None:
    folder = checkpoints / "torch2.13.0-extras" / "dcp_2ranks"
    ckpt = tk.open(folder)
    assert ckpt["model.w"].layout == "chunked"
    whole = ckpt["model.w"].load()
    for index in (slice(0, 2), slice(2, 4), 4, (slice(1, 5), slice(0, 3))):
        assert torch.equal(ckpt["model.w"][index], whole[index])


def test_chunks_that_are_gone_or_of_another_save_are_named(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(1000)}, checkpoint_id=tmp_path / "d")
    shard = next((tmp_path / "d").glob("*.distcp"))
    data = shard.read_bytes()
    shard.write_bytes(data[:100])
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        tk.open(tmp_path / "d")
    shard.unlink()
    with pytest.raises(CheckpointNotFoundError, match="distcp"):
        tk.open(tmp_path / "d")


# Folders and indexes


def test_a_folder_of_one_checkpoint_opens_and_of_several_says_which(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.pth")
    assert tk.open(tmp_path)["a"].load().tolist() == [1, 1]
    torch.save({"a": torch.ones(2)}, tmp_path / "two.pth")
    with pytest.raises(UnknownFormatError, match=r"one\.pth"):
        tk.open(tmp_path)
    torch.save({"whole": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert "whole" in tk.open(tmp_path)


@pytest.mark.parametrize(
    ("index", "error", "said"),
    [
        ({"weight_map": {"a": "../one.pth"}}, CorruptCheckpointError, "no plain file name"),
        ({"weight_map": {"a": "/etc/passwd"}}, CorruptCheckpointError, "no plain file name"),
        ({"weight_map": {"a": "gone.pth"}}, CheckpointNotFoundError, "gone.pth"),
        ({"weight_map": {"b": "one.pth"}}, CorruptCheckpointError, "where it is not"),
        ({"weight_map": {"a": "x.index.json"}}, CorruptCheckpointError, "an index itself"),
        ({"weight_map": {}}, CorruptCheckpointError, "empty"),
        ({"weight_map": [1]}, CorruptCheckpointError, "no table"),
    ],
)
def test_indexes_that_lie_are_refused(tmp_path: Path, index: Any, error: type[TorchkeepError], said: str) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.pth")
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=said):
        tk.open(tmp_path / "x.index.json")


# Compressed files, tar files, bare pickles, NumPy


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("zipped", [True, False])
def test_compressed_files_open(tmp_path: Path, pack: Any, zipped: bool) -> None:
    out = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, out, _use_new_zipfile_serialization=zipped)
    data = pack(out.getvalue())
    path = tmp_path / "w.packed"
    path.write_bytes(data)
    assert torch.equal(tk.open(path)["a"].load(), torch.arange(1000.0))
    assert tk.verify(path).ok
    for length in range(10, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptCheckpointError):
            tk.open(path)
    path.write_bytes(data + b"junk junk")
    assert any(finding.code == "trailing-data" for finding in tk.open(path).findings)


def test_compressed_bombs_are_refused_before_they_fill_the_disk(tmp_path: Path) -> None:
    packer = lzma.LZMACompressor()
    data = b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(80)), packer.flush()])
    (tmp_path / "bomb").write_bytes(data)
    with pytest.raises(UnsafeCheckpointError, match="inflated_bytes"):
        tk.open(tmp_path / "bomb")
    nested = b"x"
    for _ in range(12):
        nested = gzip.compress(nested)
    (tmp_path / "nested").write_bytes(nested)
    with pytest.raises(UnsafeCheckpointError, match="nesting"):
        tk.open(tmp_path / "nested")


def test_tar_files_of_something_else_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("readme.txt")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    with pytest.raises(UnknownFormatError, match=r"readme\.txt"):
        tk.open(tmp_path / "t.tar")


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_of_tensors_and_arrays_open(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(6.0)
    value = {"t": base, "view": base[2:], "n": np.arange(6).reshape(2, 3), "s": np.float32(1.5), "l": [1, (2, None)]}
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol))
    ckpt = tk.open(tmp_path / "v.pkl")
    assert ckpt.format == "plain_pickle" and not [f for f in ckpt.findings if f.severity != "info"]
    loaded = tk.load(tmp_path / "v.pkl", strict=True)
    assert torch.equal(loaded["t"], base) and torch.equal(loaded["view"], base[2:]) and loaded["l"] == value["l"]
    assert np.array_equal(loaded["n"], value["n"]) and loaded["n"].dtype == value["n"].dtype
    assert loaded["s"] == np.float32(1.5) and type(loaded["s"]) is np.float32


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(5, dtype=">i4"),
        np.array(3, dtype="u2"),
        np.zeros((0, 3), dtype="f2"),
        np.array([1 + 2j], dtype=">c8"),
        np.array([True, False]),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_come_out_of_pickles_and_files_as_they_were(tmp_path: Path, array: Any, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([array, array, array.dtype], protocol))
    first, again, dtype = tk.load(tmp_path / "a.pkl")
    assert first is again and dtype == array.dtype
    assert first.dtype == array.dtype and np.array_equal(first, array) and first.flags.writeable
    native = array.astype(array.dtype.newbyteorder("="))
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(tk.open(tmp_path / "a.npy")["array"].load().numpy(), native)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=array, words=np.array(["a"]), objects=np.array([{}], dtype=object))
        ckpt = tk.open(tmp_path / "a.npz")
        assert list(ckpt) == ["x"] and np.array_equal(ckpt["x"].load().numpy(), native)
        assert sum(finding.code == "no-tensor" for finding in ckpt.findings) == 2
        assert tk.verify(tmp_path / "a.npz").ok


def test_random_states_keep_their_arrays(tmp_path: Path) -> None:
    states = {
        "legacy": np.random.RandomState(3),
        "state": np.random.RandomState(3).get_state(),
        "new": np.random.default_rng(3),
    }
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(states))
    loaded = tk.load(tmp_path / "r.pkl")
    assert np.array_equal(loaded["state"][1], states["state"][1])
    assert "RandomState" in repr(loaded["legacy"]) or "ctor" in repr(loaded["legacy"])


@pytest.mark.parametrize(
    "body",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01(J\xff\xff\xff\x7ft"
        b"cnumpy\ndtype\n(X\x02\0\0\0f8K\0K\x01tR(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C\x08"
        + bytes(8)
        + b"tb",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\0\0\0f8K\0K\x01tR(K\x03X\x01\0\0\0<NNNK\0K\0K\0tbC\x03abctR",
    ],
)
def test_arrays_that_lie_about_their_size_are_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x03" + body + b".")
    with pytest.raises(CorruptCheckpointError, match="NumPy"):
        tk.open(tmp_path / "a.pkl")


def test_joblib_files_are_named(tmp_path: Path) -> None:
    body = b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b" + b"\xff" * 50
    (tmp_path / "m.joblib").write_bytes(body)
    with pytest.raises(UnsupportedFeatureError, match="joblib"):
        tk.open(tmp_path / "m.joblib")
