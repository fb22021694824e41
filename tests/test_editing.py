"""Editing: what comes out has the right names, the right bits, and what was known of the source where it stays true."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.core import pieces
from torchkeep.errors import EditError, LoadError, SaveError, SelectorError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize", "ignore:The PyTorch API of nested")


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def whole(ckpt: Any) -> dict[str, tuple[str, bytes]]:
    return {name: (str(tensor.spec), bits(tensor.load())) for name, tensor in ckpt.items()}


class Extra(nn.Module):
    """A layer with extra state, which holds a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.kept: Any = {"count": 3, "mask": torch.tensor([1.0, 2.0])}

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tk.save(TinyNet(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


# Names


def test_select_and_drop_part_a_model(saved: Path, tmp_path: Path) -> None:
    kept, left = tk.edit.select(saved, "* but head"), tk.edit.drop(saved, ["* but head"])
    assert set(left) == {"head.weight", "head.bias"} and not set(kept) & set(left)
    assert {**whole(kept), **whole(left)} == whole(tk.open(saved))
    assert set(tk.edit.select(saved, "last 1")) == set(left) and "conv.weight" in tk.edit.select(saved, "first 2")
    assert "edited" in str(kept) and tk.to_json(kept)["format"] == "edited"
    tk.save(kept, tmp_path / "kept.safetensors")
    again = tk.open(tmp_path / "kept.safetensors", verify=True)
    assert (
        whole(again) == whole(kept) and again["conv.weight"].requires_grad and again["conv.weight"].kind == "parameter"
    )
    assert not again["scale"].requires_grad and again["scale"].kind == "buffer"


def test_what_is_known_stays_where_it_is_true(tmp_path: Path) -> None:
    net = nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Linear(2, 2), nn.ReLU()), bn=nn.BatchNorm1d(2), fc=nn.Linear(2, 2))
    )
    tk.freeze(net, "* but fc")
    tk.save(net, tmp_path / "net.safetensors")
    part = tk.edit.select(tmp_path / "net.safetensors", ["body", "fc.weight"])
    tk.save(part, tmp_path / "part.safetensors")
    again = tk.open(tmp_path / "part.safetensors")
    for ckpt in (part, again):
        assert {module.path for module in ckpt.modules} == {"body", "body.0", "body.1"}  # fc and the root are torn
        assert ckpt.frozen.held == ("body", "body.0", "body.1") and ckpt.frozen.still == {
            "body.0.weight",
            "body.0.bias",
        }
        assert ckpt["fc.weight"].requires_grad and not ckpt["body.0.weight"].requires_grad
    moved = tk.edit.rename(tmp_path / "net.safetensors", {"body": "backbone.body"})
    assert {module.path for module in moved.modules} == {
        "backbone.body",
        "backbone.body.0",
        "backbone.body.1",
        "bn",
        "fc",
    }
    assert moved.frozen.still >= {"backbone.body.0.weight", "bn.weight"} and "backbone.body" in moved.frozen.held
    same = tk.edit.select(tmp_path / "net.safetensors", "*")
    assert same.kind == "module" and same.frozen == tk.open(tmp_path / "net.safetensors").frozen
    fresh = nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Linear(2, 2), nn.ReLU()), bn=nn.BatchNorm1d(2), fc=nn.Linear(2, 2))
    )
    tk.load_into(fresh, tk.edit.cast(tmp_path / "net.safetensors", "float64"))
    assert not fresh.body[0].weight.requires_grad and fresh.fc.weight.requires_grad


