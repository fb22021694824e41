"""Recording constructors: the class behaves as before, and the file knows what it was called with."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchkeep as tk
from torchkeep.errors import RebuildError, RebuildWarning


@dataclass(frozen=True)
class Size:
    width: int = 4
    depth: int = 1


@tk.recorded
class Net(nn.Module):
    """Words."""

    made = 0

    def __init__(self, size: Size, *extra: int, bias: bool = True, **options: Any) -> None:
        """Words about it."""
        super().__init__()
        type(self).made += 1
        layers = [nn.Linear(size.width, size.width, bias=bias) for _ in range(size.depth)]
        self.layers = nn.Sequential(*layers)
        self.act = lambda x: x.relu() + sum(extra)
        self.rate = options.get("rate", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layers(x)) * self.rate


class Plain(Net):
    def __init__(self, width: int) -> None:
        super().__init__(Size(width))


class Inherits(Net):
    pass


@tk.recorded
class Further(Net):
    def __init__(self, width: int) -> None:
        super().__init__(Size(width), bias=False)
        self.more = nn.Linear(width, 2)


@tk.recorded
class Around(nn.Module):
    def __init__(self, body: nn.Module, scale: Tensor, names: list[str] | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.body = body
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale


@tk.recorded
class Bare(nn.Sequential):
    pass


@tk.recorded
@dataclass(eq=False)
class Data(nn.Module):
    width: int
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(self.width, 1)


def save(model: nn.Module, folder: Path) -> Path:
    tk.save(model, folder / "model.safetensors", durable=False)
    return folder / "model.safetensors"


def call_of(path: Path) -> Any:
    return tk.open(path).architecture.kinds[0].call


X = torch.linspace(-1, 1, 8).reshape(2, 4)


def test_the_class_is_as_before() -> None:
    assert (
        str(inspect.signature(Net)) == "(size: 'Size', *extra: 'int', bias: 'bool' = True, **options: 'Any') -> 'None'"
    )
    assert (Net.__name__, Net.__doc__, Net.__init__.__doc__) == ("Net", "Words.", "Words about it.")
    model = Net(Size(), 1, 2, bias=False, rate=2.0)
    assert isinstance(model, Net)
    assert type(model) is Net
    assert list(model.state_dict()) == ["layers.0.weight"]
    with pytest.raises(TypeError, match="size"):
        Net()
    with pytest.raises(TypeError, match="derives from"):
        tk.recorded(Size)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="derives from"):
        tk.recorded(len)  # type: ignore[arg-type]


def test_it_is_constructed_again(tmp_path: Path) -> None:
    model = Net(Size(4, 2), 1, 2, bias=False, rate=2.0).eval()
    path = save(model, tmp_path)
    before = Net.made
    back = tk.load_model(path, trust=[__name__])
    assert Net.made == before + 1
    assert type(back) is Net
    assert not back.training
    assert torch.equal(back(X), model(X))


def test_copies_and_pickles_are_recorded_too_and_need_no_torchkeep(tmp_path: Path) -> None:
    model = Around(nn.Linear(4, 2), torch.ones(2), ["a"]).eval()
    copied = copy.deepcopy(model)
    assert call_of(save(copied, tmp_path)) == call_of(save(model, tmp_path))
    del model
    back = tk.load_model(save(copied, tmp_path), trust=[__name__])
    assert torch.equal(back(X), copied(X))
    data = pickle.dumps(copied)
    assert b"torchkeep." not in data
    assert pickle.loads(data).names == ["a"]
    buffer = io.BytesIO()
    torch.save(copied, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert call_of(save(again, tmp_path)) == call_of(save(copied, tmp_path))


def test_subclasses_are_recorded_by_their_own_constructor_alone(tmp_path: Path) -> None:
    assert call_of(save(Plain(4), tmp_path)) is None
    assert call_of(save(Further(4), tmp_path)) == [[4], {}]
    back = tk.load_model(save(Further(4), tmp_path), trust=[__name__])
    assert type(back) is Further
    assert back.layers[0].bias is None
    inherits = save(Inherits(Size(4)), tmp_path)
    assert call_of(inherits)[0][0]["class"]["v"] == [__name__, "Size"]
    assert type(tk.load_model(inherits, trust=[__name__])) is Inherits
    with pytest.warns(RebuildWarning, match="act is a lambda"):
        assert type(tk.load_model(save(Plain(4), tmp_path), trust=[__name__])) is Plain


def test_arguments_are_those_of_before_the_constructor(tmp_path: Path) -> None:
    names = ["a"]
    model = Around(nn.Linear(4, 2), torch.ones(2), names)
    names.append("b")
    path = save(model, tmp_path)
    assert call_of(path)[0][2] == ["a"]
    assert tk.load_model(path, trust=[__name__]).names == ["a", "b"]


def test_modules_and_tensors_among_the_arguments_are_the_models(tmp_path: Path) -> None:
    body = Net(Size(4))
    model = Around(nn.Sequential(body, nn.Linear(4, 2)), body.layers[0].weight[0, :2].detach().clone())
    path = save(model, tmp_path)
    assert call_of(path)[0][0] == {"$": "module", "v": 1}
    back = tk.load_model(path, trust=[__name__])
    assert back.body[0].act is not body.act
    assert torch.equal(back.eval()(X), model.eval()(X))


def test_a_class_without_a_constructor_and_a_dataclass(tmp_path: Path) -> None:
    bare = Bare(nn.Linear(4, 4), nn.ReLU())
    back = tk.load_model(save(bare, tmp_path), trust=[__name__])
    assert type(back) is Bare
    assert torch.equal(back(X), bare(X))
    data = Data(4, ["x"])
    back = tk.load_model(save(data, tmp_path), trust=[__name__])
    assert (back.width, back.names) == (4, ["x"])
    assert torch.equal(back.fc.weight, data.fc.weight)


def test_an_argument_that_cannot_be_kept_is_said_and_the_model_is_restored(tmp_path: Path) -> None:
    model = Around(nn.Linear(4, 2), torch.ones(2))
    other = Around(nn.Linear(4, 2), torch.ones(2), lambda: 3)  # type: ignore[arg-type]
    assert tk.save(model, tmp_path / "fine.safetensors").notes == ()
    note = tk.save(other, tmp_path / "model.safetensors").notes[0]
    assert "argument 3 is a lambda" in note
    with pytest.warns(RebuildWarning, match="argument 3 is a lambda"):
        back = tk.load_model(tmp_path / "model.safetensors", trust=[__name__])
    assert torch.equal(back(X), other(X))


def test_an_argument_of_a_class_that_is_not_trusted_leaves_the_constructor_out(tmp_path: Path) -> None:
    model = Net(Size(4))
    path = save(model, tmp_path)
    with pytest.warns(RebuildWarning) as caught:
        back = tk.load_model(path, classes={f"{__name__}.Net": Net})
    assert any("without its constructor" in str(one.message) for one in caught)
    assert not hasattr(back, "act")
    back = tk.load_model(path, classes={f"{__name__}.Net": Net, f"{__name__}.Size": Size})
    assert torch.equal(back(X), model(X))


def test_an_object_that_two_constructors_take_is_inert_for_both(tmp_path: Path) -> None:
    size = Size(4)
    model = nn.Sequential(Net(size), Net(size))
    model[0].size = model[1].size = size
    with pytest.warns(RebuildWarning) as caught:
        back = tk.load_model(save(model, tmp_path), classes={f"{__name__}.Net": Net})
    assert sum("without its constructor" in str(one.message) for one in caught) == 2
    assert not any(hasattr(one, "act") for one in back)


@tk.recorded
class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_parametrization_of_its_own_tensor_and_hooks_of_its_constructor(tmp_path: Path) -> None:
    model = Own()
    nn.utils.parametrizations.weight_norm(model)
    path = save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = tk.load_model(path, trust=[__name__])
    x = torch.randn(3, 2)
    assert torch.allclose(back(x), model(x))
    assert list(back.state_dict()) == list(model.state_dict())


def test_skeletons_keep_what_their_class_was_constructed_with(tmp_path: Path) -> None:
    model = Around(Net(Size(4)), torch.ones(4), ["n"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuildWarning)
        skeleton = tk.load_model(save(model, tmp_path))
    path = save(copy.deepcopy(skeleton), tmp_path)
    back = tk.load_model(path, trust=[__name__])
    assert type(back.body) is Net
    assert torch.equal(back(X), model(X))


def test_a_constructor_that_fails_says_so(tmp_path: Path) -> None:
    path = save(Net(Size(4)), tmp_path)

    class Refuses(nn.Module):
        def __init__(self, size: Size) -> None:
            raise OSError("no weights to download")

    with pytest.raises(RebuildError, match="OSError: no weights to download"):
        tk.load_model(path, classes={f"{__name__}.Net": Refuses, f"{__name__}.Size": Size})


def test_nothing_is_set_before_the_module_is_one() -> None:
    seen: list[dict[str, Any]] = []

    @tk.recorded
    class Early(nn.Module):
        def __init__(self, width: int) -> None:
            seen.append(dict(self.__dict__))
            super().__init__()
            seen.append(dict(self.__dict__))

    Early(3)
    assert seen[0] == {}
    assert seen[1].keys() == nn.Module().__dict__.keys()


def test_a_parametrized_module_of_a_recorded_class_comes_back(tmp_path: Path) -> None:
    model = Net(Size(4))
    nn.utils.parametrizations.weight_norm(model.layers[0])
    back = tk.load_model(save(model, tmp_path), trust=[__name__])
    assert torch.allclose(back(X), model(X))
    assert repr(back) == repr(model)
