"""What load_model makes of files at their seams: everything at once, several models in one, and files that mean harm."""

from __future__ import annotations

import functools
import os
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import state_bits
from test_saved_models import record, rewritten
from torchkeep.errors import (
    CorruptCheckpointError,
    LoadError,
    RebuildError,
    RebuildWarning,
    TorchkeepError,
    UnsafeCheckpointError,
)
from torchkeep.rebuilding.classes import Classes

RELU = {"$": "global", "v": ["torch.nn.functional", "relu"]}


@tk.recorded
class Everything(nn.Module):
    """A recorded class with ties, a buffer that is not persistent, and extra state."""

    def __init__(self, width: int = 8, act: Any = None) -> None:
        super().__init__()
        self.act, self.count = act, 0
        self.a = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.1))
        self.b = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.b.weight
        self.head = nn.Linear(width, 3)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> Any:
        return {"count": self.count, "seen": torch.tensor([self.count])}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]

    def forward(self, x: Any) -> Any:
        return self.head(self.tied(self.act(self.b(self.a(x)))))


CLASSES = {"test_model_files.Everything": Everything}
X = torch.linspace(-1, 1, 32).reshape(4, 8).bfloat16()


def quiet(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tk.load_model(source, **options)


@pytest.fixture
def everything() -> Everything:
    model = Everything(8, act=nn.functional.relu)
    tk.surgery.resize_head(model, classes=5)
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("*")]))
    model.b.register_forward_hook(lambda *_: None)
    model.to(torch.bfloat16).train()
    model.scratch.fill_(3)
    model.a[1].running_mean.fill_(0.5)
    model.count = 7
    return model


def check(back: Any, model: Everything) -> None:
    """The same in all that a file says of it."""
    assert state_bits(back) == state_bits(model)
    assert back.state_dict()["_extra_state"]["count"] == 7
    assert [one.training for one in back.modules()] == [one.training for one in model.modules()]
    assert [one.requires_grad for one in back.parameters()] == [one.requires_grad for one in model.parameters()]
    assert back.tied.weight is back.b.weight
    assert torch.equal(back.scratch, model.scratch)
    assert "scratch" not in back.state_dict()
    assert tk.freeze_state(back) == tk.freeze_state(model)
    assert tk.surgery.history(back) == tk.surgery.history(model) != ()


def test_a_model_with_everything_comes_back_from_every_file(everything: Everything, tmp_path: Path) -> None:
    path, shards = tmp_path / "m.safetensors", tmp_path / "s.safetensors"
    tk.save(everything, path, about={"licence": "MIT"}, durable=False)
    tk.save(everything, shards, max_shard_size=200, durable=False)
    index = tmp_path / "s.safetensors.index.json"
    tk.convert(path, tmp_path / "c.safetensors")
    tk.convert(index, tmp_path / "from_shards.safetensors")
    tk.convert(index, tmp_path / "other.safetensors", max_shard_size=300)
    others = (
        tmp_path / "c.safetensors",
        tmp_path / "from_shards.safetensors",
        tmp_path / "other.safetensors.index.json",
    )
    for source in (path, index, tk.open(path), *others):
        back = quiet(source, classes=CLASSES)
        check(back, everything)
        assert torch.equal(back.eval()(X), Everything.forward(back, X))
        check(quiet(source), everything)


def test_extra_state_of_shards_goes_wherever_their_tensors_go(everything: Everything, tmp_path: Path) -> None:
    tk.save(everything, tmp_path / "s.safetensors", max_shard_size=200, durable=False)
    index = tmp_path / "s.safetensors.index.json"
    tk.convert(index, tmp_path / "s.pth")
    for source in (index, tmp_path / "s.pth"):
        other = Everything(8, act=nn.functional.relu)
        tk.surgery.resize_head(other, classes=5)
        tk.load_into(other, source)
        assert other.count == 7
    assert "_extra_state" in torch.load(tmp_path / "s.pth", weights_only=True)


