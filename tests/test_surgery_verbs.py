"""Surgery on networks with the structure of real ones: what it changes, what it leaves, and that failing leaves all."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from architectures_surgery import ARCHITECTURES, Architecture, LanguageModel, ResNet, ViT, images, sequential_cnn
from torchkeep.errors import SelectorError, SurgeryError
from torchkeep.freezing import held_modules
from torchkeep.surgery import (
    adapt_input,
    extract_features,
    head_of,
    history,
    insert,
    reinitialise,
    remove,
    replace,
    resize_head,
    stem_of,
    truncate,
)

removable = pytest.mark.parametrize(
    "arch",
    [arch for arch in ARCHITECTURES.values() if arch.middle],
    ids=[k for k, a in ARCHITECTURES.items() if a.middle],
)
every = pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
CNN = ARCHITECTURES["cnn"]


@pytest.fixture(autouse=True)
def seeded(one_thread: None) -> None:
    torch.manual_seed(0)


def made(arch: Architecture) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return arch.make(), arch.example()


def output(model: nn.Module, example: Any) -> Any:
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        return copied(example)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def picture(model: nn.Module) -> list[Any]:
    """All that makes up a model, to see whether anything of it has changed: objects, values, modes, hooks, records."""
    seen: list[Any] = [repr(model), history(model)]
    for path, module in model.named_modules(remove_duplicate=False):
        plain = {key: id(value) for key, value in vars(module).items() if not isinstance(value, (bool, int, float))}
        hooks = {key: list(value) for key, value in vars(module).items() if "hook" in key and hasattr(value, "keys")}
        seen.append((path, id(module), type(module), module.training, plain, hooks))
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        seen.append((name, id(tensor), bits(tensor), tensor.requires_grad))
    return seen


def generators() -> tuple[Any, ...]:
    state = np.random.get_state()
    return bits(torch.get_rng_state()), random.getstate(), state[1].tobytes(), state[2]


# Head and stem


@every
def test_head_and_stem_are_found_by_what_is_called_and_nothing_is_disturbed(arch: Architecture) -> None:
    model, example = made(arch)
    model.train()
    before, drawn = picture(model), generators()
    assert (stem_of(model, example), head_of(model, example)) == (arch.stem, arch.head)
    assert picture(model) == before
    assert generators() == drawn


def test_without_an_example_registration_decides() -> None:
    model = ResNet()
    assert (stem_of(model), head_of(model)) == ("fc", "layer3.1.bn2")
    assert head_of(model, images()) == "fc"


class Forgetful(nn.Module):
    """Draws numbers, counts, and replaces and writes its buffers in every forward, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.embed = nn.Embedding(4, 2, max_norm=0.1)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x
        self.seen += 1
        self.last = self.last + torch.rand(1)
        random.random()
        np.random.rand()
        return self.fc(x + self.embed(torch.zeros(len(x), dtype=torch.long)))


def test_a_dry_forward_leaves_buffers_counters_and_generators() -> None:
    model = Forgetful().train()
    model.fc.eval()
    before, drawn = picture(model), generators()
    assert head_of(model, torch.ones(2, 2)) == "fc"
    assert resize_head(model, 3, name="fc", example=torch.ones(2, 2)).changed is False
    assert picture(model) == before
    assert generators() == drawn
    assert not hasattr(model, "cache")
    assert model.calls == 0


def test_examples_are_tensors_tuples_or_keywords_and_stay_as_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.first(self.second(a.add_(1)) + b)

    model, zero = Two(), torch.zeros(1, 2)
    assert head_of(model, (zero, zero)) == "first"
    assert head_of(model, {"a": zero, "b": zero}) == "first"
    assert not zero.any()
    with pytest.raises(SurgeryError, match=r"the model fails on the example: TypeError.*\n.*one input of the model"):
        head_of(model, zero)


def test_models_that_write_their_parameters_are_found_out() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.fc.bias.add_(1)
            return self.fc(x)

    with pytest.raises(SurgeryError, match=r"changes fc\.bias in place"):
        head_of(Writing(), torch.zeros(1, 2))
    with pytest.raises(SurgeryError, match="have no shape yet"):
        head_of(nn.Sequential(nn.LazyLinear(2)), torch.zeros(1, 2))
    with pytest.raises(SurgeryError, match="no module that owns parameters"):
        head_of(ModuleOnly(), torch.zeros(1, 2))


class ModuleOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fc.weight)


# Sizes


@every
def test_heads_are_resized_where_the_data_leave(arch: Architecture) -> None:
    model, example = made(arch)
    before = picture(model)
    if arch.tied:
        with pytest.raises(SurgeryError, match=r"the tied parameter 'embed\.weight'"):
            resize_head(model, 7, example=example)
        assert picture(model) == before
        return
    change = resize_head(model, 7, example=example)
    assert (change.name, output(model, example).shape[-1]) == (arch.head, 7)
    old = "1000" if "efficient" in str(type(model)).lower() else "10"
    assert change.check == f"float32[2, {old}] -> float32[2, 7]"
    assert f"output {change.check}" in str(change)


@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet", "vit", "efficientnet"])
@pytest.mark.parametrize("channels", [1, 5])
def test_stems_are_adapted_where_the_data_enter(name: str, channels: int) -> None:
    arch = ARCHITECTURES[name]
    model, example = made(arch)
    grey = example[:, :1]
    wanted = output(model, grey.repeat(1, 3, 1, 1) if channels == 1 else example)
    change = adapt_input(model, channels, example=example)
    assert change.name == arch.stem
    assert "different by" in change.check
    torch.testing.assert_close(output(model, grey if channels == 1 else torch.randn(2, 5, 32, 32).copy_(
        torch.cat([example, torch.randn(2, 2, 32, 32)], 1))), wanted, rtol=1e-3, atol=1e-4)  # fmt: skip


def test_an_example_without_the_channels_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 1))
    with pytest.raises(SurgeryError, match="no tensor with 3 channels"):
        adapt_input(nn.Sequential(nn.Unflatten(1, (3, 5)), *model), 1, example=torch.zeros(2, 15))


# Replacing


@every
def test_a_layer_is_replaced_by_keywords(arch: Architecture) -> None:
    model, example = made(arch)
    before = picture(model)
    if arch.tied:
        with pytest.raises(SurgeryError, match="tied parameter"):
            replace(model, arch.head, {"out_features": 7}, example=example)
        assert picture(model) == before
        shared = model.embed.weight
        replace(model, arch.head, {"bias": True}, example=example)
        assert model.head.weight is shared is model.embed.weight
        assert model.head.bias is not None
        return
    old = model.get_submodule(arch.head)
    bias = old.bias
    change = replace(model, arch.head, {"out_features": 7, "bias": False}, example=example)
    assert change.note == "fresh values: weight"
    assert bias is not None
    assert output(model, example).shape[-1] == 7
    assert list(model.get_submodule(arch.head)._parameters.items())[1] == ("bias", None)


@every
def test_a_layer_is_replaced_by_a_module(arch: Architecture) -> None:
    model, example = made(arch)
    model = model.double()
    inputs = model.get_submodule(arch.head).in_features
    example = example.double() if example.is_floating_point() else example
    new = nn.Sequential(nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, 4))
    change = replace(model, arch.head, new, example=example)
    assert model.get_submodule(arch.head) is new
    assert output(model, example).shape[-1] == 4
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert ("the tie with 'embed.weight' is gone" in change.note) == arch.tied