def test_extra_state_goes_with_its_module(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": Extra(), "b": nn.Linear(2, 2)})
    net["a"].kept["mask"] = torch.tensor([5.0, 6.0])
    tk.save(net, tmp_path / "net.safetensors")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for source in ("net.safetensors", "net.pth"):
        moved = tk.edit.rename(tmp_path / source, {"a": "x"})
        tk.save(moved, tmp_path / "moved.safetensors")
        target = nn.ModuleDict({"x": Extra(), "b": nn.Linear(2, 2)})
        tk.load_into(target, tmp_path / "moved.safetensors")
        assert target["x"].kept["mask"].tolist() == [5.0, 6.0] and torch.equal(target["x"].weight, net["a"].weight)
        tk.convert(tk.edit.drop(tmp_path / source, "b"), tmp_path / "a.pth")
        assert torch.load(tmp_path / "a.pth", weights_only=True)["a._extra_state"]["count"] == 3
        assert set(tk.edit.drop(tmp_path / source, "a._extra_state")) == {"a.weight", "b.weight", "b.bias"}
        averaged = tk.edit.average(tmp_path / source, tmp_path / source)
        tk.load_into(nn.ModuleDict({"a": Extra(), "b": nn.Linear(2, 2)}), averaged)
        assert any("extra state" in finding.message for finding in averaged.findings)


def test_names_are_mapped_once_by_the_longest_or_a_pattern(saved: Path) -> None:
    names = {
        "conv": "stem",
        "conv.bias": "bias",
        re.compile(r"^(fc|tied)\."): r"proj.\1.",
        r"re:^(?P<last>head)": r"\g<last>s",
    }
    moved = tk.edit.rename(saved, names)
    assert {"stem.weight", "bias", "proj.fc.weight", "proj.tied.weight", "heads.bias", "bn.weight"} <= set(moved)
    assert set(tk.edit.rename(tk.edit.rename(saved, {"": "model.net"}), {"model.net": ""})) == set(tk.open(saved))
    assert moved["proj.fc.weight"].identity == moved["proj.tied.weight"].identity
    with pytest.raises(EditError, match="both be called"):
        tk.edit.rename(saved, {"fc": "head"})
    with pytest.raises(EditError, match="no name"):
        tk.edit.rename(saved, {"scale": ""})
    with pytest.raises(SelectorError, match="renames nothing") as caught:
        tk.edit.rename(saved, {"cnv": "stem"})
    assert "conv" in caught.value.hint
    for wrong in ({"re:(": "x"}, {"re:conv": r"\3"}):
        with pytest.raises(SelectorError):
            tk.edit.rename(saved, wrong)


def test_typing_errors_name_what_is_near(saved: Path) -> None:
    for edit in (tk.edit.select, tk.edit.drop):
        with pytest.raises(SelectorError, match=r"'haed' matches nothing") as caught:
            edit(saved, ["conv", "haed"])
        assert "head" in caught.value.hint
    with pytest.raises(EditError, match="nothing would be left"):
        tk.edit.drop(saved, "*")
    with pytest.raises(SelectorError, match="selects nothing"):
        tk.edit.select(saved, "head but head")


def test_a_training_checkpoint_gives_its_model_and_says_so(tmp_path: Path) -> None:
    net = TinyNet()
    optimizer = torch.optim.Adam(net.parameters())
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "t.pth")
    kept = tk.edit.select(tmp_path / "t.pth", "head")
    assert set(kept) == {"head.weight", "head.bias"}
    report = tk.convert(kept, tmp_path / "head.pth")
    assert any("optimizer, epoch" in note for note in report.notes)
    assert list(torch.load(tmp_path / "head.pth")) == ["head.weight", "head.bias"]


# Ties and sharing


def test_ties_last_and_equal_tensors_of_a_run_do_not_become_ties(tmp_path: Path) -> None:
    net = TinyNet()
    for name in ("first", "second"):
        net.add_module(name, nn.BatchNorm1d(4))  # equal bit for bit, and two tensors: a run keeps their bytes once
    with tk.Run(tmp_path / "run") as run:
        for step in range(3):
            run.save(step, model=net)
            with torch.no_grad():
                net.conv.weight.add_(1)
    for ckpt in (tk.edit.average(tmp_path / "run"), tk.edit.select(tmp_path / "run", "*")):
        tk.save(ckpt, tmp_path / "out.safetensors")
        loaded = tk.load(tmp_path / "out.safetensors")
        assert loaded["fc.weight"].data_ptr() == loaded["tied.weight"].data_ptr()
        assert loaded["first.weight"].data_ptr() != loaded["second.weight"].data_ptr()
        assert isinstance(loaded["first.weight"], nn.Parameter) and not isinstance(
            loaded["bn.running_var"], nn.Parameter
        )


