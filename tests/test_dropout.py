"""Dropout is set and put in by surgery: recorded, done again, undone on failure, and what is frozen keeps its own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from architectures_surgery import ARCHITECTURES, Architecture, ResNet, ViT, images, sequential_cnn
from torchkeep.errors import SelectorError, SurgeryError
from torchkeep.surgery import history, insert_dropout, replay, set_dropout

every = pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
pytestmark = pytest.mark.usefixtures("one_thread")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Tower(nn.Module):
    """Attention, a stacked and a plain LSTM, and one dropout under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.1, batch_first=True)
        self.single = nn.GRU(4, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.drop = self.again = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.single(self.lstm(x)[0])[0])
        return self.head(self.again(self.drop(x)).mean(1))


def probabilities(model: nn.Module) -> dict[str, float]:
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)):
            found[path] = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else module.dropout
    return found


# Setting


def test_every_kind_of_dropout_is_set() -> None:
    model = Tower()
    change = set_dropout(model, 0.4)
    found = probabilities(model)
    assert found.pop("single") == 0.0  # one layer has nothing between layers
    assert set(found.values()) == {0.4}
    assert set(found) == {"lstm", "layer.self_attn", "layer.dropout", "layer.dropout1", "layer.dropout2", "drop"}
    assert (change.before, change.after) == ("p=0.1, p=0.2, p=0.3", "p=0.4")
    assert isinstance(model.lstm.dropout, float)
    model(torch.randn(2, 3, 4))


def test_it_acts_in_train_mode_and_not_in_eval() -> None:
    model, x = mlp(), torch.randn(64, 4)
    set_dropout(model, 0.9)
    hidden = nn.Sequential(*model[:3])
    with torch.no_grad():
        zeros = [(hidden.train(mode)(x) == 0).double().mean() for mode in (True, False)]
    assert zeros[0] > 0.85
    assert zeros[1] < 0.85


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("layer", {"layer.self_attn", "layer.dropout", "layer.dropout1", "layer.dropout2"}),
        ("again", {"drop"}),
        (["lstm", "re:dropout1$"], {"lstm", "layer.dropout1"}),
        ("* but layer, drop, again", {"lstm"}),
        ("first 1", {"lstm"}),
    ],
)
def test_a_selector_chooses(selector: Any, chosen: set[str]) -> None:
    model = Tower()
    before = probabilities(model)
    set_dropout(model, 0.7, selector)
    after = probabilities(model)
    assert {path for path in after if after[path] != before[path]} == chosen


@pytest.mark.parametrize(
    ("selector", "said"),
    [("head", "selects no dropout"), ("laier", "selects no dropout"), (["drop", "laier"], "'laier' matches nothing")],
)
def test_what_chooses_nothing_is_refused(selector: Any, said: str) -> None:
    model = Tower()
    before = probabilities(model)
    with pytest.raises(SelectorError, match=said):
        set_dropout(model, 0.7, selector)
    assert probabilities(model) == before
    assert history(model) == ()
    with pytest.raises(SelectorError, match=r"the model has no dropout\n.*insert_dropout"):
        set_dropout(nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, float("nan"), True, "0.5", None, float("inf")])
def test_what_is_no_probability_is_refused(p: Any) -> None:
    for verb in (set_dropout, insert_dropout):
        model = mlp()
        with pytest.raises(SurgeryError, match="from 0 to below 1"):
            verb(model, p)
        assert (history(model), repr(model)) == ((), repr(mlp()))


def test_what_is_frozen_keeps_its_own() -> None:
    model = Tower()
    tk.freeze(model, "layer")
    change = set_dropout(model, 0.5)
    found = probabilities(model)
    assert {path for path, p in found.items() if p == 0.2} == {path for path in found if path.startswith("layer.")}
    assert "frozen" in change.note
    assert model.lstm.dropout == 0.5
    with pytest.raises(SelectorError, match=r"all that 'layer' selects is frozen\n.*unfreeze"):
        set_dropout(model, 0.5, "layer")
    by_hand = Tower().requires_grad_(False)
    by_hand.lstm.requires_grad_(True)
    set_dropout(by_hand, 0.6)
    assert [path for path, p in probabilities(by_hand).items() if p == 0.6] == ["lstm", "drop"]