@every
def test_what_does_not_fit_is_refused_and_nothing_has_changed(arch: Architecture) -> None:
    model, example = made(arch)
    model.get_submodule(arch.essential).register_forward_hook(lambda *_: None)
    before, drawn = picture(model), generators()
    attempts: list[Callable[[], Any]] = [
        lambda: replace(model, arch.essential, nn.Linear(3, 3), example=example),
        lambda: replace(model, arch.head, {"in_features": 3}, example=example),
        lambda: replace(model, arch.head, {"outputs": 3}),
        lambda: replace(model, arch.head, "Linear"),  # type: ignore[arg-type]
        lambda: replace(model, arch.head + "x", nn.Identity()),
        lambda: replace(model, arch.head, {"out_features": -1}),
        lambda: replace(model, "", nn.Identity()),
        lambda: replace(model, arch.head, model),
        lambda: remove(model, arch.essential, example=example),
        lambda: remove(model, "nowhere"),
        lambda: insert(model, nn.Linear(999, 3), after=arch.head, example=example),
        lambda: insert(model, nn.Identity()),
        lambda: insert(model, nn.Identity(), after=arch.head, before=arch.head),
        lambda: insert(model, nn.Identity(), after=arch.head, name="a.b"),
        lambda: insert(model, "ReLU", after=arch.head),  # type: ignore[arg-type]
        lambda: truncate(model, "nowhere", example=example),
        lambda: truncate(model, arch.cut, example="no input"),
        lambda: extract_features(model, ["nowhere"]),
        lambda: extract_features(model, []),
        lambda: reinitialise(model, arch.head, "kaiming"),
        lambda: reinitialise(model, arch.head, "normal_", mode="fan_in"),
        lambda: reinitialise(model, arch.head, std=1.0),
        lambda: reinitialise(model, arch.head, example="no input"),
        lambda: resize_head(model, 7, name=arch.essential + "x", example=example),
        lambda: adapt_input(model, 2, example=example),
    ]
    for attempt in attempts:
        drawn = generators()
        with pytest.raises(SurgeryError):
            attempt()
        assert picture(model) == before
        assert history(model) == ()
    assert generators() == drawn


def test_an_interruption_leaves_the_model_too() -> None:
    model, example = made(CNN)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    model.train()
    model[3].register_forward_hook(interrupt)
    before, drawn = picture(model), generators()
    with pytest.raises(KeyboardInterrupt):
        remove(model, "6", example=example)
    assert calls == [1, 1, 1]
    assert picture(model) == before
    assert generators() == drawn


def test_messages_name_what_to_do() -> None:
    model, example = made(ARCHITECTURES["resnet"])
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: replace(model, "layer4", nn.Identity()), "no module 'layer4'\n.*nearest are 'layer"),
        (lambda: replace(model, "fc", {"out_feature": 3}), "Linear takes no 'out_feature'\n.*'out_features'"),
        (lambda: replace(model, "layer1.0", {"stride": 3}), "a BasicBlock, whose constructor torchkeep does not know"),
        (lambda: remove(model, "layer3"), "may give another shape than it takes\n.*pass example="),
        (lambda: remove(model, "fc"), "takes 32 features and gives 10"),
        (lambda: remove(model, "conv1"), "takes 3 channels and gives 8"),
        (lambda: remove(model, "layer3", example=example), r"takes float32\[2, 16, 4, 4\] and gives float32\[2, 32, "),
        (lambda: truncate(model, "layer2.0.conv1"), "nothing says in which order"),
        (lambda: truncate(model, "layer2.0.conv1", example=example), "something gets past it, as in a residual"),
        (lambda: truncate(model, "layer2.0.relu", example=example), "called 2 times"),
        (lambda: insert(model, nn.Identity(), after="conv1", name="main"), "'main' is taken"),
        (lambda: reinitialise(model, "fc", "kaiming_norm"), "no scheme 'kaiming_norm'\n.*kaiming_normal_"),
    ]
    before = picture(model)
    for attempt, message in cases:
        with pytest.raises(SurgeryError, match=message):
            attempt()
        assert picture(model) == before
    with pytest.raises(SelectorError, match="nearest"):
        reinitialise(model, "layerr1")


def test_keywords_keep_what_has_the_same_shape() -> None:
    model = sequential_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight, running = model[0].weight, model[1].running_mean
    assert replace(model, "0", {"stride": (2, 2), "padding": "valid"}).note == ""
    assert replace(model, "1", {"momentum": 0.5}).changed
    assert (model[0].weight is weight, model[1].running_mean is running) == (True, True)
    assert any(weight is one for one in optimizer.param_groups[0]["params"])
    assert (model[0].stride, model[0].padding, model[1].momentum) == ((2, 2), "valid", 0.5)
    assert replace(model, "6", {"p": 0.2}).note == "it is so already"
    model(torch.randn(2, 3, 8, 8))