def test_a_snapshot_is_written_with_everything_in_it(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": Extra(), "b": nn.BatchNorm1d(2), "c": nn.BatchNorm1d(2)})
    tk.freeze(net, "c")
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=net)
    tk.save(run.open(), tmp_path / "out.safetensors")
    tk.convert(run.open(), tmp_path / "out.pth")
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == set(net.state_dict())
    target = nn.ModuleDict({"a": Extra(), "b": nn.BatchNorm1d(2), "c": nn.BatchNorm1d(2)})
    target["a"].kept = None
    tk.load_into(target, tmp_path / "out.safetensors")
    assert target["a"].kept["count"] == 3 and not target["c"].weight.requires_grad and target["b"].weight.requires_grad
    assert not target.train()["c"].training
    again = tk.open(tmp_path / "out.safetensors")
    assert again["b.weight"].identity != again["c.weight"].identity


def test_averages_of_runs_that_live_elsewhere(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    run = tk.Run(tmp_path / "nowhere", store=tk.memory_store())
    for step in range(3):
        nn.init.constant_(net.weight, float(step))
        run.save(step, model=net)
    assert float(tk.edit.average(run)["weight"].load()) == 1.0 and not (tmp_path / "nowhere").exists()


def test_a_model_takes_an_average_as_it_takes_a_file(saved: Path, tmp_path: Path) -> None:
    tk.save(TinyNet(), tmp_path / "b.safetensors")
    mean = tk.edit.average(saved, tmp_path / "b.safetensors")
    one, other = TinyNet(), TinyNet()
    tk.load_into(one, mean)
    tk.load_into(other, mean, assign=True)
    assert bits(one.conv.weight) == bits(other.conv.weight) == bits(mean["conv.weight"].load())
    assert tk.load_into(nn.DataParallel(TinyNet()), tk.edit.rename(mean, {"": "module"})).coverage == 1.0


def test_split_says_that_a_tie_is_torn_and_both_have_the_tensor(saved: Path) -> None:
    parts = tk.edit.split(saved, {"a": "fc", "b": "tied"}, rest="other")
    assert list(parts) == ["a", "b", "other"]
    assert bits(parts["a"]["fc.weight"].load()) == bits(parts["b"]["tied.weight"].load())
    assert any("tied.weight is tied" in finding.message for finding in parts["a"].findings)
    together = tk.edit.merge(*parts.values())
    assert whole(together) == whole(tk.open(saved))
    assert together["fc.weight"].identity == together["tied.weight"].identity


def test_split_wants_a_place_for_everything(saved: Path) -> None:
    with pytest.raises(EditError, match="in no part: scale, conv") as caught:
        tk.edit.split(saved, {"head": "head"})
    assert "rest=" in caught.value.hint and "bn.weight" in caught.value.names
    with pytest.raises(EditError, match=r"'head.bias' of .* for 'a' and for 'b'"):
        tk.edit.split(saved, {"a": "head", "b": "head.bias"}, rest="other")
    with pytest.raises(SelectorError, match="'nothing'"):
        tk.edit.split(saved, {"a": "nothing"}, rest="b")
    assert set(tk.edit.split(saved)) == {"conv", "bn", "fc", "tied", "head", "scale"}
    assert set(tk.edit.split(tk.edit.rename(saved, {"": "model"}))) == {"model.conv", "model.bn", "model.fc", "model.tied", "model.head", "model.scale"}  # fmt: skip


def test_merge_refuses_what_differs_and_names_it(tmp_path: Path) -> None:
    one = {"a": torch.ones(2), "nan": torch.tensor([float("nan")]), "z": torch.zeros(1)}
    torch.save(one, tmp_path / "one.pth")
    torch.save({"a": torch.ones(2), "b": torch.ones(1), "nan": one["nan"].clone()}, tmp_path / "same.pth")
    torch.save({"a": torch.zeros(2), "b": torch.ones(1), "z": -torch.zeros(1)}, tmp_path / "other.pth")
    assert set(tk.edit.merge(tmp_path / "one.pth", tmp_path / "same.pth")) == {"a", "nan", "z", "b"}
    with pytest.raises(EditError, match="2 names stand for different tensors") as caught:
        tk.edit.merge(tmp_path / "one.pth", tmp_path / "other.pth")
    assert set(caught.value.names) == {"a", "z"} and "prefer" in caught.value.hint
    for prefer, expected in (("first", 1.0), ("last", 0.0)):
        made = tk.edit.merge(tmp_path / "one.pth", tmp_path / "other.pth", prefer=prefer)
        assert made["a"].load().tolist() == [expected] * 2 and set(made) == {"a", "nan", "z", "b"}
    both = tk.edit.merge({"x": tmp_path / "one.pth", "": tmp_path / "other.pth"})
    assert {"x.a", "x.z", "a", "z"} <= set(both)
    for wrong in ((), ([],)):
        with pytest.raises((EditError, LoadError)):
            tk.edit.merge(*wrong)
    with pytest.raises(EditError, match="neither"):
        tk.edit.merge(tmp_path / "one.pth", prefer="best")


def test_merged_models_keep_what_is_known_of_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tk.save(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), tmp_path / f"{name}.safetensors")
    made = tk.edit.merge({name: tmp_path / f"{name}.safetensors" for name in ("a", "b")})
    tk.save(made, tmp_path / "ab.safetensors")
    again = tk.open(tmp_path / "ab.safetensors", verify=True)
    assert {module.path for module in again.modules} == {
        "a",
        "a.0",
        "a.1",
        "b",
        "b.0",
        "b.1",
    } and again.kind == "weights"
    target = nn.ModuleDict({name: nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for name in ("a", "b")})
    tk.load_into(target, again)
    assert bits(target["b"][0].weight) == bits(tk.open(tmp_path / "b.safetensors")["0.weight"].load())


