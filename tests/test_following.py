"""The state of an optimizer follows the weights by name, whatever the checkpoint counts, and never by guessing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import OPTIMIZERS, TinyNet, state_bits, train_epoch
from torchkeep.errors import LoadError

ADAM = OPTIMIZERS["adam"]


def trained(make: Any = ADAM, classes: int = 3) -> tuple[TinyNet, Any]:
    torch.manual_seed(0)
    model = TinyNet(classes)
    optimizer = make(model.parameters())
    train_epoch(model, optimizer)
    return model, optimizer


def keep(path: Path, model: nn.Module, optimizer: Any, how: str) -> Any:
    """A checkpoint of both, as it is given to load_into."""
    state = {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    if how == "pth":
        torch.save(state, path / "train.pth")
        return path / "train.pth"
    if how == "module":
        torch.save({"model": model, "optimizer": optimizer}, path / "train.pth")
        return path / "train.pth"
    if how == "lightning":
        named = {f"net.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": named, "optimizer_states": [optimizer.state_dict()]}, path / "train.ckpt")
        return path / "train.ckpt"
    if how == "safetensors":
        tk.save(state, path / "train.safetensors")
        return path / "train.safetensors"
    with tk.Run(path / "run") as run:
        run.save(0, model=model, optimizer=optimizer)
    return path / "run"


def moments(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(other[key]))
        for key, value in one.items()
        if value is not None
    )


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *((how, "adam") for how in ("pth", "module", "lightning", "safetensors", "run")),
        *(("pth", kind) for kind in ("sgd", "adamw-foreach", "rmsprop")),
        ("run", "sgd"),
    ],
)
def test_training_goes_on_as_it_would_have(tmp_path: Path, how: str, kind: str) -> None:
    model, optimizer = trained(OPTIMIZERS[kind])
    source = keep(tmp_path, model, optimizer, how)
    fresh = TinyNet()
    other = OPTIMIZERS[kind](fresh.parameters())
    report = tk.load_into(fresh, source, optimizer=other)
    assert all(
        same(a, b) for a, b in zip(moments(model, optimizer).values(), moments(fresh, other).values(), strict=True)
    )
    assert any("goes on with the state of 9 parameters" in note for note in report.notes)
    for net, opt in ((model, optimizer), (fresh, other)):
        torch.manual_seed(5)
        train_epoch(net, opt)
    assert state_bits(model, optimizer) == state_bits(fresh, other)


def test_states_go_by_name_whatever_the_order_and_groups_are_now(tmp_path: Path) -> None:
    model, optimizer = trained()
    source = keep(tmp_path, model, optimizer, "pth")
    fresh = TinyNet()
    ordered = list(fresh.parameters())[::-1]
    other = torch.optim.Adam([{"params": ordered[:4], "lr": 0.5}, {"params": ordered[4:]}], lr=0.25, amsgrad=True)
    tk.load_into(nn.DataParallel(fresh), source, optimizer=other)
    before, after = moments(model, optimizer), moments(fresh, other)
    assert all(same(before[name], after[name]) for name in before)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.25], "options stay the caller's"


@pytest.mark.parametrize("how", ["pth", "run"])
def test_what_is_new_starts_fresh_and_what_is_adapted_goes_along(tmp_path: Path, how: str) -> None:
    model, optimizer = trained(classes=5)
    source = keep(tmp_path, model, optimizer, how)
    fresh = TinyNet(3)
    other = ADAM(fresh.parameters())
    report = tk.load_into(fresh, source, adapt={"head": tk.adapters.rows({4: 0, 1: 2})}, optimizer=other)
    before, after = moments(model, optimizer), moments(fresh, other)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after["head.weight"][key][[0, 2]], before["head.weight"][key][[4, 1]])
        assert not after["head.weight"][key][1].any() and before["head.weight"][key].any()
        assert torch.equal(after["conv.weight"][key], before["conv.weight"][key])
    assert any("state of 2 parameters was adapted" in note for note in report.notes)
    train_epoch(fresh, other)

    other = ADAM(fresh.parameters())
    report = tk.load_into(fresh, source, allow="head", optimizer=other)
    assert moments(fresh, other)["head.bias"] == {}
    assert any("2 parameters start without a state in the optimizer: head.weight" in note for note in report.notes)
    train_epoch(fresh, other)


def test_sums_and_interpolations_start_fresh_and_zero_channels_go_along(tmp_path: Path) -> None:
    old = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1))
    optimizer = torch.optim.Adam(old.parameters())
    old(torch.randn(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    source = keep(tmp_path, old, optimizer, "pth")
    for channels, kept in ((1, False), (4, True)):
        new = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Conv2d(2, 2, 1))
        other = torch.optim.Adam(new.parameters())
        tk.load_into(new, source, adapt={"0.weight": "channels"}, optimizer=other)
        state = moments(new, other)
        assert bool(state["0.weight"]) is kept and state["1.weight"] and state["0.bias"]
        if kept:
            assert torch.equal(state["0.weight"]["exp_avg"][:, :3], moments(old, optimizer)["0.weight"]["exp_avg"])
            assert not state["0.weight"]["exp_avg"][:, 3].any()
        new(torch.randn(1, channels, 4, 4)).sum().backward()
        other.step()


def test_names_in_the_groups_are_believed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyNet()
    named = list(model.named_parameters())
    optimizer = torch.optim.SGD([{"params": named[5:]}, {"params": named[:5][::-1]}], lr=0.1, momentum=0.9)
    train_epoch(model, optimizer)
    source = keep(tmp_path, model, optimizer, "pth")
    fresh = TinyNet()
    other = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    tk.load_into(fresh, source, optimizer=other)
    before, after = moments(model, optimizer), moments(fresh, other)
    assert all(same(before[name], after[name]) for name in before)


def test_a_part_of_a_model_takes_its_part_of_the_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(model.parameters())
    model["decoder"](model["encoder"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    for how in ("pth", "run"):
        source = keep(tmp_path, model, optimizer, how)
        tasks = nn.ModuleDict({"heads": nn.ModuleDict({"depth": nn.Linear(2, 2)}), "neck": nn.Linear(2, 2)})
        other = torch.optim.Adam(tasks.parameters())
        report = tk.load_into(tasks, {"heads.depth": (source, "decoder")}, allow="neck", optimizer=other)
        after = moments(tasks, other)
        assert same(after["heads.depth.weight"], moments(model, optimizer)["decoder.weight"])
        assert after["neck.weight"] == {} and any("start without a state" in note for note in report.notes)


def test_what_was_frozen_is_told_apart_where_the_file_says_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyNet()
    model.conv.requires_grad_(False)
    optimizer = ADAM([parameter for parameter in model.parameters() if parameter.requires_grad])
    train_epoch(model, optimizer)
    fresh = TinyNet()
    other = ADAM(fresh.parameters())
    tk.load_into(fresh, keep(tmp_path, model, optimizer, "module"), optimizer=other)
    after = moments(fresh, other)
    assert after["conv.weight"] == {} and same(after["head.weight"], moments(model, optimizer)["head.weight"])
    before = state_bits(fresh)
    with pytest.raises(LoadError, match="has 7 parameters and the model in it 9"):
        tk.load_into(fresh, keep(tmp_path, model, optimizer, "pth"), optimizer=other)
    assert state_bits(fresh) == before


def test_nothing_is_guessed_and_nothing_touched_before(tmp_path: Path) -> None:
    model, optimizer = trained()
    fresh = TinyNet()
    other = ADAM(fresh.parameters())
    before = state_bits(fresh, other)
    shuffled = copy.deepcopy(optimizer.state_dict())
    keys = list(shuffled["state"])
    shuffled["state"] = dict(zip(keys, [shuffled["state"][key] for key in keys[::-1]], strict=True))
    grouped = copy.deepcopy(optimizer.state_dict())
    whole = grouped["param_groups"][0]
    grouped["param_groups"] = [whole | {"params": whole["params"][:4]}, whole | {"params": whole["params"][4:]}]
    empty = ADAM(TinyNet().parameters()).state_dict()
    state = model.state_dict()
    for parts, words in (
        ({"state_dict": state, "optimizer": shuffled}, "has shape"),
        ({"state_dict": state, "optimizer": grouped}, "2 groups of numbered parameters"),
        ({"state_dict": state, "optimizer": empty}, "has no state of an optimizer"),
        ({"state_dict": state}, "has no state of an optimizer"),
        ({"state_dict": state, "a": optimizer.state_dict(), "b": optimizer.state_dict()}, "states of 2 optimizers"),
        (
            {"state_dict": state, "optimizer": trained(OPTIMIZERS["sgd"])[1].state_dict()},
            "of another kind of optimizer",
        ),
        ({"state_dict": state, "optimizer": trained(OPTIMIZERS["adamw"])[1].state_dict()}, "needs max_exp_avg_sq"),
    ):
        torch.save(parts, tmp_path / "train.pth")
        with pytest.raises(LoadError, match=words):
            tk.load_into(fresh, tmp_path / "train.pth", optimizer=other)
    with pytest.raises(LoadError, match="no state of an optimizer"):
        tk.load_into(fresh, model, optimizer=other)
    path = keep(tmp_path, model, optimizer, "pth")
    with pytest.raises(LoadError, match="are not in the model"):
        tk.load_into(fresh, path, optimizer=ADAM(TinyNet().parameters()))
    with pytest.raises(LoadError, match="no optimizer"):
        tk.load_into(fresh, path, optimizer=fresh)
    with torch.device("meta"):
        bare = TinyNet()
    with pytest.raises(LoadError, match="on the meta device"):
        tk.load_into(bare, path, optimizer=ADAM(bare.parameters()))
    assert state_bits(fresh, other) == before and bare.conv.weight.is_meta


def test_more_than_is_needed_does_no_harm(tmp_path: Path) -> None:
    model, optimizer = trained()  # amsgrad
    path = keep(tmp_path, model, optimizer, "pth")
    fresh = TinyNet()
    other = torch.optim.Adam(fresh.parameters())
    tk.load_into(fresh, path, optimizer=other)
    assert same(moments(fresh, other)["fc.bias"], moments(model, optimizer)["fc.bias"])
    train_epoch(fresh, other)


def test_tied_and_half_precision_parameters_follow(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = keep(tmp_path, model, optimizer, "pth")
    half = TinyNet().bfloat16()
    other = ADAM(half.parameters())
    tk.load_into(half, path, optimizer=other)
    assert moments(half, other)["fc.weight"]["exp_avg"].dtype is torch.bfloat16
    state = {name: value for name, value in model.state_dict().items() if name != "fc.weight"}
    torch.save({"state_dict": state, "optimizer": optimizer.state_dict()}, path)
    fresh = TinyNet()
    other = ADAM(fresh.parameters())
    with pytest.raises(LoadError, match="to which it should belong"):
        tk.load_into(fresh, path, optimizer=other)  # a file that lacks the first of two names counts otherwise


def test_sums_over_rows_are_not_taken_for_other_rows(tmp_path: Path) -> None:
    old, new = torch.nn.Linear(4, 6), torch.nn.Linear(4, 3)
    kept = torch.optim.Adafactor(old.parameters())
    old(torch.randn(2, 4)).sum().backward()
    kept.step()
    torch.save({"model": old.state_dict(), "optimizer": kept.state_dict()}, tmp_path / "a.pth")
    other = torch.optim.Adafactor(new.parameters())
    rows = tk.adapters.rows({0: 0, 1: 1})
    report = tk.load_into(new, tmp_path / "a.pth", adapt={"*": rows}, optimizer=other)
    assert "1 parameters start without a state in the optimizer: weight" in report.notes
    assert new.weight not in other.state and torch.equal(
        other.state[new.bias]["variance"][:2], kept.state[old.bias]["variance"][:2]
    )
    new(torch.randn(2, 4)).sum().backward()
    other.step()