def test_composite_and_recurrent_layers_take_keywords_too() -> None:
    model, example = made(ARCHITECTURES["lm"])
    kept = model.encoder.layers[0].self_attn
    change = replace(model, "encoder.layers.0", {"dim_feedforward": 48, "dropout": 0.3}, example=example)
    assert model.encoder.layers[0].self_attn is kept
    assert "linear1.weight" in change.note
    assert "self_attn" not in change.note
    assert model.encoder.layers[0].dropout.p == 0.3
    model, example = made(ARCHITECTURES["lstm"])
    wanted, old = output(model, example), model.lstm.weight_ih_l0
    replace(model, "lstm", {"dropout": 0.4}, example=example)
    assert model.lstm.weight_ih_l0 is old
    assert torch.equal(output(model, example), wanted)
    replace(model, "lstm", {"num_layers": 1, "dropout": 0.0}, example=example)
    with torch.no_grad():
        model.lstm.weight_ih_l0.zero_()
    assert not torch.equal(output(model, example), wanted)


class Own(nn.Linear):
    """Nothing of its own but a constructor that torchkeep cannot know."""

    def __init__(self, outputs: int) -> None:
        super().__init__(4, outputs)
        self.note = "mine"


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = nn.Parameter(torch.ones(4))


def test_subclasses_keep_their_class_where_they_have_nothing_of_their_own() -> None:
    model = nn.Sequential(Own(3), Scaled())
    replace(model, "0", {"out_features": 5})
    assert (type(model[0]), model[0].note, model[0].weight.shape) == (Own, "mine", (5, 4))
    with pytest.raises(SurgeryError, match="it has something of its own"):
        replace(model, "1", {"out_features": 5})
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    with pytest.raises(SurgeryError, match="is parametrized"):
        replace(model, "0", {"out_features": 5})
    assert replace(model, "0", nn.Linear(4, 5)).changed


# Modes, flags, hooks


@every
def test_modes_flags_hooks_and_freezing_stay(arch: Architecture) -> None:
    model, example = made(arch)
    model.train()
    tk.freeze(model, arch.head)
    head = model.get_submodule(arch.head)
    calls: list[str] = []
    handles = [
        head.register_forward_hook(lambda *_: calls.append("forward")),
        head.register_forward_pre_hook(lambda *_, **__: calls.append("pre"), with_kwargs=True),
        head.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    new = nn.Sequential(nn.Linear(head.in_features, 4), nn.Dropout(0.5))
    change = replace(model, arch.head, new, example=example)
    assert "frozen as the old one was" in change.note
    assert held_modules(model)[-3:] == [arch.head, f"{arch.head}.0", f"{arch.head}.1"]
    model.train()
    assert not new[1].training
    assert not any(p.requires_grad for p in new.parameters())
    calls.clear()
    model(example).sum().backward()
    assert calls[:2] == ["pre", "forward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(example)
    assert calls == []
    tk.unfreeze(model)
    assert all(module.training for module in model.modules())


def test_keywords_keep_modes_flags_and_hooks() -> None:
    model = sequential_cnn().train()
    model[9].eval()
    model[9].bias.requires_grad = False
    calls: list[str] = []
    handle = model[9].register_forward_hook(lambda *_: calls.append("hook"))
    replace(model, "9", {"out_features": 3})
    assert (model[9].training, model[9].weight.requires_grad, model[9].bias.requires_grad) == (False, True, False)
    model(images())
    handle.remove()
    model(images())
    assert calls == ["hook"]


def test_hooks_join_those_of_the_new_module() -> None:
    model = sequential_cnn()
    calls: list[str] = []
    model[9].register_forward_hook(lambda *_: calls.append("old"))
    new = nn.Linear(8, 2)
    new.register_forward_hook(lambda *_: calls.append("new"))
    assert "handles no longer remove them" in replace(model, "9", new).note
    model(images())
    assert calls == ["new", "old"]


# Taking out and putting in


@removable
def test_a_module_that_can_be_left_out_is(arch: Architecture) -> None:
    model, example = made(arch)
    names = [name for name in model.state_dict() if not name.startswith(arch.middle + ".")]
    change = remove(model, arch.middle, example=example)
    assert type(model.get_submodule(arch.middle)) is nn.Identity
    assert list(model.state_dict()) == names
    before, _, after = change.check.partition(" -> ")
    assert before == after
    assert not remove(model, arch.middle, example=example).changed


def test_numbers_are_given_anew_when_asked_for() -> None:
    model, example = made(ARCHITECTURES["vit"])
    third = model.blocks[2]
    remove(model, "blocks.1", example=example, renumber=True)
    assert (len(model.blocks), model.blocks[1]) == (2, third)
    named = nn.Sequential()
    for key in ("a", "b", "c"):
        named.add_module(key, nn.Dropout())
    remove(named, "b", renumber=True)
    assert list(named._modules) == ["a", "c"]
    with pytest.raises(SurgeryError, match="whose children have no order"):
        remove(model, "head", example=example, renumber=True)


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.ReLU(), nn.Dropout(), nn.LayerNorm(4), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Sequential(nn.ReLU())),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv1d(4, 4, 1)),
    ],
    ids=repr,
)
def test_layers_that_keep_the_shape_are_left_out_without_an_example(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten())
    assert remove(model, "0").after == "Identity()"


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Linear(4, 5), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.MaxPool2d(2), nn.GLU()),
        *(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.LSTM(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 5))),
    ],
    ids=lambda layer: repr(layer)[:30],
)
def test_layers_that_may_not_are_refused_without_an_example(layer: nn.Module) -> None:
    with pytest.raises(SurgeryError, match="pass example="):
        remove(nn.Sequential(layer), "0")


