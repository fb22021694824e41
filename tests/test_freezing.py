"""Freezing: what is frozen stays as it is, whatever the training loop does; what is not goes on training."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import pytest
import torch
from torch import nn

from torchkeep.core.names import Selector
from torchkeep.errors import SelectorError
from torchkeep.freezing import freeze, held_modules, hold, is_held, restore_held, unfreeze
from torchkeep.freezing.holding import StayEval


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.bn = nn.BatchNorm2d(outside)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.bn(self.conv(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 4)
        self.body = nn.Sequential(Block(4, 4), Block(4, 4))
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(self.stem(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch() -> torch.Tensor:
    return torch.randn(6, 3, 5, 5) * 3 + 1


def train(model: nn.Module, steps: int = 30) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def grads(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_nothing_below_the_frozen_part_moves_in_thirty_batches(net: Net) -> None:
    freeze(net, "* but head")
    before = state(net)
    train(net)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_the_same_without_holding_moves_the_statistics(net: Net) -> None:
    for parameter in [*net.stem.parameters(), *net.body.parameters()]:
        parameter.requires_grad = False
    before = state(net)
    train(net, 2)
    assert not torch.equal(net.stem.bn.running_mean, before["stem.bn.running_mean"])


def test_dropout_of_the_frozen_part_is_off(net: Net) -> None:
    freeze(net, "stem")
    net.train()
    x = batch()
    assert torch.equal(net.stem(x), net.stem(x))
    assert not torch.equal(net.body(net.stem(x)), net.body(net.stem(x)))


def test_the_report(net: Net) -> None:
    net(batch()).sum().backward()
    report = freeze(net, "body.0")
    assert report.parameters == ("body.0.conv.weight", "body.0.conv.bias", "body.0.bn.weight", "body.0.bn.bias")
    assert report.modules == ("body.0", "body.0.conv", "body.0.bn", "body.0.drop")
    assert report.elements == 4 * 4 * 9 + 4 + 8
    assert report.total == sum(p.numel() for p in net.parameters()) == report.trainable + report.elements
    assert all(p.grad is None for p in net.body[0].parameters())
    assert net.head.weight.grad is not None
    text = str(report)
    assert text.startswith("froze 'body.0'")
    assert "held in eval" in text
    assert "body.0.conv.weight" in text


def test_gradients_flow_through_a_frozen_middle(net: Net) -> None:
    freeze(net, "body")
    before = state(net)
    train(net, 3)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("body."), name


@pytest.mark.parametrize("mode", [lambda m: m.train(), lambda m: m.train(True), lambda m: m.stem.train()])
def test_every_way_of_asking_for_training(net: Net, mode: object) -> None:
    freeze(net, "stem")
    mode(net)  # type: ignore[operator]
    assert [m.training for m in net.stem.modules()] == [False] * 4
    assert net.stem.train() is net.stem
    net.stem.bn.train()
    assert not net.stem.bn.training
    assert net.body.training


def test_type_and_state_dict_are_as_before(net: Net) -> None:
    keys, types = list(net.state_dict()), [type(m) for m in net.modules()]
    freeze(net, "*")
    assert list(net.state_dict()) == keys
    assert [type(m) for m in net.modules()] == types
    assert nn.Module.train is type(net).train
    Net().load_state_dict(net.state_dict())


def test_a_partly_frozen_module_keeps_training(net: Net) -> None:
    report = freeze(net, "stem.conv")
    assert report.modules == ("stem.conv",)
    net.train()
    assert (net.stem.training, net.stem.bn.training, net.stem.drop.training) == (True, True, True)
    assert freeze(net, "stem.bn.weight").modules == ()
    assert net.stem.bn.train().training
    assert freeze(net, "stem.bn.bias").modules == ("stem", "stem.bn", "stem.drop")


def test_what_merely_has_no_gradients_is_not_held(net: Net) -> None:
    net.stem.requires_grad_(False)
    assert freeze(net, "head").modules == ("head",)
    assert net.train().stem.training


def test_freezing_twice_and_overlapping(net: Net) -> None:
    first = freeze(net, "body")
    second = freeze(net, ["body", "body.0.bn"])
    assert (second.parameters, second.modules, second.elements) == ((), (), 0)
    assert second.unchanged == first.parameters
    assert "unchanged" in str(second)
    guards = [vars(m)["train"] for m in net.body.modules()]
    freeze(net, "body.0")
    assert guards == [vars(m)["train"] for m in net.body.modules()]
    unfreeze(net)
    assert held_modules(net) == []
    assert not any("train" in vars(m) for m in net.modules())


def test_freezing_puts_a_loosened_module_back_into_eval(net: Net) -> None:
    freeze(net, "stem")
    net.stem.bn.training = True
    freeze(net, "stem")
    assert not net.stem.bn.training


def test_deepcopy_has_its_own_guards(net: Net) -> None:
    freeze(net, "stem")
    twin = copy.deepcopy(net)
    unfreeze(net)
    twin.train()
    assert held_modules(twin) == ["stem", "stem.conv", "stem.bn", "stem.drop"]
    assert not twin.stem.bn.training
    assert twin.stem.train() is twin.stem
    assert net.train().stem.bn.training


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle_round_trip(net: Net, protocol: int) -> None:
    freeze(net, "* but head")
    twin = pickle.loads(pickle.dumps(net, protocol))
    before = state(twin)
    train(twin, 3)
    assert held_modules(twin) == held_modules(net)
    assert torch.equal(twin.stem.bn.running_var, before["stem.bn.running_var"])
    assert twin.stem.train() is twin.stem


def test_a_frozen_model_is_freed_without_the_garbage_collector(net: Net) -> None:
    model = Net()
    freeze(model, "*")
    gone = weakref.ref(model.stem)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_shallow_copy_whose_original_is_gone(net: Net) -> None:
    freeze(net, "stem")
    shallow = copy.copy(net.stem)
    del net.stem
    net.stem = shallow
    net.train()
    assert not net.stem.training
    assert not net.stem.bn.training
    assert held_modules(pickle.loads(pickle.dumps(net))) == held_modules(net)
    assert held_modules(copy.deepcopy(net).train()) == held_modules(net)


def test_data_parallel(net: Net) -> None:
    freeze(net, "stem")
    wrapped = nn.DataParallel(net)
    before = state(net.stem)
    train(wrapped, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.stem.state_dict().items())
    assert held_modules(wrapped) == held_modules(net)
    freeze(wrapped, "body.0")
    assert not wrapped.train().module.body[0].bn.training


def test_torch_compile(net: Net) -> None:
    freeze(net, "* but head")
    compiled = torch.compile(net, backend="eager")
    before = state(net)
    train(compiled, 3)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}
    unfreeze(compiled, "body")
    train(compiled, 1)
    assert not torch.equal(net.body[0].bn.running_mean, before["body.0.bn.running_mean"])
    assert torch.equal(net.stem.bn.running_mean, before["stem.bn.running_mean"])


def test_unfreeze_restores(net: Net) -> None:
    freeze(net, "* but head")
    net.train()
    report = unfreeze(net, "body.1")
    assert report.parameters == tuple(f"body.1.{n}" for n in ("conv.weight", "conv.bias", "bn.weight", "bn.bias"))
    assert report.modules == ("body", "body.1", "body.1.conv", "body.1.bn", "body.1.drop")
    assert str(report).startswith("unfroze 'body.1'")
    assert "released" in str(report)
    assert net.body.training
    assert net.body[1].drop.training
    assert not net.body[0].training
    assert not net.norm.training
    assert unfreeze(net).modules[0] == "stem"
    assert held_modules(net) == []
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_unfreeze_in_an_eval_model_stays_in_eval(net: Net) -> None:
    freeze(net, "stem")
    net.eval()
    unfreeze(net)
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())


def test_a_wholly_frozen_model_remembers_what_it_was_asked_for(net: Net) -> None:
    net.eval()
    assert freeze(net, "*").modules[0] == ""
    assert "(the whole model)" in str(freeze(Net(), "*"))
    net.train()
    assert not net.training
    assert unfreeze(net, "head").modules == ("", "head")
    assert net.training
    assert net.head.training
    assert not net.stem.training


def test_a_submodule_may_be_frozen_on_its_own(net: Net) -> None:
    freeze(net.body, "*")
    net.train()
    assert held_modules(net)[0] == "body"
    unfreeze(net.body)
    assert net.body.training
    assert net.body[0].bn.training


def test_unfreeze_by_parameters_releases_what_was_held_along(net: Net) -> None:
    freeze(net, r"re:^stem\..*(weight|bias)$")
    assert is_held(net.stem.drop)
    unfreeze(net, "stem.conv")
    assert is_held(net.stem.drop)
    unfreeze(net, "stem.bn.*")
    assert not is_held(net.stem.drop)


def test_what_lies_in_a_frozen_module_cannot_be_released_alone(net: Net) -> None:
    freeze(net, "stem")
    assert unfreeze(net, "stem.drop").modules == ()
    assert is_held(net.stem.drop)


def test_modules_without_parameters_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(2, 2))
    assert freeze(model, "1").modules == ("1", "1.0", "1.1")
    assert not model.train()[1][0].training
    assert unfreeze(model, "2").modules == ()
    assert unfreeze(model, "1").modules == ("1", "1.0", "1.1")
    assert model[1][0].training


@pytest.mark.parametrize(
    ("selection", "frozen"),
    [
        ("stem", "stem"),
        ("stem.*", "stem"),
        ("first 1", "stem"),
        ("first 2", "stem body"),
        ("last 1", "head"),
        ("first 2 but body.1", "stem body.0"),
        ("* but head", "stem body"),
        ("* but head, body", "stem"),
        (r"re:^(stem|head)\.", "stem head"),
        (re.compile("^body"), "body"),
        (["stem", "last 1"], "stem head"),
        (("stem", Selector("head")), "stem head"),
        (Selector(["head"]), "head"),
        ("*.bn", "stem.bn body.0.bn body.1.bn"),
        ("body.?", "body"),
    ],
)
def test_selectors(net: Net, selection: object, frozen: str) -> None:
    freeze(net, selection)
    expected = [n for n, _ in net.named_parameters() if not any(n.startswith(f + ".") for f in frozen.split())]
    assert grads(net) == expected
    assert all(is_held(net.get_submodule(path)) for path in frozen.split())


def test_normalisation_may_be_left_out_by_its_name(net: Net) -> None:
    freeze(net, "stem but *.bn")
    assert grads(net)[:2] == ["stem.bn.weight", "stem.bn.bias"]
    assert net.train().stem.bn.training


def test_blocks_are_seen_through_wrappers() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))

    model = nn.ModuleDict({"inner": Wrapper()})
    freeze(model, "first 2")
    assert grads(model) == ["inner.layers.3.weight", "inner.layers.3.bias"]
    lone = nn.ModuleList([nn.Linear(2, 2)])
    freeze(lone, "last 1")
    assert grads(lone) == []
    single = nn.Linear(2, 2)
    freeze(single, "first 1")
    assert held_modules(single) == [""]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("heads", "nearest names are 'head'"),
        ("bdoy.*", "'body'"),
        ("first 0", "selects no parameter"),
        ("head but head", "selects no parameter"),
        ([], "selects no parameter"),
        ("stem.bn.running_mean", "buffers"),
        (r"re:^stem\.bn$", "select 'stem.bn' by name"),
        ("re:(", "not a regular expression"),
        ("", "not a selector"),
        (3, "not a selector"),
        ([None], "not a selector"),
    ],
)
def test_errors_name_the_nearest_and_change_nothing(net: Net, selection: object, message: str) -> None:
    for action in (freeze, unfreeze):
        with pytest.raises(SelectorError, match=re.escape(message)):
            action(net, selection)
    assert len(grads(net)) == 14
    assert held_modules(net) == []


def test_an_empty_model_says_so() -> None:
    with pytest.raises(SelectorError, match="the model is empty"):
        freeze(nn.Identity(), "head")
    assert freeze(nn.Identity(), "*").modules == ("",)


def test_tied_parameters_are_frozen_under_all_names() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "mid": nn.Linear(3, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    report = freeze(model, "head")
    assert report.parameters == ("embed.weight",)
    assert report.modules == ("embed", "head")
    assert report.shared == (("embed.weight", ("head.weight",)),)
    assert "embed.weight is also known as head.weight" in str(report)
    assert report.total == 15 + 12
    assert unfreeze(model, "embed").modules == ("embed", "head")


def test_shared_modules() -> None:
    shared = Block(3, 3)
    model = nn.Sequential(shared, nn.Linear(2, 2), shared)
    report = freeze(model, "2")
    assert report.modules == ("0", "0.conv", "0.bn", "0.drop")
    assert report.shared == (("0", ("2",)),)
    assert held_modules(model) == ["0", "0.conv", "0.bn", "0.drop"]
    unfreeze(model, "2")
    assert held_modules(model) == []


def test_integer_parameters_are_left_alone_and_listed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].table = nn.Parameter(torch.arange(4), requires_grad=False)
    assert freeze(model, "1").modules == ("1",)
    report = unfreeze(model, "1")
    assert (report.parameters, report.skipped, report.modules) == ((), ("1.table",), ("1",))
    assert "1.table cannot require gradients" in str(report)
    assert not model[1].table.requires_grad


def test_complex_lazy_and_meta_parameters() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.BatchNorm1d(2))
    model.append(nn.LazyLinear(3))
    report = freeze(model, "*")
    assert (len(report.parameters), report.total) == (6, 10)
    assert unfreeze(model).trainable == 10


def test_attention_and_parametrized_layers() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    freeze(model, "0")
    x = torch.randn(3, 2, 4)
    model.train()
    assert torch.equal(model[0](x), model[0](x))
    freeze(model, "1.*")
    assert held_modules(model)[0] == ""
    twin = copy.deepcopy(model)
    assert held_modules(twin) == held_modules(model)


def test_a_class_with_its_own_train() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.asked: list[bool] = []

        def train(self, mode: bool = True) -> Stubborn:
            super().train(mode)
            self.bn.eval()
            self.asked.append(mode)
            return self

    model = nn.Sequential(Stubborn(), nn.Linear(2, 2))
    freeze(model, "0")
    model.train()
    assert model[0].asked == [False, False]
    unfreeze(model)
    assert model[0].training
    assert not model[0].bn.training


def test_hold_and_restore(net: Net) -> None:
    freeze(net, "* but head")
    saved = held_modules(net)
    fresh = Net()
    restore_held(fresh, saved)
    assert held_modules(fresh) == saved
    assert len(grads(fresh)) == 14
    assert not fresh.train().stem.bn.training
    restore_held(fresh, ["stem.bn"])
    assert held_modules(fresh) == ["stem.bn"]
    assert fresh.body[1].drop.training
    assert hold(fresh, iter(["head", "stem.bn"])) == ["head"]
    restore_held(fresh, [])
    assert held_modules(fresh) == []
    assert all(m.training for m in fresh.modules())


def test_restore_may_release_inside_what_stays_held(net: Net) -> None:
    freeze(net, "stem")
    restore_held(net, ["stem"])
    assert held_modules(net) == ["stem"]
    assert not net.train().stem.bn.training
    restore_held(net, [""])
    assert not net.train().head.training
    restore_held(net, [])
    assert net.training


def test_unknown_paths_are_refused_before_anything_changes(net: Net) -> None:
    freeze(net, "stem")
    before = held_modules(net)
    for action in (hold, restore_held):
        with pytest.raises(SelectorError, match=r"no module 'haed'.*\n.*'head'"):
            action(net, ["body", "haed"])
    assert held_modules(net) == before


def test_the_guard_is_a_plain_callable(net: Net) -> None:
    freeze(net, "stem")
    guard = vars(net.stem)["train"]
    assert isinstance(guard, StayEval)
    assert not isinstance(guard, nn.Module)
    assert guard.wanted
    assert guard(False) is net.stem
    assert not guard.wanted


@pytest.mark.parametrize(
    "selection", ["* but haed", "0, typo", ["0", "typo"], "* but 1, typo", "first 99", "0 but typo.*"]
)
def test_every_part_of_a_selection_must_match_something(selection: object) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(SelectorError, match="matches nothing"):
        freeze(model, selection)
    assert all(parameter.requires_grad for parameter in model.parameters())
