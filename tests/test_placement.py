"""Placement: selectors say which device each tensor goes to; the CPU and the meta device stand for two of them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.applying import devices_of, place
from torchkeep.core.live import live_tensors, unwrapped
from torchkeep.core.names import Selector
from torchkeep.core.placement import Placement, placement_of
from torchkeep.errors import LoadError, SelectorError


def pair() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "decoder": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Identity()),
            "bare": nn.Identity(),
        }
    )


def where(model: nn.Module) -> dict[str, str]:
    return {name: str(tensor.device) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def test_one_device_or_none_is_for_all() -> None:
    assert placement_of(None) == Placement() and placement_of("meta").device_of("x").type == "meta"
    assert placement_of(torch.device("cpu")).device_of("a.b") == torch.device("cpu")
    made = placement_of({"a": "meta"})
    assert placement_of(made) is made


def test_the_first_selector_that_chooses_counts_and_the_rest_goes_to_the_cpu() -> None:
    places = placement_of({"encoder.1": "cpu", Selector("encoder"): "meta", "re:odd.name$": "meta"})
    assert places.device_of("encoder.1.weight").type == "cpu"
    assert places.device_of("encoder.0.weight").type == "meta"
    assert places.device_of("x.odd name").type == "meta"
    assert places.device_of("encoder2.weight").type == "cpu"
    assert placement_of({"a": "cpu", "*": "meta"}).device_of("b").type == "meta"


def test_blocks_are_counted_as_in_freezing() -> None:
    found = devices_of(pair(), {"first 1": "meta"})
    assert {name.partition(".")[0] for name, device in found.items() if device.type == "meta"} == {"encoder"}
    with pytest.raises(SelectorError, match="first 9"):
        devices_of(pair(), {"first 9": "meta"})


@pytest.mark.parametrize("device", ["cuda:77", "abacus", "cpu:x", None, 3.5])
def test_a_device_that_is_not_here_is_refused_and_those_here_are_named(device: Any) -> None:
    model = pair()
    with pytest.raises(LoadError, match=r"tk\.devices\(\) are cpu") as caught:
        place(model, {"encoder": "meta", "decoder": device})
    assert str(device) in caught.value.message
    assert set(where(model).values()) == {"cpu"}


def test_a_selector_that_chooses_nothing_names_what_is_near() -> None:
    model = pair()
    with pytest.raises(SelectorError, match="'encoder'") as caught:
        place(model, {"encodr": "meta"})
    assert "device='encodr'" in caught.value.message
    assert set(where(model).values()) == {"cpu"}


def test_buffers_move_and_parameters_stay_the_same_objects() -> None:
    model = pair()
    parameters = dict(model.named_parameters())
    place(model, {"decoder": "meta"})
    found = where(model)
    assert {device for name, device in found.items() if name.startswith("decoder")} == {"meta"}
    assert {device for name, device in found.items() if name.startswith("encoder")} == {"cpu"}
    assert all(parameter is parameters[f"encoder.{name}"] for name, parameter in model["encoder"].named_parameters())
    assert model["decoder"][0].weight.requires_grad and isinstance(model["decoder"][0].weight, nn.Parameter)
    with torch.no_grad():
        assert model["encoder"](torch.ones(2, 4)).shape == (2, 4)


def test_what_is_on_the_meta_device_stays_there() -> None:
    with torch.device("meta"):
        model = pair()
    place(model, {"encoder": "cpu"})
    assert set(where(model).values()) == {"meta"}


def test_tied_tensors_stay_tied_and_are_not_torn_apart() -> None:
    model = TinyNet()
    with pytest.raises(LoadError, match=r"'fc\.weight' and 'tied\.weight' are one tensor.* cpu and meta"):
        place(model, {"tied": "meta"})
    assert set(where(model).values()) == {"cpu"} and model.fc.weight is model.tied.weight
    place(model, {"fc, tied": "meta"})
    assert model.fc.weight is model.tied.weight and model.fc.weight.is_meta
    views = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)])
    views[1].weight = nn.Parameter(views[0].weight.data)  # another object with the same memory
    with pytest.raises(LoadError, match=r"'0\.weight' and '1\.weight'"):
        place(views, {"0": "meta"})
    place(views, {"0, 1": "meta"})
    assert views[0].weight is views[1].weight and not views[2].weight.is_meta


def test_gradients_come_along() -> None:
    model = pair()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    place(model, {"decoder": "meta"})
    assert model["decoder"][0].weight.grad.is_meta
    assert torch.equal(model["encoder"][0].weight.grad, torch.ones(4, 4))


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager"), copy.deepcopy])
def test_wrappers_and_copies_do_not_show_in_names(wrap: Any) -> None:
    model = wrap(nn.ModuleDict({"inner": wrap(pair()["encoder"]), "head": nn.Linear(4, 2)}))
    place(model, {"inner.0": "meta"})
    found = {name: str(tensor.device) for name, tensor in live_tensors(unwrapped(model)).items()}
    assert {name for name, device in found.items() if device == "meta"} == {"inner.0.weight", "inner.0.bias"}


def test_odd_tensors_are_placed() -> None:
    model = nn.Module()
    model.register_parameter("ünï cødé", nn.Parameter(torch.zeros(0, 3)))
    model.register_buffer("small", torch.ones(2, dtype=torch.bfloat16), persistent=False)
    model.register_buffer("none", None)
    model.lazy = nn.LazyLinear(3)
    model.rnn = nn.LSTM(2, 3)
    place(model, {"ünï cødé": "meta", "small": "meta", "lazy": "meta", "rnn": "meta"})
    assert all(device == "meta" for device in where(model).values())
    assert type(model.lazy.weight) is nn.UninitializedParameter
    assert all(weight.is_meta for weight in model.rnn._flat_weights)


def test_an_empty_model_can_be_placed() -> None:
    place(nn.Identity(), "cpu")
    place(nn.Sequential(nn.ReLU()), None)
    with pytest.raises(SelectorError):
        place(nn.Identity(), {"*": "cpu"})


@pytest.mark.parametrize("assign", [False, True])
def test_load_into_places_and_loads(tmp_path: Path, assign: bool) -> None:
    source = pair()
    tk.save(source, tmp_path / "m.safetensors")
    torch.manual_seed(1)
    with torch.device("meta"):
        model = pair()
    report = tk.load_into(model, tmp_path / "m.safetensors", device={"encoder": "cpu", "*": "meta"}, assign=assign)
    found = where(model)
    assert {device for name, device in found.items() if name.startswith("decoder")} == {"meta"}
    assert {device for name, device in found.items() if name.startswith("encoder")} == {"cpu"}
    state = source["encoder"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model["encoder"].state_dict().items())
    assert any("on the meta device as asked" in note and "decoder.0.weight" in note for note in report.notes)


def test_what_a_load_leaves_over_is_initialised_where_it_goes(tmp_path: Path) -> None:
    tk.save({"encoder.0.weight": torch.ones(4, 4)}, tmp_path / "part.safetensors")
    with torch.device("meta"):
        model = pair()
    report = tk.load_into(model, tmp_path / "part.safetensors", device={"decoder": "meta"}, allow="*")
    assert model["encoder"][0].weight.eq(1).all() and not model["encoder"][1].running_mean.is_meta
    assert model["decoder"][1].running_mean.is_meta
    assert any("initialised by their modules" in note and "decoder" not in note for note in report.notes)


def test_a_load_with_a_bad_placement_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    source, model = pair(), pair()
    tk.save(source, tmp_path / "m.safetensors")
    with torch.no_grad():
        model["encoder"][0].weight.zero_()
    for bad in ({"nobody": "meta"}, {"encoder": "cuda:77"}, "cuda:77"):
        with pytest.raises((LoadError, SelectorError)):
            tk.load_into(model, tmp_path / "m.safetensors", device=bad)
        assert not model["encoder"][0].weight.any() and set(where(model).values()) == {"cpu"}


@pytest.mark.parametrize("device", ["cuda:77", {"encoder": "cuda:77"}])
def test_a_model_is_not_made_on_a_device_that_is_not_here(device: Any, tmp_path: Path) -> None:
    tk.save(pair(), tmp_path / "m.safetensors")
    with pytest.raises(LoadError, match="there is no device 'cuda:77' here") as caught:
        tk.load_model(tmp_path / "m.safetensors", device=device)
    assert "tk.devices()" in caught.value.hint


def test_an_optimizer_goes_on_with_what_stayed(tmp_path: Path) -> None:
    source, model = pair(), pair()
    tk.save(source, tmp_path / "m.safetensors")
    optimizer = torch.optim.SGD(model["encoder"].parameters(), lr=1.0)
    tk.load_into(model, tmp_path / "m.safetensors", device={"decoder": "meta"})
    model["encoder"](torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model["encoder"][0].weight, source["encoder"][0].weight)


def test_files_from_gpus_that_are_not_here_open_and_load(checkpoints: Path) -> None:
    paths = [path for path in sorted(checkpoints.rglob("*cuda*")) if path.suffix in {".pth", ".pt"}]
    loaded = 0
    for path in paths:
        ckpt = tk.open(path)
        assert any(device.startswith("cuda") for device in ckpt.devices), path
        assert all(tensor.device.type == "cpu" for tensor in ckpt.load().values())
        tk.load(path)
        weights = {name: tensor.load() for name, tensor in ckpt.model.items()}
        if not all(tensor.layout is torch.strided and not tensor.is_quantized for tensor in weights.values()):
            continue
        model = nn.Module()
        for number, tensor in enumerate(weights.values()):
            model.register_buffer(f"b{number}", torch.zeros_like(tensor))
        names = dict(zip(weights, dict(model.named_buffers()), strict=True))
        assert tk.load_into(model, path, rules=[tk.rename(names)]).coverage == 1
        assert all(torch.equal(model.get_buffer(names[name]), tensor) for name, tensor in weights.items())
        loaded += 1
    assert loaded > 3