def test_parts_of_torchs_own_layers_are_not_taken_out() -> None:
    model, example = made(ARCHITECTURES["lm"])
    for name in ("encoder.layers.0.self_attn.out_proj", "encoder.layers.0.linear1", "encoder.layers.0.dropout1"):
        with pytest.raises(SurgeryError, match="which reaches into it"):
            remove(model, name, example=example)
        with pytest.raises(SurgeryError, match="which reaches into it"):
            insert(model, nn.Identity(), after=name, example=example)


@every
@pytest.mark.parametrize("place", ["after", "before"])
def test_something_is_put_in_and_the_function_is_kept(arch: Architecture, place: str) -> None:
    model, example = made(arch)
    wanted = output(model, example)
    model.eval()
    anchors = [arch.head, *([arch.middle] if arch.middle else []), arch.features[0] if place == "before" else arch.stem]
    for number, anchor in enumerate(anchors):
        new = nn.Identity()
        change = insert(model, new, **{place: anchor}, example=example)
        assert model.get_submodule(change.name) is new
        assert not new.training
        assert len(history(model)) == number + 1
        assert torch.equal(output(model, example), wanted)
        break
    copied = copy.deepcopy(model)
    assert torch.equal(output(copied, example), wanted)
    assert history(copied) == history(model)


def test_where_insertions_go() -> None:
    model, example = made(ARCHITECTURES["resnet"])
    names = list(model.state_dict())
    assert insert(model, nn.Dropout(), after="layer2", example=example).name == "layer2.2"
    assert insert(model, nn.Dropout(), before="layer2", name="first", example=example).name == "layer2.first"
    assert list(model.state_dict()) == names
    change = insert(model, nn.BatchNorm2d(8), after="conv1", example=example)
    assert (change.name, list(model.conv1._modules)) == ("conv1.added", ["main", "added"])
    assert "'conv1.main'" in change.note
    model, example = made(ARCHITECTURES["vit"])
    second = model.blocks[1]
    change = insert(model, nn.Identity(), before="blocks.1", example=example)
    assert (change.name, change.note, model.blocks[2]) == (
        "blocks.1",
        "2 layers behind it have another number now",
        second,
    )
    with pytest.raises(SurgeryError, match="whose members have numbers"):
        insert(model, nn.Identity(), before="blocks.1", name="x")
    model = sequential_cnn()
    names = list(model.state_dict())
    assert insert(model, nn.Identity(), after="0", name="tap").name == "tap"
    assert list(model._modules)[:3] == ["0", "tap", "1"]
    assert list(model.state_dict()) == names
    assert insert(model, nn.Identity(), after="tap").name == "added"


