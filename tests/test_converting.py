"""Converting: what comes out is what went in, for torch, for safetensors, in shards, cast, and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torchkeep as tk
from torchkeep.core.tree import leaves
from torchkeep.errors import SaveError, TorchkeepError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse",
    "ignore:torch.quantize",
    "ignore:The PyTorch API of nested",
    "ignore:ComplexHalf",
    "ignore:TypedStorage",
)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def everything() -> dict[str, Any]:
    base = torch.arange(12.0)
    return {
        "a": base,
        "view": base[2:6],
        "grid": base.view(3, 4).t(),
        "param": nn.Parameter(torch.ones(2, 2)),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "u16": torch.tensor([1, 65535], dtype=torch.uint16),
        "f8": torch.ones(4).to(torch.float8_e4m3fn),
        "c": torch.tensor([1 + 2j]).conj(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "meta": torch.empty(2, device="meta"),
        "plain": {
            "lr": 0.1,
            "steps": [1, (2, 3)],
            5: None,
            "inf": float("inf"),
            "text": "é",
            "raw": b"\0\1",
            "big": 1 << 80,
        },
        "ordered": OrderedDict(x=1),
        "set": {1, 2},
    }


def same(one: Any, other: Any) -> None:
    """Every tensor in two objects is equal, with its flags."""
    ours, theirs = ({leaf.name: leaf.tensor for leaf in leaves(value)} for value in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (
            theirs[name].dtype,
            theirs[name].shape,
            theirs[name].requires_grad,
        ), name
        assert type(tensor) is type(theirs[name]), name
        if tensor.device.type != "meta":
            assert tensor.stride() == theirs[name].stride() and bits(tensor) == bits(theirs[name]), name


def test_what_torch_saved_comes_back_from_torch(tmp_path: Path) -> None:
    whole = everything()
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.pth")
    assert report.notes == ()
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "new.pth", weights_only=True, **options)
        same(loaded, whole)
        assert loaded["plain"] == whole["plain"] and loaded["set"] == {1, 2} and loaded["ordered"] == whole["ordered"]
        assert loaded["view"].untyped_storage().data_ptr() == loaded["a"].untyped_storage().data_ptr()
    assert tk.verify(tmp_path / "new.pth").ok
    assert not tk.open(tmp_path / "new.pth").findings


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tensors_made_of_others_keep_their_layout(tmp_path: Path, ending: str) -> None:
    dense = torch.tensor([[0.0, 1, 0], [2, 0, 3]])
    channels = (torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8)
    whole = {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "q": torch.quantize_per_tensor(dense, 0.1, 3, torch.qint8),
        "qt": torch.quantize_per_tensor(dense, 0.1, 3, torch.quint8).t(),
        "channels": torch.quantize_per_channel(dense, *channels),
        "nested": torch.nested.nested_tensor([dense[0], dense[1, :2]]),
    }
    torch.save(whole, tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / f"new{ending}")
    if ending == ".pth":
        loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    else:
        loaded = tk.load(tmp_path / "new.safetensors", verify=True)
        assert tk.verify(tmp_path / "new.safetensors").ok
        assert set(load_file(tmp_path / "new.safetensors")) >= {"coo:indices", "coo:values", "q:ints"}
    for name, value in whole.items():
        assert loaded[name].layout is value.layout and loaded[name].dtype is value.dtype, name
        if value.is_nested:
            assert all(torch.equal(a, b) for a, b in zip(loaded[name].unbind(), value.unbind(), strict=True))
        else:
            assert torch.equal(*(v.dequantize() if v.is_quantized else v.to_dense() for v in (loaded[name], value))), (
                name
            )


def test_what_torch_cannot_take_is_replaced_and_said(tmp_path: Path) -> None:
    import argparse

    whole = {
        "model": nn.Linear(2, 3),
        "args": argparse.Namespace(lr=0.1),
        "array": np.arange(6.0).reshape(2, 3),
        "number": np.float64(2.5),
        "frozen": frozenset({1}),
    }
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.pth")
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert loaded["args"] == {"lr": 0.1} and loaded["number"] == 2.5 and loaded["frozen"] == {1}
    assert torch.equal(loaded["array"], torch.from_numpy(whole["array"]))
    assert torch.equal(loaded["model"]["weight"], whole["model"].weight)
    assert {note.partition(" ")[2] for note in report.notes} >= {
        "modules as their state dicts",
        "objects of argparse.Namespace as dicts of their attributes",
        "NumPy arrays as tensors",
    }
    nn.Linear(2, 3).load_state_dict(loaded["model"])


def test_a_whole_model_becomes_its_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save(model, tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)
    tk.save(model, tmp_path / "own.safetensors")
    tk.convert(tmp_path / "own.safetensors", tmp_path / "own.bin")
    assert list(torch.load(tmp_path / "own.bin", weights_only=True)) == list(model.state_dict())


def test_numpy_values_stay_in_safetensors(tmp_path: Path) -> None:
    whole = {"rng": np.random.RandomState(0).get_state()[1], "best": np.float32(0.5), "t": torch.ones(2)}
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.safetensors")
    loaded = tk.load(tmp_path / "new.safetensors")
    assert not report.notes and np.array_equal(loaded["rng"], whole["rng"]) and loaded["best"] == np.float32(0.5)
    assert loaded["rng"].dtype == whole["rng"].dtype and loaded["rng"].flags.writeable


def test_files_of_every_kind_become_files_for_torch(checkpoints: Path, tmp_path: Path) -> None:
    """A sample of every writer: what torch opens with weights_only has every tensor of the old file."""
    compared = 0
    for path in sorted(path for path in checkpoints.rglob("*") if path.is_file() and path.suffix != ".json")[::6]:
        try:
            ckpt = tk.open(path)
        except TorchkeepError:
            continue  # a shard of a distributed checkpoint
        tk.convert(path, tmp_path / "new.pth")
        loaded = torch.load(tmp_path / "new.pth", weights_only=True)
        ours = [tensor for tensor in ckpt.model.values() if tensor.layout == "strided" and tensor.device != "meta"]
        found = {
            bits(leaf.tensor)
            for leaf in leaves(loaded)
            if leaf.tensor.layout is torch.strided
            and not leaf.tensor.is_quantized
            and not leaf.tensor.is_nested
            and leaf.tensor.device.type != "meta"
        }
        missing = [tensor for tensor in ours if bits(tensor.load()) not in found]
        assert not missing, (path.name, missing[:3])
        compared += len(ours)
    assert compared > 800


def test_dtypes_are_cast_and_what_overflows_is_counted(tmp_path: Path) -> None:
    base = torch.linspace(-2, 2, 100_000)
    whole = {
        "a": base,
        "view": base[10:20],
        "big": torch.tensor([1e6, 1.0]),
        "i": torch.arange(3),
        "c": torch.tensor([1j]),
    }
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", dtype="float16")
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert (
        torch.equal(loaded["a"], base.half())
        and loaded["i"].dtype is torch.int64
        and loaded["c"].dtype is torch.complex64
    )
    assert loaded["view"].untyped_storage().data_ptr() == loaded["a"].untyped_storage().data_ptr()
    assert any("1 numbers became infinite" in note for note in report.notes)
    tk.convert(tmp_path / "old.pth", tmp_path / "new.safetensors", dtype=torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "new.safetensors")["a"], base.bfloat16())
    assert tk.verify(tmp_path / "new.safetensors").ok
    with pytest.raises(SaveError, match="floating-point"):
        tk.convert(tmp_path / "old.pth", tmp_path / "x.pth", dtype="int8")


def test_shards_and_their_index_are_one_checkpoint(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(10)))
    model[9].weight = model[0].weight
    whole = {
        "model": model.state_dict(),
        "epoch": 3,
        "sparse": torch.eye(3).to_sparse(),
        "p": nn.Parameter(torch.ones(1)),
    }
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "m.safetensors", max_shard_size="100KB")
    shards = sorted(tmp_path.glob("m-*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size < 120_000 for shard in shards)
    assert shards[0].name == f"m-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert index["weight_map"].keys() == stored.keys() and report.save.path.endswith("index.json")
    loaded = tk.load(tmp_path / "m.safetensors.index.json")
    assert loaded["epoch"] == 3 and isinstance(loaded["p"], nn.Parameter)
    assert all(torch.equal(loaded["model"][name], value) for name, value in whole["model"].items())
    assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3))
    assert loaded["model"]["9.weight"].data_ptr() == loaded["model"]["0.weight"].data_ptr()
    with pytest.raises(SaveError, match="exists already"):
        tk.convert(tmp_path / "old.pth", tmp_path / "m.safetensors", max_shard_size="100KB")


def test_a_failure_between_shards_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({f"w{i}": torch.ones(1000) for i in range(10)}, tmp_path / "old.pth")
    from torchkeep import writing

    real, calls = writing._one, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise SaveError("the disk is gone")
        return real(*arguments, **options)

    monkeypatch.setattr(writing, "_one", failing)
    with pytest.raises(SaveError, match="disk is gone"):
        tk.convert(tmp_path / "old.pth", tmp_path / "m.safetensors", max_shard_size=8000)
    assert [path.name for path in tmp_path.iterdir()] == ["old.pth"]


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth")
    for target, options, said in (
        ("x.onnx", {}, "another ending"),
        ("x.pth", {"max_shard_size": "1GB"}, "only safetensors"),
        ("x.safetensors", {"max_shard_size": "much"}, "is no size"),
        ("old.pth", {}, "being converted"),
    ):
        with pytest.raises(SaveError, match=said):
            tk.convert(tmp_path / "old.pth", tmp_path / target, **options)
    assert torch.load(tmp_path / "old.pth")["a"].tolist() == [1, 1]


MEMORY = """
import json, sys, threading, time
import torchkeep as tk

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