# Averages


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_averages_are_those_of_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    given = [{"w": torch.randn(33, 7, dtype=wide).to(dtype), "e": torch.zeros(0, 3, dtype=dtype)} for _ in range(4)]
    for number, state in enumerate(given):
        torch.save(state, tmp_path / f"{number}.pth")
    paths = [tmp_path / f"{number}.pth" for number in range(4)]

    def real(tensor: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(tensor.to(wide)) if dtype.is_complex else tensor.to(wide)

    def reference(shares: list[float]) -> torch.Tensor:
        total = torch.zeros_like(real(given[0]["w"]))
        for state, share in zip(given, shares, strict=True):
            total.add_(real(state["w"]), alpha=share)
        rounded = torch.view_as_complex(total) if dtype.is_complex else total
        return rounded.to(dtype)

    made = tk.edit.average(*paths, weights=[4, 3, 2, 1])
    tk.save(made, tmp_path / "out.safetensors")
    out = tk.load(tmp_path / "out.safetensors")
    assert out["w"].dtype is dtype and out["e"].shape == (0, 3)
    assert bits(out["w"]) == bits(reference([0.4, 0.3, 0.2, 0.1]))
    assert bits(tk.edit.average(paths, decay=0.5)["w"].load()) == bits(reference([1 / 15, 2 / 15, 4 / 15, 8 / 15]))
    exact = [[complex(value) for value in state["w"].to(torch.complex128).reshape(-1).tolist()] for state in given]
    by_hand = [sum(column) / 4 for column in zip(*exact, strict=True)]  # not by torch at all
    plain = tk.edit.average(paths)["w"].load().to(torch.complex128).reshape(-1).tolist()
    coarse = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}.get(dtype) or torch.finfo(dtype).eps
    for value, wanted in zip(plain, by_hand, strict=True):
        assert abs(value - wanted) <= coarse * (abs(wanted) + 0.1)