def test_insertions_into_frozen_parts_say_so() -> None:
    model = sequential_cnn().train()
    outer = nn.Sequential(model, nn.Linear(10, 2))
    tk.freeze(outer, "0")
    change = insert(outer, nn.BatchNorm2d(8), after="0.0")
    assert "frozen part" in change.note
    outer.train()
    assert not outer.get_submodule(change.name).training


# Cutting


@every
def test_what_is_behind_goes(arch: Architecture) -> None:
    model, example = made(arch)
    model.eval()
    (wanted,) = extract_features(model, arch.cut)(example).values()
    uncut = copy.deepcopy(model)
    change = truncate(model, arch.cut, example=example)
    assert (change.name, change.after) == (arch.cut, "nothing behind it")
    left = dict(model.named_parameters())
    assert left.keys() < dict(uncut.named_parameters()).keys()
    assert not [name for name in left if name.startswith(arch.head + ".")]
    torch.testing.assert_close(extract_features(model, arch.cut)(example)[arch.cut], wanted)
    torch.testing.assert_close(output(model, example), arch.rest(wanted))


def test_truncating_without_an_example_goes_by_registration() -> None:
    model = sequential_cnn()
    assert truncate(model, "5").before == "4 modules behind it"
    assert list(model._modules) == ["0", "1", "2", "3", "4", "5"]
    assert not truncate(model, "5").changed
    vit, example = made(ARCHITECTURES["vit"])
    truncate(vit, "blocks.1")
    assert [type(vit.norm), type(vit.head), len(vit.blocks)] == [nn.Identity, nn.Identity, 2]
    assert output(vit, example).shape == (2, 16)
    nested = nn.Sequential(sequential_cnn(), nn.Linear(10, 2))
    truncate(nested, "0.5")
    assert (len(nested), len(nested[0])) == (1, 6)


# Features


@every
def test_features_are_what_the_modules_gave(arch: Architecture) -> None:
    model, example = made(arch)
    model.eval()
    seen: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, copy.deepcopy(out))
        )
        for name in arch.features
    ]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    before = picture(model)
    features = extract_features(model, list(arch.features))
    for one in (features, copy.deepcopy(features), pickle.loads(pickle.dumps(features))):
        with torch.no_grad():
            found = one(example)
        assert list(found) == list(arch.features)
        for name, value in found.items():
            pairs = zip(value[:1], seen[name][:1], strict=True) if isinstance(value, tuple) else [(value, seen[name])]
            assert all(torch.equal(a, b) for a, b in pairs)
    assert picture(model) == before
    copied = copy.deepcopy(features)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert picture(model) == before


def test_features_carry_gradients_and_are_not_overwritten_in_place() -> None:
    model = sequential_cnn()
    found = extract_features(model, ["1", "2", ""])(images())
    assert (found["1"] < 0).any()
    assert torch.equal(found["1"].relu(), found["2"])
    found["1"].sum().backward()
    assert model[0].weight.grad is not None
    wrapped = extract_features(nn.DataParallel(model), "9")
    assert wrapped(images())["9"].shape == (2, 10)
    vit = ViT()
    with pytest.raises(SurgeryError, match="did not call 'blocks'"):
        extract_features(vit, "blocks")(images())
    assert not any(module._forward_hooks for module in vit.modules())


# Fresh values