peak, done = 0.0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

import torchkeep.converting
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
tk.convert(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
done.set(); thread.join()
print(json.dumps(peak - before))
"""


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("new.safetensors", {}),
        ("new.pth", {}),
        ("new.pth", {"dtype": "float16"}),
        ("new.safetensors", {"dtype": "float64"}),
        ("new.pth", {"for_torch": "torch==1.4"}),
    ],
)
def test_large_tensors_take_little_memory(tmp_path: Path, target: str, options: dict[str, Any]) -> None:
    """800 MB in two tensors, one of them lying the other way round; the file is a hole, so the disk hardly notices."""
    nbytes = 400_000_000
    header = {"a": {"dtype": "F32", "shape": [10_000, 10_000], "data_offsets": [0, nbytes]}}
    header["b"] = {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [nbytes, 2 * nbytes]}
    text = json.dumps(header).encode()
    with (tmp_path / "old.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + 2 * nbytes)
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path / "old.safetensors"), str(tmp_path / target)]
    done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300
    assert len(tk.open(tmp_path / target)) == 2


def test_tensors_without_values_are_tied_only_where_they_are_one(tmp_path: Path) -> None:
    one = torch.empty(2, 2, device="meta")
    torch.save({"a": one, "b": one, "c": torch.empty(2, 2, device="meta")}, tmp_path / "meta.pth")
    tk.convert(tmp_path / "meta.pth", tmp_path / "meta.safetensors")
    facts = tk.open(tmp_path / "meta.safetensors").facts
    assert facts.tied == {"b": "a"} and set(facts.empty) == {"a", "c"}