def test_equal_ones_stay_what_they_are_bit_by_bit(tmp_path: Path) -> None:
    quiet = torch.tensor([0x7FC01234, 0x7F800001, 0x7F800000, -0x800000, 0x3DCCCCCD, -0x80000000], dtype=torch.int32)
    state = {
        "odd": quiet.view(torch.float32),
        "d": torch.randn(1000, dtype=torch.float64) * 1e300,
        "n": torch.arange(3),
    }
    torch.save(state, tmp_path / "a.pth")
    for count in (2, 3, 7):
        made = tk.edit.average([tmp_path / "a.pth"] * count)
        assert whole(made) == whole(tk.open(tmp_path / "a.pth"))
        assert made["odd"].identity != tk.open(tmp_path / "a.pth")["odd"].identity
    other = {**state, "odd": state["odd"].clone()}
    other["odd"][4] = 0.3
    torch.save(other, tmp_path / "b.pth")
    mixed = tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth")["odd"].load().view(torch.int32)
    assert torch.equal(mixed[[0, 1, 2, 3, 5]], quiet[[0, 1, 2, 3, 5]])
    assert abs(float(mixed.view(torch.float32)[4]) - 0.2) < 1e-7


def test_infinities_and_nans_are_honest(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    for name, values in (("a", [inf, inf, 1.0, nan]), ("b", [1.0, -inf, inf, 2.0])):
        torch.save({"w": torch.tensor(values)}, tmp_path / f"{name}.pth")
    out = tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth")["w"].load()
    assert out[0] == inf and out[1].isnan() and out[2] == inf and out[3].isnan()
    assert tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth", weights=[0, 1])["w"].load().tolist()[2] == inf
    alone = tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth", weights=[1, 0])["w"].load()
    assert alone[2] == 1.0


def test_whole_numbers_are_those_of_the_last(tmp_path: Path) -> None:
    for number in (1, 2):
        state = {"n": torch.tensor(number), "flag": torch.tensor([number > 1]), "w": torch.full((2,), float(number))}
        torch.save(state, tmp_path / f"{number}.pth")
    made = tk.edit.average(tmp_path / "1.pth", tmp_path / "2.pth")
    assert int(made["n"].load()) == 2 and bool(made["flag"].load()) and made["w"].load().tolist() == [1.5, 1.5]
    assert any("n, flag" in finding.message and "2.pth" in finding.message for finding in made.findings)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"w": torch.ones(2)}, "lacks 1: b"),
        ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "has 1 tensors"),
        ({"w": torch.ones(3), "b": torch.ones(1)}, r"'w' is float32\[3\]"),
        ({"w": torch.ones(2).half(), "b": torch.ones(1)}, r"'w' is float16\[2\]"),
        ({"w": torch.ones(2).to_sparse(), "b": torch.ones(1)}, "sparse_coo"),
    ],
)
def test_averages_of_different_models_are_refused(tmp_path: Path, other: Any, said: str) -> None:
    torch.save({"w": torch.ones(2), "b": torch.ones(1)}, tmp_path / "a.pth")
    torch.save(other, tmp_path / "b.pth")
    with pytest.raises(EditError, match=said) as caught:
        tk.edit.average(tmp_path / "b.pth", tmp_path / "a.pth")
    assert caught.value.names and caught.value.hint


def test_wrong_arguments_of_average(saved: Path) -> None:
    for options, said in (
        ({"weights": [1.0]}, "1 weights for 2"),
        ({"weights": [1.0, -1.0]}, "not above 0"),
        ({"weights": [float("nan"), 1]}, "not above 0"),
        ({"weights": [1, 1], "decay": 0.5}, "both say"),
        ({"decay": 1.5}, "not from 0 to 1"),
        ({"last": 3}, "snapshots of one run"),
    ):
        with pytest.raises(EditError, match=said):
            tk.edit.average(saved, saved, **options)
    with pytest.raises(EditError, match="nothing to average"):
        tk.edit.average()
    with pytest.raises(LoadError, match="int"):
        tk.edit.average(3)