def test_what_is_so_already_is_left() -> None:
    model = mlp()
    change = set_dropout(model, 0.1)
    assert (change.changed, history(model)) == (False, ())
    assert set_dropout(model, 0).after == "p=0"


@every
def test_both_are_saved_and_done_again(arch: Architecture, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = arch.make(), arch.example()
    insert_dropout(model, 0.5, example=example)
    set_dropout(model, 0.35)
    assert str(history(model)[-1]).startswith("set_dropout (the model) p=0.35, modules=[")
    tk.save(model, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        fresh = arch.make()
        replay(fresh, source)
        assert repr(fresh) == repr(model)
        assert history(fresh) == history(model)
    assert tk.load_into(fresh, tmp_path / "a.safetensors").coverage == 1
    with torch.no_grad():
        assert torch.equal(fresh.eval()(example), model.eval()(example))


def test_what_was_frozen_then_keeps_its_own_in_a_replay_too() -> None:
    model = Tower()
    tk.freeze(model, "layer")
    set_dropout(model, 0.5)
    fresh, inside = Tower(), nn.ModuleDict({"net": Tower()})
    replay(fresh, model)
    assert probabilities(fresh) == probabilities(model)
    replay(inside, nn.ModuleDict({"net": model}))
    assert probabilities(inside["net"]) == probabilities(model)
    with pytest.raises(SurgeryError, match="no module 'lstm'"):
        replay(mlp(), model)
    lie = [{"verb": "set_dropout", "arguments": {"p": 0.5, "modules": ["0"]}}]
    with pytest.raises(SurgeryError, match="Linear, which has no dropout"):
        replay(mlp(), lie)
    worse = [{"verb": "set_dropout", "arguments": {"p": 7, "modules": ["2"]}}]
    with pytest.raises(SurgeryError, match="from 0 to below 1"):
        replay(mlp(), worse)


# Putting in


@every
def test_names_stay_and_the_output_in_eval_mode_too(arch: Architecture) -> None:
    torch.manual_seed(0)
    model, example = arch.make().eval(), arch.example()
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(example)
        change = insert_dropout(model, 0.5, example=example)
        assert torch.equal(model.eval()(example), before)
    renamed = [key for key in model.state_dict() if key not in keys]
    assert bool(renamed) == ("is an nn.Sequential now" in change.note)
    assert not renamed or "classifier.topic" in change.note  # a head outside any list; the record has it


def test_it_goes_before_the_head_and_behind_activations() -> None:
    model = mlp()
    change = insert_dropout(model, 0.5)
    assert list(model._modules) == ["0", "1", "2", "3", "4", "4_dropout", "5"]  # there is one behind the first
    assert (change.name, model[2].p, model[5].p) == ("4_dropout", 0.1, 0.5)
    again = insert_dropout(model, 0.5)
    assert not again.changed
    assert "set_dropout" in again.note
    assert len(history(model)) == 1


def test_behind_convolutions_channels_are_dropped() -> None:
    model = sequential_cnn()
    insert_dropout(model, 0.5)
    assert [type(one) for one in model if "Drop" in type(one).__name__] == [nn.Dropout2d, nn.Dropout]
    flat = nn.Sequential(nn.Conv1d(2, 4, 3), nn.SELU(), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1))
    insert_dropout(flat, 0.5)
    assert [type(one).__name__ for one in flat if "Drop" in type(one).__name__] == ["AlphaDropout", "Dropout1d"]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    insert_dropout(plain, 0.5)
    assert list(plain._modules) == ["0", "dropout", "1"]


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 3), nn.ReLU()
        self.fc, self.out = nn.Linear(18, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.relu(self.fc(self.relu(self.conv(x)).flatten(1))))


@pytest.mark.parametrize("example", [None, torch.randn(2, 1, 5, 5)], ids=["registration", "example"])
def test_an_activation_that_is_called_often_gets_the_plain_one(example: Any) -> None:
    model = Reused()
    change = insert_dropout(model, 0.5, example=example)
    assert type(model.relu.dropout) is nn.Dropout
    assert "'out' is an nn.Sequential now: what it was is 'out.main'" in change.note
    model.train()(torch.randn(2, 1, 5, 5))


