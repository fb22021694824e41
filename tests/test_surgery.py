"""Surgery: a layer of another size in the same place, with nothing else changed and the function kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from torchkeep.errors import SurgeryError
from torchkeep.freezing import freeze, held_modules, unfreeze
from torchkeep.surgery import Change, adapt_input, resize_head


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 6, 3, stride=2, padding="valid", padding_mode="reflect", bias=False)
        self.backbone.bn = nn.BatchNorm2d(6)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone.bn(self.backbone.stem(x)).relu().mean((2, 3)))


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1, dilation=1), nn.Conv2d(4, 4, 1)])
        self.heads = nn.ModuleDict({"dogs": nn.Linear(4, 10, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return self.heads["dogs"](x.mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))


def conv_headed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


# model, stem, head
ARCHITECTURES = [
    (plain, "0", "3"),
    (Nested, "backbone.stem", "head.1"),
    (Routed, "blocks.0", "heads.dogs"),
    (conv_headed, "0", "2"),
]
architectures = pytest.mark.parametrize(("make", "stem", "head"), ARCHITECTURES)
Make = Callable[[], nn.Module]


def seeded(make: Make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def unchanged(model: nn.Module, before: nn.Module) -> bool:
    old = before.state_dict()
    same = all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    return same and repr(model) == repr(before) and list(model.state_dict()) == list(old)


@architectures
def test_a_head_of_another_size(make: Make, stem: str, head: str) -> None:
    model = seeded(make)
    before = copy.deepcopy(model)
    change = resize_head(model, 7)
    assert (change.verb, change.name, change.note, change.changed) == ("resize_head", head, "", True)
    assert change.before == repr(before.get_submodule(head))
    assert change.after == repr(model.get_submodule(head)) == change.before.replace("10", "7")
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    assert list(model.state_dict()) == list(before.state_dict())
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head + ".")}
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in rest.items())


@architectures
def test_a_grey_image_gives_what_it_gave_in_three_channels(make: Make, stem: str, head: str) -> None:
    model = seeded(make)
    grey = torch.randn(4, 1, 8, 8)
    before, bias = model(grey.repeat(1, 3, 1, 1)), getattr(model.get_submodule(stem), "bias", None)
    change = adapt_input(model, 1)
    torch.testing.assert_close(model(grey), before)
    assert change.name == stem
    assert "grey" in change.note
    assert model.get_submodule(stem).bias is bias
    assert model.get_submodule(stem).weight.shape[1] == 1


@architectures
def test_more_channels_change_nothing_at_first(make: Make, stem: str, head: str) -> None:
    model = seeded(make)
    image = torch.randn(4, 5, 8, 8)
    before = model(image[:, :3])
    change = adapt_input(model, 5)
    torch.testing.assert_close(model(image), before)
    assert "channels 3 to 4" in change.note
    assert str(change).startswith(f"adapt_input {stem}: Conv2d(3, ")
    model(image).sum().backward()
    assert model.get_submodule(stem).weight.grad[:, 3:].abs().sum() > 0


@architectures
def test_sizes_that_fit_already_are_left_alone(make: Make, stem: str, head: str) -> None:
    model = seeded(make)
    before, layers = copy.deepcopy(model), list(model.modules())
    for change in (resize_head(model, 10), adapt_input(model, 3)):
        assert not change.changed
        assert "already" in change.note
        assert "left as it is" in str(change)
    assert unchanged(model, before)
    assert [id(a) for a in layers] == [id(b) for b in model.modules()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = seeded(plain).to(dtype)
    grey = torch.randn(2, 1, 8, 8, dtype=dtype)
    exact = model[0].weight.detach().double().sum(1, keepdim=True)
    before = model(grey.repeat(1, 3, 1, 1))
    adapt_input(model, 1)
    assert model[0].weight.dtype == dtype
    torch.testing.assert_close(model[0].weight.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)
    torch.testing.assert_close(model(grey), before, rtol=0.05, atol=0.05)
    resize_head(model, 3)
    assert (model[3].weight.dtype, model[3].bias.dtype) == (dtype, dtype)
    assert model[3].weight.double().std() > 0


def test_complex_weights_are_summed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, dtype=torch.complex64))
    grey = torch.randn(1, 1, 4, 4, dtype=torch.complex64)
    before = model(grey.repeat(1, 3, 1, 1))
    adapt_input(model, 1)
    torch.testing.assert_close(model(grey), before)


@architectures
def test_meta_device(make: Make, stem: str, head: str) -> None:
    with torch.device("meta"):
        model = make()
    resize_head(model, 7)
    adapt_input(model, 1)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    adapt_input(model, 4)
    assert model.get_submodule(stem).weight.shape[1] == 4


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv3d])
def test_other_dimensions(layer: Any) -> None:
    model = nn.Sequential(layer(3, 4, 3), nn.ReLU(), layer(4, 10, 1))
    shape = (1, 1) + (5,) * (len(model[0].kernel_size))
    grey = torch.randn(shape)
    before = model(grey.repeat_interleave(3, 1))
    adapt_input(model, 1)
    torch.testing.assert_close(model(grey), before)
    resize_head(model, 2)
    assert model(grey).shape[1] == 2


def test_the_new_head_is_made_by_its_own_initialiser() -> None:
    model = seeded(plain)
    torch.manual_seed(3)
    resize_head(model, 7)
    torch.manual_seed(3)
    fresh = nn.Linear(256, 7)
    assert torch.equal(model[3].weight, fresh.weight)
    assert torch.equal(model[3].bias, fresh.bias)


def test_flags_modes_hooks_and_attributes_stay() -> None:
    model = seeded(plain)
    calls: list[str] = []
    handles = []
    for index, name in ((0, "stem"), (3, "head")):
        layer = model[index]
        layer.note = name  # type: ignore[assignment]
        layer.weight.requires_grad = index == 3
        layer.bias.requires_grad = False
        handles.append(layer.register_forward_hook(lambda *_, name=name: calls.append(name)))
        handles.append(layer.register_forward_pre_hook(lambda *_, name=name: calls.append("pre " + name)))
        handles.append(layer.register_full_backward_hook(lambda *_, name=name: calls.append("back " + name)))
    model[3].train()
    adapt_input(model, 1)
    resize_head(model, 7)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["pre stem", "stem", "pre head", "head", "back head", "back stem"]
    assert [(m.training, m.note) for m in (model[0], model[3])] == [(False, "stem"), (True, "head")]
    flags = [p.requires_grad for p in (*model[0].parameters(), *model[3].parameters())]
    assert flags == [False, False, True, False]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(x).sum().backward()
    assert calls == []


def test_what_was_held_stays_held_and_the_note_says_so() -> None:
    model = seeded(Nested).train()
    freeze(model, ["backbone.stem", "head"])
    held = held_modules(model)
    adapt_input(model, 1)
    change = resize_head(model, 7)
    assert "unfreeze" in change.note
    assert held_modules(model) == held == ["backbone.stem", "head", "head.0", "head.1"]
    model.train()
    assert not model.backbone.stem.training
    assert model.head[1].train() is model.head[1]
    assert not model.head[1].training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "backbone.bn.weight",
        "backbone.bn.bias",
    ]
    unfreeze(model)
    assert all(m.training for m in model.modules())


def test_stale_counts_and_inner_layers_are_noted() -> None:
    model = seeded(Nested)
    model.num_classes = 10  # type: ignore[assignment]
    assert resize_head(model, 7).note == "the model's attribute 'num_classes' still says 10"
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    assert "not the last layer" in resize_head(model, 5, name="0").note


def test_by_name() -> None:
    model = nn.ModuleDict({"aux": nn.Linear(2, 10), "main": nn.Linear(2, 10), "norm": nn.LayerNorm(10)})
    with pytest.raises(SurgeryError, match=r"last module that owns parameters is 'norm', a LayerNorm.*\n.*aux, main"):
        resize_head(model, 3)
    assert resize_head(model, 3, name="aux").name == "aux"
    assert (model["aux"].out_features, model["main"].out_features) == (3, 10)
    late = nn.ModuleDict({"scale": nn.LayerNorm(3), "conv": nn.Conv2d(3, 4, 1)})
    with pytest.raises(SurgeryError, match=r"first module that owns parameters is 'scale'.*\n.*name=.*conv"):
        adapt_input(late, 1)
    assert adapt_input(late, 1, name="conv").changed


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_seen_through(wrap: Any) -> None:
    model = wrap(seeded(plain))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert resize_head(model, 7).name == "3"
    adapt_input(model, 1, name="0")
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)


class LoRA(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.zeros(1, inputs))


class Same(nn.Conv2d):
    """A convolution whose constructor torchkeep cannot know."""

    def __init__(self, outputs: int, *, inputs: int) -> None:
        super().__init__(inputs, outputs, 3, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


def test_subclasses_with_nothing_of_their_own_are_changed_and_keep_their_class() -> None:
    model = nn.Sequential(Same(4, inputs=3), nn.ReLU(), Same(10, inputs=4))
    grey = torch.rand(2, 1, 5, 5)
    before = model(grey.expand(2, 3, 5, 5))
    adapt_input(model, 1)
    assert torch.allclose(model(grey), before, atol=1e-6)
    resize_head(model, 7)
    assert [type(layer) for layer in model] == [Same, nn.ReLU, Same]
    assert model(grey).shape == (2, 7, 5, 5)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 10)
        self.order = [self.head]


class Hidden(Listed):
    def __init__(self) -> None:
        super().__init__()
        self.order = []
        self.__dict__["alias"] = self.head
        self.table = {"a": 1}


def tied() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def shared() -> nn.Module:
    head = nn.Linear(4, 4)
    return nn.Sequential(head, nn.ReLU(), head)


def with_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 10))
    model[0].register_buffer("mask", torch.ones(2))
    return model


def with_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 10))
    model[0].scale = nn.Parameter(torch.ones(2))
    return model


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 10)))


def integers() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 10))
    model[0].weight = nn.Parameter(torch.ones(10, 2, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (nn.ReLU, None, "no parameters, so it has no head"),
        (lambda: nn.Linear(2, 10), None, "the model itself, a Linear, is the layer"),
        (lambda: nn.Linear(2, 10), "", "the model itself, a Linear, is the layer"),
        (plain, "4x", "no module '4x'"),
        (plain, "1", "'1', a ReLU, is not Linear or Conv1d"),
        (lambda: nn.Sequential(nn.BatchNorm1d(2)), None, "the model has no such layer"),
        (lambda: nn.Sequential(LoRA(2, 10)), None, "'0', a LoRA, is more than a weight and a bias"),
        (lambda: nn.Sequential(nn.LazyLinear(10)), None, "has no shape yet"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 10, 1)), None, "a ConvTranspose2d, and not Linear"),
        (lambda: nn.Sequential(nn.Conv2d(4, 10, 1, groups=2)), None, "cannot be made with 3 classes"),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 10))), None, "its weight is computed"),
        (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 10, 1))), "0", "is parametrized"),
        (lambda: parametrizations.weight_norm(nn.Linear(2, 10)), None, "is parametrized"),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 10))), None, "torch.nn.utils.spectral_norm"),
        (lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(2, 10), "weight", 3)), None, "torch.nn.utils.prune"),
        (old_weight_norm, None, "torch.nn.utils.weight_norm"),
        (tied, None, "the tied parameter 'embed.weight'"),
        (shared, None, "the module '2'"),
        (shared, "2", "the module '0'"),
        (Listed, None, "the attribute 'order' of the model"),
        (Hidden, None, "the attribute 'alias' of the model"),
        (with_buffer, None, "it owns 'mask' too"),
        (with_parameter, None, "it owns 'scale' too"),
        (integers, None, "cannot be made with 3 classes"),
    ],
)
def test_heads_that_are_refused(make: Make, name: str | None, message: str) -> None:
    model = make()
    layers, values = [*model.named_modules()], [id(p) for p in model.parameters()]
    with pytest.raises(SurgeryError, match=message):
        resize_head(model, 3, name=name)
    assert [*model.named_modules()] == layers
    assert [id(p) for p in model.parameters()] == values


@pytest.mark.parametrize(
    ("make", "channels", "message"),
    [
        (plain, 2, "takes 3 channels, and nothing says which of them 2 channels stand for"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), 1, "2 groups"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 1)), 1, "a ConvTranspose2d, and not Conv1d"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Conv1d(4, 4, 1)), 1, "one of 1$"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), 1, "has no shape yet"),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1))), 1, "is parametrized"),
        (lambda: nn.Sequential(prune.identity(nn.Conv2d(3, 4, 1), "weight")), 1, "torch.nn.utils.prune"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1).requires_grad_(False).to(torch.float32)), 0, "positive integer"),
    ],
)
def test_stems_that_are_refused(make: Make, channels: int, message: str) -> None:
    model = make()
    layers, values = [*model.named_modules()], [id(p) for p in model.parameters()]
    with pytest.raises(SurgeryError, match=message):
        adapt_input(model, channels)
    assert [*model.named_modules()] == layers
    assert [id(p) for p in model.parameters()] == values


def test_integer_stems_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    model[0].weight = nn.Parameter(torch.ones(4, 3, 1, 1, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SurgeryError, match="int8"):
        adapt_input(model, 1)


def test_tied_stems_are_refused() -> None:
    stem = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(stem, nn.Conv2d(3, 3, 1))
    model[1].bias = stem.bias
    with pytest.raises(SurgeryError, match=r"the tied parameter '1\.bias'"):
        adapt_input(model, 1)


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "3", None])
def test_only_positive_integers(count: Any) -> None:
    model = seeded(plain)
    for verb in (resize_head, adapt_input):
        with pytest.raises(SurgeryError, match="positive integer"):
            verb(model, count)


def test_distributed_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distributed(nn.Module):
        pass

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Distributed)
    with pytest.raises(SurgeryError, match="wrapped by DistributedDataParallel"):
        resize_head(Distributed(), 3)


def test_a_change_as_text() -> None:
    change = Change("resize_head", "fc", "Linear(a)", "Linear(b)", "mind the gap")
    assert str(change) == "resize_head fc: Linear(a) -> Linear(b)\n  mind the gap"