def test_the_snapshots_of_a_run(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    with tk.Run(tmp_path / "run") as run:
        for step in range(6):
            nn.init.constant_(net.weight, float(step))
            run.log(val_loss=abs(step - 3.0))
            run.save(step, model=net)
    tk.Run(tmp_path / "run").tag("early", 2)

    def value(*sources: Any, **options: Any) -> float:
        return float(tk.edit.average(*sources, **options)["weight"].load())

    folder = tmp_path / "run"
    assert value(folder) == 2.5 and value(folder, last=2) == 4.5 and value(tk.Run(folder), steps=range(0, 6, 2)) == 2.0
    assert value(folder, sequences=[1, 3]) == 1.0 and value(
        f"{folder}@early", f"{folder}@best", f"{folder}@2"
    ) == pytest.approx(5 / 3)
    assert value(run.snapshots[0], run.snapshots[5]) == 2.5
    weights = [0.5 ** (5 - at) for at in range(6)]
    by_hand = sum(weight * at for at, weight in enumerate(weights)) / sum(weights)
    assert value(folder, decay=0.5) == pytest.approx(by_hand, rel=1e-7) and value(folder, decay=0) == 5.0
    with pytest.raises(LoadError, match="no snapshot 9"):
        tk.edit.average(folder, sequences=[9])
    with pytest.raises(LoadError, match="no such snapshots"):
        tk.edit.average(folder, steps=[77])
    with pytest.raises(LoadError, match="no snapshot 'nope'"):
        tk.edit.select(f"{folder}@nope", "*")


def test_an_abandoned_branch_is_not_averaged(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)

    def save(run: tk.Run, step: int, value: float) -> None:
        nn.init.constant_(net.weight, value)
        run.save(step, model=net)

    with tk.Run(tmp_path / "run") as run:
        save(run, 0, 1.0)
        save(run, 1, 100.0)
    (tmp_path / "run" / "snapshots" / "2.json").rename(tmp_path / "aside")
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=net)
        (tmp_path / "aside").rename(tmp_path / "run" / "snapshots" / "2.json")
        save(run, 1, 3.0)
    assert [one.parent for one in tk.Run(tmp_path / "run").snapshots] == [0, 1, 1]
    assert float(tk.edit.average(tmp_path / "run")["weight"].load()) == 2.0


# Any source, any target


def test_strides_casts_and_shards_are_looked_through(tmp_path: Path) -> None:
    base = torch.randn(60, 50)
    state = {"t": base.t(), "part": base[3:40:2, ::3], "flat": base, "c": torch.randn(9, dtype=torch.complex64).conj()}
    torch.save(state, tmp_path / "a.pth")
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)  # fmt: skip
    tk.convert(tmp_path / "b.pth", tmp_path / "c.safetensors", max_shard_size=9000)
    shards = tmp_path / "c.safetensors.index.json"
    for other in (tmp_path / "b.pth", shards):
        assert whole(tk.edit.average(tmp_path / "a.pth", other)) == {
            n: (s, b) for n, (s, b) in whole(tk.open(shards)).items()
        }
        assert tk.diff(tmp_path / "a.pth", other).equal
    twice = tk.edit.cast(tk.edit.cast(tmp_path / "a.pth", "bf16"), torch.float32)
    assert bits(twice["t"].load()) == bits(base.t().bfloat16().float())
    made = tk.edit.average(twice, tk.edit.cast(tmp_path / "a.pth", "float32"))
    assert torch.equal(made["part"].load(), ((base.bfloat16().double() + base.double()) / 2).float()[3:40:2, ::3])
    assert torch.equal(made["t"][5:7, 2], made["t"].load()[5:7, 2])
    tk.save(made, tmp_path / "m.safetensors", max_shard_size="9kB")
    assert tk.diff(tmp_path / "m.safetensors.index.json", made).equal