def test_the_order_of_the_forward_counts_not_that_of_registration() -> None:
    with pytest.raises(SurgeryError, match=r"'layer3\.1\.bn2', taken for the head.*\n.*example="):
        insert_dropout(ResNet(), 0.5)
    model = ResNet()
    keys = list(model.state_dict())
    insert_dropout(model, 0.5, example=images())
    assert list(model.state_dict()) == keys
    assert type(model.avgpool[1]) is nn.Dropout
    with pytest.raises(SurgeryError, match="no hidden layer"):
        insert_dropout(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 0.5)


def test_it_goes_behind_what_is_named() -> None:
    model = ViT()
    change = insert_dropout(model, 0.2, after="blocks.*.mlp.1")
    assert change.name == "blocks.{0..2}.mlp.1_dropout"
    cnn = sequential_cnn()
    insert_dropout(cnn, 0.2, after=["1", "8"])
    assert [name for name in cnn._modules if "drop" in name] == ["1_dropout", "8_dropout"]
    assert [type(cnn._modules[f"{at}_dropout"]) for at in (1, 8)] == [nn.Dropout2d, nn.Dropout2d]
    fresh = sequential_cnn()
    replay(fresh, cnn)
    assert repr(fresh) == repr(cnn)
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    twice = nn.ModuleDict({"a": block, "b": block})
    insert_dropout(twice, 0.2, after="re:1$")
    assert list(block._modules) == ["0", "1", "1_dropout"]


def test_places_where_it_cannot_go_are_refused_and_the_model_is_whole() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8)
    with pytest.raises(SurgeryError, match="part of a TransformerEncoderLayer, which has dropout of its own"):
        insert_dropout(model, 0.5, after="linear1")
    listed = nn.ModuleDict({"all": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])})
    with pytest.raises(SurgeryError, match=r"nn\.ModuleList, whose members have numbers"):
        insert_dropout(listed, 0.5, after="all.1")
    with pytest.raises(SelectorError, match="'nothing' matches nothing"):
        insert_dropout(mlp(), 0.5, after="nothing")

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
            self.c = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.act(self.a(x))) * self.c.weight.sum())

    picky = Picky()
    before = repr(picky)
    with pytest.raises(SurgeryError, match="the model fails on the example"):
        insert_dropout(picky, 0.5, example=torch.randn(1, 4))
    assert (repr(picky), history(picky)) == (before, ())


def test_what_is_frozen_gets_none_unless_it_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tk.freeze(model, "first 2")
    tk.freeze(model, "1")
    change = insert_dropout(model, 0.5)
    assert [name for name in model._modules if "drop" in name] == ["3_dropout"]
    assert "none at '1': it is frozen" in change.note
    assert model.train()._modules["3_dropout"].training
    insert_dropout(model, 0.5, after="1")
    assert "1_dropout" in model._modules


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_seen_through(wrap: Any) -> None:
    model = mlp()
    wrapped = wrap(model)
    insert_dropout(wrapped, 0.5)
    set_dropout(wrapped, 0.25)
    assert [one.p for one in model if isinstance(one, nn.Dropout)] == [0.25, 0.25]


def test_odd_models() -> None:
    meta = mlp().to("meta")
    insert_dropout(meta, 0.5)
    assert set_dropout(meta, 0.2).changed
    half = mlp().bfloat16()
    insert_dropout(half, 0.5, example=torch.zeros(2, 4, dtype=torch.bfloat16))
    assert half.train()(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16
    alone = nn.Dropout(0.5)
    assert set_dropout(alone, 0.2).name == "(the model)"
    assert alone.p == 0.2
    again = nn.Dropout(0.5)
    replay(again, alone)
    assert again.p == 0.2
    named = nn.Sequential()
    for name, one in {"a b": nn.Linear(2, 2), "a b_dropout": nn.ReLU(), "out": nn.Linear(2, 2)}.items():
        named.add_module(name, one)
    insert_dropout(named, 0.5, after="re:^a b$")
    assert list(named._modules) == ["a b", "a b_dropout_", "a b_dropout", "out"]
