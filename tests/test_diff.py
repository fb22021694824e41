"""What differs: every kind of change is seen, figures are those of float64, and nothing equal is read for nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.core import pieces
from torchkeep.core.diff_report import Change
from torchkeep.errors import LoadError, UnsavableError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize")

INF, NAN = float("inf"), float("nan")


def of(report: tk.DiffReport, name: str) -> Change:
    (change,) = (change for change in report.changes if change.name == name)
    return change


def test_every_kind_of_change_is_seen(tmp_path: Path) -> None:
    before = {"same": torch.ones(3), "moved": torch.tensor([3.0, 4.0]), "gone": torch.ones(1), "cast": torch.ones(2) / 3,
              "shape": torch.ones(2, 3), "bf": torch.ones(4, dtype=torch.bfloat16), "none": torch.zeros(0, 2)}  # fmt: skip
    after = {"same": torch.ones(3), "moved": torch.tensor([3.0, 4.5]), "new": torch.ones(1), "cast": (torch.ones(2) / 3).half(),
             "shape": torch.ones(3, 2), "bf": torch.ones(4, dtype=torch.bfloat16) * 1.5, "none": torch.zeros(0, 2)}  # fmt: skip
    torch.save(before, tmp_path / "a.pth")
    torch.save(after, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    report = tk.diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not report.equal and report.counts == {
        "removed": 1,
        "added": 1,
        "reshaped": 1,
        "recast": 1,
        "moved": 2,
        "equal": 2,
    }
    assert (report.added, report.removed, report.reshaped, report.recast) == (
        ("new",),
        ("gone",),
        ("shape",),
        ("cast",),
    )
    assert report.moved == ("moved", "bf")
    moved = of(report, "moved")
    assert moved.relative == pytest.approx(0.1) and moved.largest == 0.5 and moved.changed == 1
    assert moved.cosine == pytest.approx(27 / (5 * math.hypot(3, 4.5)))
    assert of(report, "bf").relative == pytest.approx(0.5) and of(report, "bf").cosine == pytest.approx(1)
    assert 0 < of(report, "cast").relative < 1e-3 and of(report, "cast").after == "float16[2]"
    text = str(report)
    assert "DIFFERENT" in text and "float32[2, 3] to float32[3, 2]" in text and "2 equal" in text
    assert {change.what for change in report.only_changed().changes} == set(report.counts) - {"equal"}
    json.dumps(tk.to_json(report), allow_nan=False)


def test_layers_fold_and_the_worst_of_them_is_shown() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    other = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for number in range(12):
        other[f"{number}.bias"] = other[f"{number}.bias"] + number + 1
    report = tk.diff(net, other)
    (row,) = (row for row in report.table().rows if row[1] == "moved")
    assert row[0] == "{0..11}.bias" and row[2] == "12" and row[4] == "12"


def test_equal_is_bit_for_bit() -> None:
    payloads = torch.tensor([0x7FC00001, 0x7F800000, 0], dtype=torch.int32)
    one = payloads.view(torch.float32)
    assert tk.diff({"w": one}, {"w": one.clone()}).equal
    for place, value in ((0, 0x7FC00002), (2, -0x80000000)):
        changed = payloads.clone()
        changed[place] = value
        report = tk.diff({"w": one}, {"w": changed.view(torch.float32)})
        assert report.moved == ("w",) and report.changes[0].changed == 1
        assert (
            report.changes[0].lost == (place == 0) and not tk.diff({"w": one}, {"w": changed.view(torch.float32)}).equal
        )


def test_what_is_not_finite_is_counted_and_spoils_no_figure() -> None:
    before = torch.tensor([NAN, INF, INF, 1.0, 3.0, 4.0])
    after = torch.tensor([NAN, INF, -INF, NAN, 3.0, 5.0])
    change = tk.diff({"w": before}, {"w": after}).changes[0]
    assert (change.changed, change.lost, change.nonfinite) == (3, 2, (3, 4))
    assert change.relative == pytest.approx(0.2) and change.largest == 1.0
    assert "2 elements are NaN or infinite" in str(tk.diff({"w": before}, {"w": after}))
    assert not tk.diff({"w": before}, {"w": after}, tolerance=10).equal
    gone = tk.diff({"w": torch.zeros(2)}, {"w": torch.ones(2)}).changes[0]
    assert gone.relative is None and gone.cosine is None and gone.largest == 1.0
    huge = tk.diff(
        {"w": torch.tensor([1e300], dtype=torch.float64)}, {"w": torch.tensor([2e300], dtype=torch.float64)}
    ).changes[0]
    assert huge.what == "moved" and huge.changed == 1 and huge.relative is None and huge.largest == 1e300
    other = tk.diff({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.complex64)}).changes[0]
    assert other.what == "recast" and other.relative is None
    recast = tk.diff({"w": before}, {"w": before.half()}).changes[0]
    assert recast.what == "recast" and recast.changed == recast.lost == 0


def test_tolerance_is_a_relative_norm(tmp_path: Path) -> None:
    one, other = {"w": torch.ones(100), "n": torch.arange(3)}, {"w": torch.ones(100) * 1.001, "n": torch.arange(3)}
    assert not tk.diff(one, other, tolerance=0.0009).equal
    near = tk.diff(one, other, tolerance=0.0011)
    assert near.equal and near.counts == {"close": 1, "equal": 1} and "equal within 0.0011" in str(near)
    assert near.only_changed().changes[0].what == "close"
    assert not tk.diff(one, {**other, "w": torch.ones(100).half()}, tolerance=1).equal  # another dtype is a difference
    for wrong in (-1, NAN):
        with pytest.raises(ValueError, match="relative norm"):
            tk.diff(one, other, tolerance=wrong)


def test_digests_are_believed_only_where_both_sides_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = TinyNet()
    tk.save(net, tmp_path / "a.safetensors")
    tk.save({"model": net.state_dict(), "epoch": 1}, tmp_path / "b.safetensors")
    torch.save(net.state_dict(), tmp_path / "c.pth")
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=net)
    count = len(net.state_dict())
    assert tk.diff(tmp_path / "a.safetensors", tmp_path / "run").by_digest == count
    damaged = bytearray((tmp_path / "a.safetensors").read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(damaged)
    believed = tk.diff(tmp_path / "a.safetensors", tmp_path / "bad.safetensors")
    assert believed.equal and "known by digests" in str(believed)
    assert not tk.diff(tmp_path / "a.safetensors", tmp_path / "bad.safetensors", trust_digests=False).equal
    assert tk.diff(tmp_path / "a.safetensors", tmp_path / "c.pth").by_digest == 0

    def read(*_: Any) -> Any:
        raise AssertionError("nothing has to be read")

    monkeypatch.setattr("torchkeep.likeness.elements", read)
    report = tk.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert report.equal and report.by_digest == count
    edited = tk.edit.select(tk.edit.rename(tmp_path / "a.safetensors", {"": "p"}), "p.conv")
    assert tk.diff(edited, tk.edit.rename(tk.edit.select(tmp_path / "b.safetensors", "conv"), {"": "p"})).by_digest == 2
    assert (
        tk.diff(tk.edit.merge(*tk.edit.split(tmp_path / "a.safetensors").values()), tmp_path / "run").by_digest == count
    )


def test_models_snapshots_and_state_dicts(tmp_path: Path) -> None:
    net = TinyNet()
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=net)
        nn.init.zeros_(net.head.bias)
        run.save(1, model=net)
    assert tk.diff(f"{tmp_path / 'run'}@1", net).moved == ("head.bias",)
    assert tk.diff(tmp_path / "run", net).equal and tk.diff(tk.Run(tmp_path / "run"), net.state_dict()).equal
    assert tk.diff(run.snapshots[0], run.snapshots[1]).counts["equal"] == len(net.state_dict()) - 1
    assert tk.diff(nn.DataParallel(net), net).equal
    meta = TinyNet().to("meta")
    report = tk.diff(net, meta)
    assert report.counts == {"unread": len(net.state_dict())} and not report.equal
    assert tk.diff(meta, TinyNet().to("meta")).equal
    with pytest.raises(LoadError, match="no weights"):
        tk.diff(nn.ReLU(), net)
    with pytest.raises(LoadError, match="no tensors: epoch"):
        tk.diff({"epoch": 1}, net)
    with pytest.raises(UnsavableError, match="sparse"):
        tk.diff({"w": torch.eye(2).to_sparse()}, net)


def test_training_checkpoints_by_their_model_or_whole(tmp_path: Path) -> None:
    net = TinyNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for name in ("a", "b"):
        sum(parameter.sum() for parameter in net.parameters()).backward()
        if name == "b":
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"{name}.pth")
    report = tk.diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert report.equal and any("whole=True" in note for note in report.notes)
    whole = tk.diff(tmp_path / "a.pth", tmp_path / "b.pth", whole=True)
    assert not whole.equal and all(name.startswith("optimizer.") for name in whole.moved)


def test_ties_prefixes_and_composites(tmp_path: Path) -> None:
    net = TinyNet()
    loose = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = tk.diff(net, loose)
    assert report.equal and any("tied.weight are tied" in note for note in report.notes)
    far = tk.diff(net, {f"module.{name}": tensor for name, tensor in loose.items()})
    assert len(far.added) == len(far.removed) == len(loose) and any("no name is in both" in note for note in far.notes)
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    made = {"s": dense.to_sparse(), "q": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)}
    torch.save(made, tmp_path / "a.pth")
    torch.save({**made, "q": torch.quantize_per_tensor(dense, 0.1, 1, torch.qint8)}, tmp_path / "b.pth")
    assert tk.diff(tmp_path / "a.pth", tmp_path / "a.pth").equal
    report = tk.diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (
        report.moved == ("q",)
        and of(report, "q").why == "compared bit for bit only"
        and of(report, "s").what == "equal"
    )


@pytest.mark.parametrize("dtype", sorted({row.torch for row in __import__("torchkeep.core.tensors", fromlist=["DTYPES"]).DTYPES.values()}, key=str), ids=str)  # fmt: skip
def test_every_dtype_is_compared(tmp_path: Path, dtype: torch.dtype) -> None:
    data = torch.arange(1, 1 + 16 * dtype.itemsize, dtype=torch.uint8) % 2 if dtype is torch.bool else torch.arange(16 * dtype.itemsize, dtype=torch.uint8)  # fmt: skip
    other = data.clone()
    other[0] ^= 1
    tk.save({"w": data.view(dtype)}, tmp_path / "a.safetensors")
    tk.save({"w": other.view(dtype)}, tmp_path / "b.safetensors")
    assert tk.diff(tmp_path / "a.safetensors", tmp_path / "a.safetensors", trust_digests=False).equal
    assert tk.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").moved == ("w",)


def test_files_of_old_torch_are_equal_to_themselves_in_another_format(checkpoints: Path, tmp_path: Path) -> None:
    compared = 0
    for path in sorted(path for path in checkpoints.rglob("*") if path.is_file() and path.suffix != ".json")[3::11]:
        try:
            ckpt = tk.open(path)
        except tk.errors.TorchkeepError:
            continue
        if not len(ckpt.model):
            continue
        tk.save(tk.edit.select(path, "*") if "" not in ckpt.model else ckpt, tmp_path / "new.safetensors")
        if "" not in ckpt.model:
            report = tk.diff(path, tmp_path / "new.safetensors")
            assert report.equal, (path.name, str(report))
            compared += 1
    assert compared > 10


@settings(max_examples=50, deadline=None)
@given(
    one=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    seed=st.integers(0, 100),
    block=st.sampled_from([1, 3, 1 << 20]),
)
def test_figures_are_those_of_float64(one: list[float], seed: int, block: int) -> None:
    before = torch.tensor(one)
    after = before + torch.randn(len(one), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchkeep.likeness._ELEMENTS", block)
        patch.setattr("torchkeep.likeness._CHUNK", max(1, block - 1))
        change = tk.diff({"w": before}, {"w": after}).changes[0]
    a, b = before.double(), after.double()
    if a.norm():
        assert change.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-9)
        assert change.cosine == pytest.approx(float(torch.dot(a, b) / a.norm() / b.norm()), rel=1e-6, abs=1e-9)
    assert change.largest == float((b - a).abs().max()) and change.changed == int((before != after).sum())


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is larger than a block, whatever the size of the tensors."""
    torch.save({"w": torch.zeros(5_000_000), "t": torch.zeros(2000, 2000).t()}, tmp_path / "a.pth")
    torch.save({"w": torch.ones(5_000_000), "t": torch.ones(2000, 2000)}, tmp_path / "b.pth")
    made: list[int] = []
    real = pieces._row
    monkeypatch.setattr(
        pieces, "_row", lambda blocks, dtype: (made.append(sum(map(len, blocks))), real(blocks, dtype))[1]
    )
    assert tk.diff(tmp_path / "a.pth", tmp_path / "b.pth").moved == ("w", "t")
    tk.save(tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth"), tmp_path / "m.safetensors")
    assert max(made) == 4 << 20 and len(made) > 20


def test_what_names_lack_is_said_as_the_rename_that_brings_them_together() -> None:
    bare = {"fc.weight": torch.ones(2), "fc.bias": torch.ones(1)}
    under = {f"net.{name}": tensor for name, tensor in bare.items()}
    assert any("tk.edit.rename(..., {'': 'net'}) of a state dict" in note for note in tk.diff(under, bare).notes)
    assert any("tk.edit.rename(..., {'net': ''}) of a state dict" in note for note in tk.diff(bare, under).notes)
    assert tk.diff(bare, {"other": torch.ones(3)}).notes == ("no name is in both",)