def test_blocks_smaller_than_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_CHUNK", 3)
    monkeypatch.setattr(pieces, "_ELEMENTS", 7)
    monkeypatch.setattr(pieces, "BLOCK", 64)
    monkeypatch.setattr("torchkeep.likeness._ELEMENTS", 5)
    a, b = torch.randn(3, 5, 4).transpose(0, 2), torch.randn(4, 5, 3)
    torch.save({"w": a}, tmp_path / "a.pth")
    torch.save({"w": b}, tmp_path / "b.pth")
    made = tk.edit.average(tmp_path / "a.pth", tmp_path / "b.pth")
    tk.save(made, tmp_path / "m.safetensors")
    expected = ((a.double() + b.double()) / 2).float()
    assert bits(tk.load(tmp_path / "m.safetensors")["w"]) == bits(expected)
    change = tk.diff(tmp_path / "a.pth", tmp_path / "b.pth").changes[0]
    assert change.relative == pytest.approx(float((b.double() - a.double()).norm() / a.double().norm()))


def test_files_of_every_kind_part_and_come_together(checkpoints: Path, tmp_path: Path) -> None:
    edited = 0
    for path in sorted(path for path in checkpoints.rglob("*") if path.is_file() and path.suffix != ".json")[::9]:
        try:
            ckpt = tk.open(path).model
        except tk.errors.TorchkeepError:
            continue  # a shard of a distributed checkpoint
        plain = [name for name, tensor in ckpt.items() if tensor.device != "meta" and name]
        if len(plain) < 2 or any("_extra_state" in name for name in plain):
            continue
        chosen = re.compile("|".join(rf"\A{re.escape(name)}\Z" for name in plain[::2]))
        parts = tk.edit.split(path, {"one": chosen}, rest="other")
        together = tk.edit.merge(*parts.values())
        assert set(together) == set(ckpt), path.name
        assert tk.diff(together, ckpt).equal, path.name
        tk.save(parts["one"], tmp_path / "one.safetensors")
        assert tk.diff(tk.edit.select(path, chosen), tmp_path / "one.safetensors").equal, path.name
        edited += 1
    assert edited > 15


def test_code_in_a_file_stays_data(evil: Path, tmp_path: Path) -> None:
    done = 0
    for path in sorted(evil.glob("exec_*.pth")):
        try:
            ckpt = tk.open(path)
        except tk.errors.TorchkeepError:
            continue
        dangers = [finding for finding in ckpt.findings if finding.severity == "danger"]
        if not ckpt.model or not dangers:
            continue
        made = tk.edit.select(path, re.compile(""))
        assert [finding for finding in made.findings if finding.severity == "danger"] == dangers
        tk.save(made, tmp_path / "out.safetensors")
        done += 1
    assert done


def test_a_source_is_never_written_over(saved: Path, tmp_path: Path) -> None:
    torch.save({name: tensor.load() for name, tensor in tk.open(saved).items()}, tmp_path / "b.pth")
    before = saved.read_bytes(), (tmp_path / "b.pth").read_bytes()
    mean = tk.edit.average(saved, tmp_path / "b.pth")
    for ckpt in (mean, tk.edit.cast(mean, "bf16"), tk.edit.select(saved, "conv")):
        with pytest.raises(SaveError, match="being converted"):
            tk.save(ckpt, saved)
    for ckpt in (mean, tk.edit.cast(mean, "bf16"), tk.edit.rename(tmp_path / "b.pth", {"fc": "x"})):
        with pytest.raises(SaveError, match="being converted"):
            tk.convert(ckpt, tmp_path / "b.pth")
    assert (saved.read_bytes(), (tmp_path / "b.pth").read_bytes()) == before
    with pytest.raises(SaveError, match="another ending"):
        tk.save(mean, tmp_path / "x.pth")


def test_cast_some_and_say_what_overflowed(tmp_path: Path) -> None:
    shared = torch.tensor([1e6, 1.0])
    torch.save({"a": shared, "same": shared, "b": torch.ones(2), "n": torch.arange(2)}, tmp_path / "a.pth")
    made = tk.edit.cast(tmp_path / "a.pth", "f16", only="a")
    assert [str(tensor.dtype) for tensor in made.values()] == [
        "torch.float16",
        "torch.float16",
        "torch.float32",
        "torch.int64",
    ]
    assert made["a"].identity == made["same"].identity
    report = tk.save(made, tmp_path / "a.safetensors")
    assert any("1 numbers became infinite as float16" in note for note in report.notes)
    with pytest.raises(SaveError, match="floating-point"):
        tk.edit.cast(tmp_path / "a.pth", "int8")


