"""Inspecting: the spec says of a model what its state dict and flags say, and survives a trip through JSON."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from torchkeep.core.modulespec import ModuleEntry, ModuleSpec, TensorEntry
from torchkeep.freezing import freeze
from torchkeep.inspecting import inspect


def small() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1].register_buffer("cache", torch.zeros(7, dtype=torch.int16), persistent=False)
    return model


def entry(spec: ModuleSpec, name: str) -> TensorEntry:
    return next(entry for entry in spec.tensors if entry.name == name)


def test_names_and_order_are_those_of_the_state_dict() -> None:
    model = small()
    spec = inspect(model)
    assert [e.name for e in spec.tensors if e.persistent] == list(model.state_dict())
    assert entry(spec, "1.cache") == TensorEntry("1.cache", "int16", (7,), "cpu", "buffer", persistent=False)
    assert entry(spec, "0.weight") == TensorEntry(
        "0.weight", "float32", (4, 3, 3, 3), "cpu", "parameter", requires_grad=True
    )
    assert spec.class_name == "torch.nn.modules.container.Sequential"
    assert [e.path for e in spec.modules] == [path for path, _ in model.named_modules()]


def test_counts() -> None:
    model = small()
    model[0].requires_grad_(False)
    spec = inspect(model)
    assert spec.numel == sum(p.numel() for p in model.parameters())
    assert spec.trainable == spec.numel - 4 * 27 - 4
    assert spec.nbytes == spec.numel * 4 + 2 * 16 + 8 + 14


def test_frozen_modules_and_modes() -> None:
    model = small()
    freeze(model, "2")
    spec = inspect(model)
    assert spec.frozen == ("2", "2.0", "2.1")
    assert [e.path for e in spec.modules if not e.training] == ["2", "2.0", "2.1"]
    text = str(spec)
    assert "frozen      2\n" in text
    assert "training, 3 of 6 modules in eval" in text
    assert "frozen      (the whole model)" in str(inspect(_wholly_frozen()))


def _wholly_frozen() -> nn.Module:
    model = small()
    freeze(model, "*")
    return model


def test_the_table_is_folded() -> None:
    text = str(inspect(small()))
    assert "2.{0..1}.weight" in text
    assert "int16[7]" in text
    assert "not in the state dict: 1.cache" in text
    assert "100.0%" in text
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    mixed[0].requires_grad_(False)
    assert "2 shapes" in str(inspect(mixed))
    assert "1 of 2" in str(inspect(mixed))


def test_tied_tensors_are_named_and_counted_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    spec = inspect(model)
    assert [e.tied_to for e in spec.tensors] == [None, "embed.weight"]
    assert (spec.numel, spec.nbytes) == (15, 60)
    assert "head.weight is the same tensor as embed.weight" in str(spec)


def test_tied_by_memory_and_not_by_object() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    assert entry(inspect(model), "1.weight").tied_to == "0.weight"


def test_many_tied_names_are_not_all_listed() -> None:
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(12)])
    for layer in model:
        layer.weight = model[0].weight
    assert "and 3 more names of the same tensors" in str(inspect(model))


def test_shared_modules_stand_under_each_name() -> None:
    layer = nn.Linear(2, 2)
    spec = inspect(nn.Sequential(layer, layer))
    assert [e.path for e in spec.modules] == ["", "0", "1"]
    assert entry(spec, "1.bias").tied_to == "0.bias"


def test_lazy_modules() -> None:
    spec = inspect(nn.Sequential(nn.LazyLinear(3, dtype=torch.float16), nn.LazyBatchNorm1d()))
    weight = entry(spec, "0.weight")
    assert (weight.dtype, weight.shape, weight.initialized, weight.numel) == ("float16", (), False, 0)
    assert [e.tied_to for e in spec.tensors] == [None] * 7
    assert "not initialised before the first batch: 0.weight" in str(spec)
    assert "float16[?]" in str(inspect(nn.LazyLinear(3, dtype=torch.float16)))


def test_meta_device_and_mixed_dtypes() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, dtype=torch.complex64))
    spec = inspect(model)
    assert {e.device for e in spec.tensors} == {"meta"}
    assert spec.nbytes == 6 * 2 + 6 * 8
    assert [e.tied_to for e in spec.tensors] == [None] * 4


def test_missing_bias_and_no_parameters_at_all() -> None:
    assert [e.name for e in inspect(nn.Linear(2, 2, bias=False)).tensors] == ["weight"]
    spec = inspect(nn.ReLU().eval())
    assert (spec.numel, spec.nbytes, spec.tensors) == (0, 0, ())
    assert "mode        eval" in str(spec)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_seen_through(wrap: object) -> None:
    model = small()
    assert inspect(wrap(model)) == inspect(model)  # type: ignore[operator]


def test_json_round_trip() -> None:
    model = small()
    freeze(model, "0")
    spec = inspect(model)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModuleSpec) == spec
    assert msgspec.convert(msgspec.to_builtins(spec), ModuleSpec) == spec


def test_what_is_no_spec_is_refused() -> None:
    spec = msgspec.to_builtins(inspect(small()))
    spec["tensors"][0]["kind"] = "gradient"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(spec, ModuleSpec)


def test_an_unknown_dtype_from_a_newer_torch_is_shown_all_the_same() -> None:
    tensor = TensorEntry("x", "float3", (2, 2), "cpu", "parameter")
    spec = ModuleSpec("a.B", (ModuleEntry("", "a.B", True),), (tensor,))
    assert "float3[2, 2]" in str(spec)
    assert spec.nbytes == 4