@every
def test_all_is_made_anew_once_and_again_by_the_same_seed(arch: Architecture) -> None:
    model, example = made(arch)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.fill_(0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    flags = [(id(p), p.requires_grad) for p in model.parameters()]
    drawn = generators()
    change = reinitialise(model, seed=3, example=example)
    assert generators() == drawn
    assert [(id(p), p.requires_grad) for p in model.parameters()] == flags
    left = [name for name, p in model.named_parameters() if bool((p == 0.25).all())]
    assert left == (["cls_token", "pos_embed"] if isinstance(model, ViT) else [])
    assert ("2 parameters stay as they were: cls_token, pos_embed (a ViT has no" in change.note) == bool(left)
    assert not any(bool((b == 0.5).any()) for b in model.buffers() if b.is_floating_point())
    again = copy.deepcopy(model)
    reinitialise(again, seed=4)
    assert any(not torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    reinitialise(again, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@every
@pytest.mark.parametrize("scheme", ["kaiming_normal_", "xavier_uniform", "trunc_normal"])
def test_schemes_by_name(arch: Architecture, scheme: str) -> None:
    model, _ = made(arch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    reinitialise(model, "*", scheme, seed=1)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if "bias" in key:
                assert not parameter.any(), (name, key)
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                assert bool((parameter == 1).all())
            else:
                assert not bool((parameter == 0.25).any()), (name, key)
    if isinstance(model, LanguageModel):
        assert not model.embed.weight[0].any()
        assert model.head.weight is model.embed.weight


def test_a_generator_decides_too_and_what_was_not_chosen_stays() -> None:
    model = ResNet().double()
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    reinitialise(model, "layer2.0.conv1.weight, fc.bias", seed=torch.Generator().manual_seed(5))
    after = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["fc.bias", "layer2.0.conv1.weight"]
    kept = bits(model.fc.bias)
    reinitialise(model, "layer2.0.conv1.weight, fc.bias", seed=torch.Generator().manual_seed(5))
    assert bits(model.fc.bias) == kept
    model.bn1.running_mean.fill_(3)
    reinitialise(model, "bn1.bias")
    assert bool((model.bn1.running_mean == 3).all())
    reinitialise(model, "bn1")
    assert not model.bn1.running_mean.any()


class Odd(nn.Module):
    """Its own way fails half way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), 0.25))
        self.other = nn.Parameter(torch.full((2,), 0.25))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        raise RuntimeError("not today")


def test_what_could_not_be_made_anew_is_said_and_untouched() -> None:
    model = nn.Sequential(Odd(), nn.Linear(2, 2))
    change = reinitialise(model)
    assert "2 parameters stay as they were: 0.weight, 0.other (RuntimeError: not today)" in change.note
    assert bool((model[0].weight == 0.25).all())
    with pytest.raises(SurgeryError, match=r"nothing of '0' could be initialised.*not today"):
        reinitialise(model, "0")
    change = reinitialise(model, "0", "kaiming_normal_")
    assert "0.other (Fan in and fan out" in change.note
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))
    before = [bits(one) for one in normed[0].parametrizations.parameters()]
    change = reinitialise(normed)
    assert "0.parametrizations.weight.original0" in change.note
    assert [bits(one) for one in normed[0].parametrizations.parameters()] == before
    assert reinitialise(nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16)), scheme="normal").changed
    assert reinitialise(nn.Sequential(nn.BatchNorm1d(2, affine=False))).before == "statistics of 1 module"


def test_the_attention_of_torch_is_made_by_its_own_way() -> None:
    model = nn.MultiheadAttention(8, 2)
    torch.manual_seed(9)
    reinitialise(model, seed=1)
    assert not model.out_proj.bias.any()
    assert not model.in_proj_bias.any()
    assert model.out_proj.weight.any()


# Ties and aliases


def test_one_alias_goes_and_the_other_stays() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    change = remove(model, "2")
    assert (change.note, model[0]) == ("the module '0' stays", layer)
    lm, example = made(ARCHITECTURES["lm"])
    weight = lm.embed.weight
    change = remove(lm, "head", example=example)
    assert change.note == "the tied parameter 'embed.weight' stays"
    assert lm.embed.weight is weight
    assert change.check == "float32[2, 7, 20] -> float32[2, 7, 16]"
    shared = nn.Sequential(layer, nn.ReLU(), layer)
    layer.register_forward_hook(lambda *_: None)
    assert "the module '0' keeps the old layer" in replace(shared, "2", nn.Linear(4, 3)).note
    shared[2].register_forward_hook(lambda *_: None)
    assert [len(shared[place]._forward_hooks) for place in (0, 2)] == [1, 2]
    with pytest.raises(SurgeryError, match="also in use as the module '0'"):
        replace(nn.Sequential(layer, layer), "1", {"out_features": 3})


def test_attributes_that_would_go_on_using_it_are_refused() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.order = [self.body[0]]

    model = Listed()
    before = picture(model)
    attempts: list[Callable[[], Any]] = [
        lambda: replace(model, "body.0", nn.Linear(4, 4)),
        lambda: replace(model, "body", nn.Linear(4, 4)),
        lambda: remove(model, "body.0"),
        lambda: remove(model, "body"),
        lambda: insert(model, nn.ReLU(), after="body.0"),
    ]
    for attempt in attempts:
        with pytest.raises(SurgeryError, match="the attribute 'order' of the model"):
            attempt()
        assert picture(model) == before


def test_a_module_of_the_model_may_be_used_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.ReLU(), nn.Linear(4, 4).double())
    replace(model, "2", model[0])
    assert model[2] is model[0]
    assert history(model)[0].arguments == {"module": {"shared": "0"}}


# Wrappers, devices, names


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_seen_through(wrap: Any) -> None:
    model = wrap(sequential_cnn())
    model(images())
    replace(model, "9", {"out_features": 3}, example=images())
    insert(model, nn.Tanh(), after="9")
    remove(model, "6", renumber=True)
    assert head_of(model, images()) == "8"
    reinitialise(model, "8", seed=0)
    assert model(images()).shape == (2, 3)
    truncate(model, "7", example=images())
    assert model(images()).shape == (2, 8)
    assert len(history(model)) == 5
    inside = nn.ModuleDict({"encoder": wrap(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)))})
    replace(inside, "encoder.1", nn.Linear(3, 5))
    replace(inside, "encoder", nn.Linear(2, 2))
    assert type(tk.inspect(inside)) is type(tk.inspect(nn.ReLU()))
    assert [name for name, _ in tk.core.live.named_parameters(inside)] == ["encoder.weight", "encoder.bias"]
    assert type(inside["encoder"]) is not nn.Linear


def test_distributed_and_scripted_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distributed(nn.Module):
        pass

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Distributed)
    for verb in (lambda m: remove(m, "0"), lambda m: truncate(m, "0"), extract_feature, reinitialise, head_of):
        with pytest.raises(SurgeryError, match="wrapped by DistributedDataParallel"):
            verb(Distributed())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
    with pytest.raises(SurgeryError, match="compiled TorchScript"):
        resize_head(traced, 3)
    with pytest.raises(SurgeryError, match="part of compiled TorchScript"):
        replace(nn.Sequential(traced), "0.0", nn.Linear(2, 2))
    assert replace(nn.Sequential(traced), "0", nn.Linear(2, 2), example=torch.zeros(1, 2)).changed
    with pytest.raises(SurgeryError, match="not a model"):
        remove("model", "0")  # type: ignore[arg-type]


def extract_feature(model: nn.Module) -> Any:
    return extract_features(model, "0")


def test_models_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = ResNet()
    example = torch.zeros(2, 3, 32, 32)
    assert head_of(model, example) == "fc"
    replace(model, "fc", {"out_features": 3}, example=example)
    replace(model, "layer1.1", nn.Conv2d(8, 8, 1), example=example)
    truncate(model, "layer2", example=example)
    reinitialise(model)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with pytest.raises(SurgeryError, match="the new module is on the meta device"), torch.device("meta"):
        replace(sequential_cnn().to_empty(device="cpu"), "9", nn.Linear(8, 3))


def test_odd_names_empty_tensors_and_precisions() -> None:
    model = nn.Sequential()
    with pytest.warns(UserWarning, match="zero-element"):
        model.add_module("ä b/1", nn.Linear(0, 4, dtype=torch.bfloat16))
    model.add_module("*", nn.Linear(4, 2, dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="zero-element"):
        replace(model, "ä b/1", {"bias": False}, example=torch.zeros(1, 0, dtype=torch.bfloat16))
    change = insert(model, nn.LayerNorm(4), after="ä b/1", name="norm?")
    assert model.get_submodule(change.name).weight.dtype == torch.bfloat16
    assert model(torch.zeros(1, 0, dtype=torch.bfloat16)).shape == (1, 2)
    empty = nn.Sequential(nn.Sequential(), nn.Identity())
    assert insert(empty, nn.ReLU(), after="0").name == "1"
    assert not remove(empty, "2").changed