def test_meta_and_quantized_tensors(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 0, torch.qint8)
    torch.save({"m": torch.empty(3, device="meta"), "q": quantized, "w": torch.ones(2)}, tmp_path / "a.pth")
    made = tk.edit.drop(tmp_path / "a.pth", "w")
    tk.save(made, tmp_path / "b.safetensors")
    assert tk.open(tmp_path / "b.safetensors")["q"].layout == "quantized"
    assert tk.open(tmp_path / "b.safetensors")["m"].device == "meta"
    with pytest.raises(EditError, match="'q' is quantized"):
        tk.edit.average(tmp_path / "a.pth", tmp_path / "a.pth")
    assert tk.edit.average(*[tk.edit.drop(tmp_path / "a.pth", "q")] * 2)["m"].device == "meta"


# Properties


STATES = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "x y", "é", "0"]), min_size=1, max_size=3).map(".".join),
    st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.int16, torch.complex64]), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


def made_of(given: Any, path: Path, seed: int) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    state = {
        name: torch.from_numpy(generator.integers(0, 256, size * dtype.itemsize * 2, dtype=np.uint8)).view(dtype).reshape(size, 2) if size else torch.zeros(0, 2, dtype=dtype)
        for name, (dtype, size) in given.items()
    }  # fmt: skip
    if len(state) > 2:
        first, *_, last = state
        state[last] = state[first]
    torch.save(state, path)
    return state


@settings(max_examples=60, deadline=None)
@given(given=STATES, seed=st.integers(0, 1000), cut=st.integers(0, 7))
def test_parts_make_the_whole(tmp_path_factory: pytest.TempPathFactory, given: Any, seed: int, cut: int) -> None:
    path = tmp_path_factory.mktemp("p") / "a.pth"
    made_of(given, path, seed)
    ckpt = tk.open(path)
    names = list(ckpt)
    chosen = [re.compile(rf"\A{re.escape(name)}\Z") for name in names[: cut % len(names)]]
    if chosen:
        kept, left = tk.edit.select(path, chosen), tk.edit.drop(path, chosen)
        assert not set(kept) & set(left) and {**whole(kept), **whole(left)} == whole(ckpt)
    for parts in (tk.edit.split(path), tk.edit.split(path, {"one": chosen}, rest="two") if chosen else {"all": ckpt}):
        for name, part in parts.items():
            assert part, name
        together = tk.edit.merge(*parts.values())
        assert whole(together) == whole(ckpt)
    assert whole(tk.edit.average([path] * 3)) == whole(ckpt)
    assert tk.diff(path, tk.edit.rename(tk.edit.rename(path, {"": "p"}), {"p": ""})).equal


def test_where_tensors_came_from_and_surgery_go_along(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(model.state_dict(), tmp_path / "first.pth")
    tk.load_into(model, tmp_path / "first.pth")
    tk.surgery.resize_head(model, 5)
    tk.save(model, tmp_path / "a.safetensors")
    whole = tk.edit.cast(tmp_path / "a.safetensors", "bf16")
    tk.save(whole, tmp_path / "b.safetensors")
    tk.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    again = tk.open(tmp_path / "c.safetensors")
    assert [one.verb for one in again.surgery] == ["resize_head"]
    assert set(again.origins) == {"0.weight", "0.bias"} and again.origins["0.weight"].file.endswith("first.pth")
    part = tk.edit.rename(tk.edit.select(tmp_path / "a.safetensors", "0"), {"0.weight": "body.weight"})
    tk.save(part, tmp_path / "part.safetensors")
    found = tk.open(tmp_path / "part.safetensors")
    assert found.surgery == () and set(found.origins) == {"body.weight", "0.bias"}
    assert found.origins["body.weight"].name == "0.weight"