def test_a_skeleton_keeps_extra_state_and_is_saved_with_it(everything: Everything, tmp_path: Path) -> None:
    tk.save(everything, tmp_path / "m.safetensors", durable=False)
    skeleton = quiet(tmp_path / "m.safetensors")
    assert isinstance(skeleton, tk.Skeleton)
    tk.save(skeleton, tmp_path / "again.safetensors", durable=False)
    check(quiet(tmp_path / "again.safetensors", classes=CLASSES), everything)


def test_a_pickle_that_was_converted_is_rebuilt(tmp_path: Path) -> None:
    model = Everything(8, act=nn.functional.relu)
    torch.save(model, tmp_path / "whole.pth")
    tk.convert(tmp_path / "whole.pth", tmp_path / "whole.safetensors")
    back = quiet(tmp_path / "whole.safetensors", classes=CLASSES)
    assert state_bits(back) == state_bits(model)
    assert back.tied.weight is back.b.weight
    assert torch.equal(back.eval()(X.float()), model.eval()(X.float()))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_norm_that_was_put_on_after_construction_goes_on(norm: Any, tmp_path: Path) -> None:
    model = Everything(8, act=nn.functional.relu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(model.head)
    model.eval()(X.float())
    tk.save(model, tmp_path / "m.safetensors", durable=False)
    back = quiet(tmp_path / "m.safetensors", classes=CLASSES)
    assert len(back.head._forward_pre_hooks) == 1
    assert torch.equal(back(X.float()), model(X.float()))
    back.train()(X.float()).sum().backward()
    assert all(one.grad is not None for one in back.head.parameters())


def test_an_edited_file_is_not_run_by_the_graph_of_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tk.save(nn.Sequential(nn.Linear(2, 2)), path, example_inputs=torch.ones(2, 2), durable=False)
    edited = tk.edit.cast(path, "float16")
    changed = rewritten(path, lambda facts: facts["architecture"]["classes"][0].update(name="gone.Net"))
    with pytest.raises(RebuildError, match="was edited"):
        tk.load_model(tk.edit.cast(changed, "float16"), trust_graph=True)
    assert quiet(edited)(torch.ones(1, 2).half()).dtype == torch.float16


@pytest.mark.parametrize("device", ["junk", "cuda:99", {"*": "cuda:99"}])
@pytest.mark.parametrize("trust_graph", [False, True])
def test_a_device_that_is_not_here_is_said(device: Any, trust_graph: bool, tmp_path: Path) -> None:
    tk.save(nn.Linear(2, 2), tmp_path / "m.safetensors", durable=False)
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    for name in ("m.safetensors", "m.pth"):
        with pytest.raises(LoadError, match="there is no device"):
            tk.load_model(tmp_path / name, device=device, trust_graph=trust_graph)


def test_several_models_in_one_file_are_told(tmp_path: Path) -> None:
    torch.save({"gen": nn.Linear(2, 2), "disc": nn.Linear(2, 3)}, tmp_path / "two.pth")
    with pytest.warns(RebuildWarning, match=r"'gen' was taken; of disc, .*'disc'"):
        assert tk.load_model(tmp_path / "two.pth").out_features == 2
    torch.save([nn.Linear(2, 2), 3], tmp_path / "list.pth")
    with pytest.raises(RebuildError, match="modules inside of other values, at 0"):
        tk.load_model(tmp_path / "list.pth")


# Files that mean harm


def saved(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tk.save(nn.Sequential(nn.Linear(2, 2)), folder / "m.safetensors", durable=False)
    return rewritten(folder / "m.safetensors", change)


def with_attributes(folder: Path, held: dict[str, Any], **more: Any) -> Path:
    def change(facts: dict[str, Any]) -> None:
        facts["architecture"]["kinds"][0]["attributes"] = held
        facts["architecture"] |= more

    return saved(folder, change)


def constructed(folder: Path, call: Any, **more: Any) -> Path:
    def change(facts: dict[str, Any]) -> None:
        facts["architecture"]["classes"][0] = {"name": "gone.Net"}
        facts["architecture"]["kinds"][0] |= {"call": call, "attributes": {}}
        facts["architecture"] |= more

    return saved(folder, change)


def pickled(folder: Path, model: nn.Module, **held: Any) -> Path:
    model.__dict__.update(held)
    torch.save(model, folder / "old.pth")
    return folder / "old.pth"


class Fails(nn.Module):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


TUPLES = [{"$": "tuple", "v": [{"$": "object", "v": at + 1}] * 2} for at in range(60)]


@pytest.mark.parametrize(
    ("value", "objects"),
    [
        ({"$": "object", "v": 0}, [{"$": "object", "v": 0}]),
        ({"$": "object", "v": 7}, []),
        ({"$": "object", "v": -1}, [1]),
        ({"$": "module", "v": 99}, []),
        ({"$": "dict", "v": [[{"$": "object", "v": 0}, 2]]}, [[1]]),
        ({"$": "set", "v": [{"$": "object", "v": 0}]}, [[1]]),
        ({"$": "dict", "v": [[{"$": "object", "v": 0}, 1]]}, [*TUPLES, 1]),  # its hash would take an age of the world
        ({"$": "module", "v": -1}, []),
        ({"$": "array", "dtype": "<f8", "shape": [10**9], "v": ""}, []),
        (record("collections", "deque", record("builtins", "range", 10**11)), []),
        (record("functools", "partial"), []),
        (record("functools", "partial", RELU) | {"state": {"$": "tuple", "v": [RELU, 3, 4, None]}}, []),
    ],
)
def test_values_that_make_no_sense_are_refused(value: Any, objects: list[Any], tmp_path: Path) -> None:
    path = with_attributes(tmp_path, {"x": value}, objects=objects)
    with pytest.raises((RebuildError, CorruptCheckpointError)):
        tk.load_model(path)


def test_a_list_without_end_is_not_made(tmp_path: Path) -> None:
    path = pickled(tmp_path, nn.Linear(2, 2), x=Calls(deque, range(10**11)))
    with pytest.raises(RebuildError, match="no list but a range"):
        tk.load_model(path)
    model = nn.Linear(2, 2)
    model.x = deque([1, 2], maxlen=2)
    assert quiet(pickled(tmp_path, model)).x == deque([1, 2], maxlen=2)


def test_arguments_are_told_in_few_words_however_large_they_are(tmp_path: Path) -> None:
    shared = [[{"$": "object", "v": at + 1}] * 2 for at in range(60)]
    path = constructed(
        tmp_path, [[{"$": "object", "v": 0}, {"$": "int", "v": "0x" + "f" * 20000}], {}], objects=[*shared, []]
    )
    with pytest.raises(RebuildError, match=r"made by gone\.Net\(<list>, <int>\)"):
        tk.load_model(path, classes={"gone.Net": Fails})


def test_a_module_that_its_own_constructor_takes_is_refused(tmp_path: Path) -> None:
    path = constructed(tmp_path, [[{"$": "module", "v": 0}], {}])
    with pytest.raises(RebuildError, match="its own constructor"):
        tk.load_model(path, classes={"gone.Net": nn.Sequential})
    assert isinstance(quiet(path), tk.Skeleton)


def test_a_parametrized_module_without_parametrizations_is_refused(tmp_path: Path) -> None:
    path = constructed(tmp_path, [[], {}])
    rewritten(path, lambda facts: facts["architecture"]["classes"][0].update(parametrized=True))
    with pytest.raises(RebuildError, match="has no parametrizations"):
        tk.load_model(path, classes={"gone.Net": nn.Sequential})


def test_names_of_any_length_are_looked_up_quickly(tmp_path: Path) -> None:
    path = saved(tmp_path, lambda facts: facts["architecture"]["classes"][0].update(name="a." * 200_000))
    assert isinstance(quiet(path), tk.Skeleton)
    with pytest.raises(RebuildError, match="cannot be imported"):
        Classes(trust=["gone"]).find_factory("gone." + "a." * 20_000 + ":make")


@pytest.mark.parametrize("name", ["state_dict", "named_modules", "_apply", "_call_impl", "__class__", "__setattr__"])
@pytest.mark.parametrize("value", [5, RELU])
def test_nothing_stands_before_what_torch_needs(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.warns(RebuildWarning, match="stood before a method"):
        model = tk.load_model(with_attributes(tmp_path, {name: value}))
    model.train().state_dict()
    assert model(torch.ones(1, 2)).shape == (1, 2)


def test_other_names_may_be_anything(tmp_path: Path) -> None:
    for name in ("modules", "parameters", "eval", "type"):
        assert getattr(quiet(with_attributes(tmp_path, {name: [1]})), name) == [1]


def test_a_tensor_that_repeats_its_storage_without_end_is_not_written_out(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(1).expand(10**5, 10**5))
    path = pickled(tmp_path, model)
    with pytest.raises(UnsafeCheckpointError, match="expanded_bytes"):
        tk.load_model(path)
    assert tk.load_model(path, device="meta").weight.shape == (10**5, 10**5)


def test_a_held_tensor_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    change = {"tensors": [["float32", [1 << 61, 1 << 61]]], "held": {"0.weight": 0}}
    with pytest.raises(CorruptCheckpointError):
        tk.load_model(saved(tmp_path, lambda facts: facts["architecture"].update(change)))


@pytest.mark.parametrize(
    ("norm", "changes", "dim"),
    [
        (nn.utils.weight_norm, {"weight_g": (1,), "weight_v": (200_000, 10)}, 0),  # torch would read beyond its end
        (nn.utils.weight_norm, {"weight_g": (60_000, 1), "weight_v": (1, 60_000)}, 1),
        (nn.utils.weight_norm, {}, 10**12),
        (nn.utils.spectral_norm, {"weight_u": (7,)}, 0),
        (nn.utils.spectral_norm, {}, 5),
    ],
)
def test_norms_whose_tensors_do_not_fit_are_left_out(
    norm: Any, changes: dict[str, tuple[int, ...]], dim: int, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = norm(nn.Linear(2, 2))
    for name, shape in changes.items():
        held = model._parameters if name in model._parameters else model._buffers
        held[name] = nn.Parameter(torch.zeros(shape)) if held is model._parameters else torch.zeros(shape)
    model.__dict__.pop("weight", None)
    next(iter(model._forward_pre_hooks.values())).dim = dim
    with pytest.warns(RebuildWarning, match="hooks are left out"):
        tk.load_model(pickled(tmp_path, model))


def test_rescue_costs_no_more_than_the_file(tmp_path: Path) -> None:
    shared: Any = 1
    for _ in range(5):
        shared = [shared] * 500
    report = tk.rescue(pickled(tmp_path, nn.Linear(2, 2), x=shared, y=functools.partial(max)), tmp_path / "out")
    assert report.modules == 1
    assert "x = a list" in (tmp_path / "out" / "modules.txt").read_text()


def test_many_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    most = 3000

    def change(facts: dict[str, Any]) -> None:
        said = facts["architecture"]
        said["classes"] = [{"name": "torch.nn.modules.container.Sequential"}]
        said["classes"] += [{"name": f"gone{at}.Net"} for at in range(most)]
        said["kinds"] = [{"of": 0, "children": [str(at) for at in range(most)]}]
        said["kinds"] += [{"of": at + 1, "children": []} for at in range(most)]
        said["modules"] = [*range(most + 1)]

    report = tk.rescue(saved(tmp_path, change), tmp_path / "out")
    assert len(set(report.classes.values())) == most
    assert report.classes["gone0.Net"] == "Net"
    assert report.classes["gone1.Net"] == "Net2"


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
def test_a_graph_that_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path, graph = tmp_path / "m.safetensors", tmp_path / "m.pt2"
    tk.save(nn.Sequential(nn.Linear(2, 2)), path, example_inputs=torch.ones(2, 2), durable=False)
    rewritten(path, lambda facts: facts["architecture"]["classes"][0].update(name="gone.Net"))
    graph.unlink()
    {"fifo": os.mkfifo, "zero": lambda place: place.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](graph)
    with pytest.raises(TorchkeepError):
        tk.load_model(path, trust_graph=True)
