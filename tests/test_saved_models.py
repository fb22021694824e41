"""Models that torchkeep saved are made again: with their classes, after these moved and changed, and without them."""

from __future__ import annotations

import argparse
import copy
import enum
import functools
import importlib
import json
import os
import shutil
import sys
import threading
import warnings
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.core.facts import KEY
from torchkeep.errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    RebuildError,
    RebuildWarning,
    SaveError,
)
from torchkeep.freezing import held_modules

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

IMAGES = torch.linspace(-1, 1, 50).reshape(2, 1, 5, 5)
TINY = {"models.TinyNet": TinyNet}


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    tk.save(model, folder / "model.safetensors", durable=False, **options)
    return folder / "model.safetensors"


def quiet(path: Path, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuildWarning)
        return tk.load_model(path, **options)


def told(path: Path, **options: Any) -> tuple[nn.Module, str]:
    """The model, and all that was said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = tk.load_model(path, **options)
    assert {one.category for one in caught} <= {RebuildWarning}
    return model, " ".join(str(one.message) for one in caught)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes modules that can be imported, and forgets them."""
    made: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()

    def write(name: str, text: str) -> ModuleType:
        (tmp_path / "code" / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + text)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


# With the class


def test_a_model_of_ones_own_comes_back(tmp_path: Path) -> None:
    model = TinyNet().eval()
    model.bn.train()
    model.conv.weight.requires_grad_(False)
    model.scratch.fill_(3)
    model.bn.running_mean.uniform_()
    back = tk.load_model(save(model, tmp_path), classes=TINY)
    assert type(back) is TinyNet
    assert [one.training for one in back.modules()] == [one.training for one in model.modules()]
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in model.parameters()]
    assert back.tied.weight is back.fc.weight
    assert torch.equal(back.scratch, model.scratch)
    assert "scratch" not in back.state_dict()
    assert state_bits(back) == state_bits(model)
    assert torch.equal(back.eval()(IMAGES), model.eval()(IMAGES))


def test_trust_imports_and_nothing_else_does(tmp_path: Path, package: Any) -> None:
    text = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(2, 2)\n    def forward(self, x):\n        return self.fc(x)\n"
    path = save(package("trusted_nets", text).Net(), tmp_path)
    del sys.modules["trusted_nets"]
    with pytest.warns(
        RebuildWarning, match=r"skeletons.*trusted_nets\.Net \(1 of 2 modules\): .*the package that has it$"
    ):
        skeleton = tk.load_model(path)
    assert "trusted_nets" not in sys.modules
    assert isinstance(skeleton, tk.Skeleton)
    back = tk.load_model(path, trust=["trusted_nets."])
    assert back(torch.ones(1, 2)).shape == (1, 2)


def test_the_file_is_as_before_for_all_others(tmp_path: Path) -> None:
    model = TinyNet()
    path = save(model, tmp_path)
    others = load_file(path)
    state = model.state_dict()
    assert others.keys() | {"tied.weight"} == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in others.items())
    assert tk.load(path).keys() == state.keys()
    other = TinyNet()
    assert tk.load_into(other, path).applied
    assert state_bits(other) == state_bits(model)


def test_frozen_models_stay_frozen(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("*")]))
    back = tk.load_model(save(model, tmp_path), classes=TINY)
    assert held_modules(back) == held_modules(model) != []
    assert tk.freeze_state(back) == tk.freeze_state(model)
    back.train()
    assert not back.bn.training
    assert back.head.training
    before = state_bits(back.bn)
    back(IMAGES)
    assert state_bits(back.bn) == before
    tk.enter_phase(back, 1)
    assert back.bn.training
    assert back.conv.weight.requires_grad


def test_surgery_is_part_of_the_structure_and_of_the_record(tmp_path: Path) -> None:
    model = TinyNet().eval()
    tk.surgery.resize_head(model, classes=7)
    model.drop = nn.Identity()
    back = tk.load_model(save(model, tmp_path), classes=TINY)
    assert back.head.out_features == 7
    assert isinstance(back.drop, nn.Identity)
    assert tk.surgery.history(back) == tk.surgery.history(model) != ()
    assert torch.equal(back(IMAGES), model(IMAGES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_dtypes_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)
    back = tk.load_model(save(model, tmp_path))
    assert [p.dtype for p in back.state_dict().values()] == [p.dtype for p in model.state_dict().values()]
    assert state_bits(back) == state_bits(model)


def test_meta_models_come_back_without_values_and_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    back = quiet(save(model, tmp_path))
    assert back[0].weight is not back[1].weight
    assert [one.shape for one in back.parameters()] == [one.shape for one in model.parameters()]


def test_empty_tensors_and_modules_come_back_apart(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is nothing to initialise
        model = nn.Sequential(nn.Linear(0, 0), nn.Linear(0, 0), nn.Sequential(), nn.ModuleDict())
    model.register_buffer("none", None)
    model.register_parameter("absent", None)
    back = tk.load_model(save(model, tmp_path))
    assert back[0].weight is not back[1].weight
    assert back._buffers == {"none": None}
    assert back._parameters == {"absent": None}
    assert repr(back) == repr(model)


def test_shared_modules_stay_shared_and_wrappers_do_not_show(tmp_path: Path) -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.DataParallel(nn.Linear(2, 2))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what torch.compile imports
        compiled = torch.compile(model)
    back = tk.load_model(save(compiled, tmp_path))
    assert type(back) is nn.Sequential
    assert back[0] is back[2][0]
    assert type(back[2][1]) is nn.Linear
    assert torch.equal(back(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_a_module_without_any_tensor_comes_back(tmp_path: Path) -> None:
    assert repr(tk.load_model(save(nn.Sequential(nn.ReLU()), tmp_path))) == repr(nn.Sequential(nn.ReLU()))


def test_the_generator_of_the_caller_is_not_disturbed(tmp_path: Path) -> None:
    path = save(tk.recorded(type("Local", (TinyNet,), {}))(), tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    quiet(path, classes={f"{__name__}.Local": TinyNet})
    assert torch.equal(torch.rand(2), expected)


# What modules hold


class Colour(enum.Enum):
    RED = "r"


@dataclass(frozen=True)
class Config:
    width: int = 4
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, slots=True)
class Slotted:
    depth: int = 2


class Plain:
    def __init__(self) -> None:
        self.rate = 0.5
        self.me = self


class Words(dict):  # type: ignore[type-arg]
    pass


Point = namedtuple("Point", "x y")


def double(x: Tensor) -> Tensor:
    return x * 2


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.register_buffer("mask", torch.tril(torch.ones(512, 512)), persistent=False)
        self.odd = {"$": 1, 2: (3, [4.0, float("nan")]), "deep": OrderedDict(a={1, 2}, b=torch.float16)}
        self.config, self.slotted, self.plain, self.colour = Config(), Slotted(), Plain(), Colour.RED
        self.space, self.simple = argparse.Namespace(lr=0.1), SimpleNamespace(a=1)
        self.point, self.words, self.queue = Point(1, 2), Words(a=1), deque([1, 2], maxlen=2)
        self.activation, self.twice = nn.functional.relu, double
        self.partial = functools.partial(nn.functional.leaky_relu, negative_slope=0.3)
        self.scale, self.alias = torch.full((2,), 3.0), [self.body[0].weight]
        self.order = [self.body[1], self.body[0]]
        self.chosen = self.first
        self.root, self.slice, self.dtype = Path("data/x"), slice(1, None), torch.bfloat16

    def first(self, x: Tensor) -> Tensor:
        return self.partial(self.order[0](x)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.activation(self.chosen(x))) * self.config.width + self.mask[:2, :2]


def test_attributes_come_back_as_unpickling_would_give_them(tmp_path: Path) -> None:
    model = Holder()
    path = save(model, tmp_path)
    assert path.stat().st_size < 40_000
    back = tk.load_model(path, trust=[__name__])
    x = torch.randn(2, 2)
    assert torch.equal(back(x), model(x))
    assert back.odd["$"] == 1
    assert back.odd[2][1][0] == 4.0
    assert type(back.odd["deep"]) is OrderedDict
    assert (back.config, back.slotted, back.colour) == (Config(), Slotted(), Colour.RED)
    assert back.plain.me is back.plain
    assert type(back.space) is argparse.Namespace
    assert (back.space, back.simple, back.point) == (model.space, model.simple, model.point)
    assert type(back.words) is Words
    assert back.words == {"a": 1}
    assert back.queue == model.queue
    assert back.queue.maxlen == 2
    assert back.order[0] is back.body[1]
    assert back.alias[0] is back.body[0].weight
    assert back.chosen.__self__ is back
    assert (str(back.root), back.slice, back.dtype) == ("data/x", slice(1, None), torch.bfloat16)
    assert torch.equal(back.mask, model.mask)


def test_without_trust_attributes_are_records_and_can_be_saved_again(tmp_path: Path) -> None:
    model = Holder()
    path = save(model, tmp_path)
    skeleton, said = told(path)
    assert "attributes are left as inert records" in said
    assert skeleton.config.class_name == f"{__name__}.Config"
    again = tk.save(skeleton, tmp_path / "again.safetensors")
    assert again.notes == ()
    back = tk.load_model(tmp_path / "again.safetensors", trust=[__name__])
    x = torch.randn(2, 2)
    assert torch.equal(back(x), model(x))
    assert back.plain.me is back.plain
    assert back.order[0] is back.body[1]
    first, second = tk.open(path).architecture, tk.open(tmp_path / "again.safetensors").architecture
    assert [entry.name for entry in second.classes] == [entry.name for entry in first.classes]
    assert second.classes[0].code == first.classes[0].code != {}


def test_what_cannot_be_kept_is_said_twice(tmp_path: Path) -> None:
    model = TinyNet()
    model.act = lambda x: x
    model.lock, model.nested = threading.Lock(), {"deep": [threading.Lock()]}
    model.hidden = [nn.Linear(2, 2)]
    model.large = torch.randn(600, 1000)
    report = tk.save(model, tmp_path / "model.safetensors")
    note = " ".join(report.notes)
    assert "act is a lambda" in note
    assert "nested holds nested.deep.0, which is a _thread.lock" in note
    assert "hidden" in note
    assert "none of the model's" in note
    assert "large has 2.4 MB outside of the state dict" in note
    with pytest.warns(RebuildWarning, match="what the file does not have"):
        back = tk.load_model(tmp_path / "model.safetensors", classes=TINY)
    assert not hasattr(back, "act")


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.wave = torch.sin

    def __getstate__(self) -> dict[str, Any]:
        return {"fc": self.fc}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.fc = state["fc"]


def test_a_class_that_pickles_itself_comes_back_all_the_same(tmp_path: Path) -> None:
    model = Stateful()
    back, said = told(save(model, tmp_path), classes={f"{__name__}.Stateful": Stateful})
    assert said == ""
    assert state_bits(back) == state_bits(model)
    assert back.wave is torch.sin


def test_pruned_layers_compute_the_same_and_their_hook_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    back, said = told(save(model, tmp_path))
    assert "hooks are left out" in said
    x = torch.randn(2, 4)
    assert torch.equal(back(x), model(x))


def test_values_that_run_code_when_they_are_looked_at_are_left_alone(tmp_path: Path) -> None:
    class Loud:
        def __getattribute__(self, name: str) -> Any:
            if name in {"__dict__", "__reduce_ex__"}:
                return object.__getattribute__(self, name)
            raise AssertionError(f"asked for {name}")

    model = nn.Sequential(nn.ReLU())
    model.loud, model.library = [Loud()], torch
    report = tk.save(model, tmp_path / "model.safetensors")
    assert "library is a module of Python" in " ".join(report.notes)


def test_data_that_hangs_on_a_model_does_not_keep_it_from_being_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.rows, model.text, model.array = list(range(1_000_000)), "x" * (5 << 20), np.zeros((300, 1000))
    model.table = {"rows": [[one, [str(one)]] for one in range(200_000)]}
    report = tk.save(model, tmp_path / "model.safetensors")
    note = " ".join(report.notes)
    assert all(f"{name} " in note for name in ("rows", "text", "array", "table"))
    assert (tmp_path / "model.safetensors").stat().st_size < 20_000


@pytest.mark.parametrize("script", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 2))])
def test_scripted_models_are_saved_and_come_back_as_skeletons(script: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        path = save(model, tmp_path)
    back, said = told(path)
    assert "skeletons" in said
    assert state_bits(back) == state_bits(model)


def test_shared_objects_are_kept_once_and_stay_shared(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(300)))
    config, names = Plain(), ["a", Config()]
    config.text = "x" * 1000
    for at, one in enumerate(model):
        one.config, one.names, one.at = config, names, at
    path = save(model, tmp_path)
    assert path.stat().st_size < 300_000
    back = tk.load_model(path, trust=[__name__])
    assert len({id(one.config) for one in back}) == len({id(one.names) for one in back}) == 1
    assert [one.at for one in back] == list(range(300))


def test_partials_keep_their_own_arguments(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.ReLU() for _ in range(20)))
    for at, one in enumerate(model):
        one.act = functools.partial(nn.functional.leaky_relu, negative_slope=at / 10)
    back = tk.load_model(save(model, tmp_path))
    assert [one.act.keywords for one in back] == [{"negative_slope": at / 10} for at in range(20)]
    assert {one.act.func for one in back} == {nn.functional.leaky_relu}


def test_on_the_meta_device_nothing_is_read(tmp_path: Path) -> None:
    back = tk.load_model(save(TinyNet(), tmp_path), classes=TINY, device="meta")
    assert {one.device.type for one in back.state_dict().values()} == {"meta"}
    assert back.tied.weight is back.fc.weight


def test_equal_lists_of_two_modules_stay_two(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    model[0].seen, model[1].seen = [1], [1]
    back = tk.load_model(save(model, tmp_path))
    back[0].seen.append(2)
    assert back[1].seen == [1]


def test_hooks_are_named_and_not_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: os.abort())
    report = tk.save(model, tmp_path / "model.safetensors")
    assert report.notes == ("1 modules have hooks, which are not kept: 0",)
    with pytest.warns(RebuildWarning, match="hooks are left out"):
        back = tk.load_model(tmp_path / "model.safetensors")
    back(torch.ones(1, 2))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "new_weight_norm", "new_spectral_norm", "orthogonal"])
def test_torchs_norms_go_on_computing_the_weight(kind: str, tmp_path: Path) -> None:
    makers: dict[str, Any] = {
        "weight_norm": nn.utils.weight_norm,
        "spectral_norm": nn.utils.spectral_norm,
        "new_weight_norm": nn.utils.parametrizations.weight_norm,
        "new_spectral_norm": nn.utils.parametrizations.spectral_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(makers[kind](nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    report = tk.save(model, tmp_path / "model.safetensors")
    assert [note for note in report.notes if "row by row" not in note] == []
    back = tk.load_model(tmp_path / "model.safetensors")
    x = torch.randn(3, 4)
    assert torch.allclose(back(x), model(x), atol=1e-6)
    assert back.state_dict().keys() == model.state_dict().keys()
    for one in (back, model):
        with torch.no_grad():
            next(p for name, p in one.named_parameters() if name not in {"0.bias", "1.bias"}).mul_(-2)
    assert torch.allclose(back(x), model(x), atol=1e-5)
    back.train()(x).sum().backward()
    assert all(p.grad is not None for p in back.parameters())


# Code that changed

NET = """
class Net(nn.Module):
    '''Words.'''
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.width = width

    def forward(self, x):
        '''More words.'''
        return self.fc(x).relu() * self.width
"""


def moved(text: str) -> str:
    return (
        text.replace("class Net", "class Better")
        .replace("width=4", "width=4, scale=1.0")
        .replace("        self.width = width", "        self.width = width\n        self.scale = scale")
    )


@pytest.mark.parametrize("recorded", [False, True])
def test_a_class_that_moved_and_has_a_new_option_loads(recorded: bool, tmp_path: Path, package: Any) -> None:
    mark = "import torchkeep\n@torchkeep.recorded" if recorded else ""
    old = package("old_nets", mark + NET)
    model = old.Net(width=6)
    path = save(model, tmp_path)
    new = package("new_nets", mark + moved(NET).replace("* self.width", "* self.width * self.scale"))
    with pytest.warns(RebuildWarning) as caught:
        back = tk.load_model(path, classes={"old_nets.Net": new.Better})
    said = " ".join(str(one.message) for one in caught)
    assert "forward was" in said
    assert ("scale=1.0" in said) is not recorded
    assert type(back) is new.Better
    assert (back.width, back.scale) == (6, 1.0)
    assert torch.equal(back(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_only_code_that_computes_something_else_is_warned_of(tmp_path: Path, package: Any) -> None:
    old = package("code_one", NET)
    path = save(old.Net(), tmp_path)
    code = tk.open(path).architecture.classes[0].code
    same = package(
        "code_two",
        "# a comment\n"
        + NET.replace("'''More words.'''", "# other words")
        .replace(
            "return self.fc(x).relu() * self.width",
            "return (\n            self.fc(x)\n            .relu() * self.width\n        )",
        )
        .replace("def forward(self, x):", "def forward(self, x: 'torch.Tensor') -> 'torch.Tensor':"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.load_model(path, classes={"code_one.Net": same.Net})
    other = package("code_three", NET.replace("relu() *", "relu() +"))
    with pytest.warns(
        RebuildWarning, match=r"the code of code_one\.Net is another than.*forward was [0-9a-f]{16} and is [0-9a-f]{16}"
    ) as caught:
        tk.load_model(path, classes={"code_one.Net": other.Net})
    now = tk.open(save(other.Net(), tmp_path)).architecture.classes[0].code
    assert code["forward"] in str(caught[0].message)
    assert now["forward"] in str(caught[0].message)
    assert code["__init__"] == now["__init__"]


def test_bases_and_helpers_are_part_of_the_code(tmp_path: Path, package: Any) -> None:
    base = "class Base(nn.Module):\n    def helper(self, x):\n        return x + 1\n    def forward(self, x):\n        return x\n"
    net = "class Net(Base):\n    def forward(self, x):\n        return super().forward(self.helper(x))\n"
    path = save(package("bases_one", base + net).Net(), tmp_path)
    other = package("bases_two", base.replace("return x\n", "return x * 2\n").replace("x + 1", "x + 2") + net)
    with pytest.warns(RebuildWarning, match=r"(?s)helper was.*Base\.forward was|Base\.forward was.*helper was"):
        tk.load_model(path, classes={"bases_one.Net": other.Net})


def test_versions_of_the_packages_are_kept(tmp_path: Path, package: Any) -> None:
    path = save(nn.Sequential(package("verse", "__version__ = '1.2'\n" + NET).Net()), tmp_path)
    assert tk.open(path).architecture.libraries == {"verse": "1.2"}


def test_classes_without_source_have_no_digests(tmp_path: Path) -> None:
    space: dict[str, Any] = {"nn": nn, "__name__": "nowhere"}
    exec(NET, space)  # noqa: S102
    path = save(space["Net"](), tmp_path)
    assert tk.open(path).architecture.classes[0].code == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.load_model(path, classes={"nowhere.Net": space["Net"]})


def test_a_class_that_wants_more_says_so(tmp_path: Path, package: Any) -> None:
    mark = "import torchkeep\n@torchkeep.recorded"
    path = save(package("more_one", mark + NET).Net(5), tmp_path)
    other = package("more_two", mark + NET.replace("width=4", "depth, *, width"))
    with pytest.raises(RebuildError, match=r"Net\(5\).*\(depth, \*, width\).*TypeError") as caught:
        tk.load_model(path, classes={"more_one.Net": other.Net})
    assert caught.value.classes == ("more_one.Net",)
    back = quiet(path, classes={"more_one.Net": lambda width: other.Net(1, width=width)})
    assert back.width == 5


def test_new_children_must_be_allowed(tmp_path: Path, package: Any) -> None:
    mark = "import torchkeep\n@torchkeep.recorded"
    path = save(package("wider_one", mark + NET).Net(), tmp_path)
    text = NET.replace("        self.width = width", "        self.width = width\n        self.extra = nn.Linear(2, 2)")
    other = package("wider_two", mark + text)
    with pytest.raises(IncompatibleCheckpointError, match=r"extra\.weight"):
        tk.load_model(path, classes={"wider_one.Net": other.Net})
    back = tk.load_model(path, classes={"wider_one.Net": other.Net}, allow=["extra.*"])
    assert back.extra.weight.abs().sum() > 0


def test_children_that_were_taken_out_stay_out(tmp_path: Path, package: Any) -> None:
    mark = "import torchkeep\n@torchkeep.recorded"
    net = package(
        "smaller",
        mark
        + NET.replace(
            "self.width = width",
            "self.width = width; self.aux = nn.Linear(3, 3); self.rest = nn.Sequential(nn.ReLU(), nn.ReLU())",
        ),
    )
    model = net.Net()
    del model.aux, model.rest[1]
    back = tk.load_model(save(model, tmp_path), trust=["smaller"])
    assert repr(back) == repr(model)


# A factory


FACTORY = """
def build(width, depth=1):
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    model.made = "by build"
    model.act = lambda x: x + 1
    return model
def bad():
    return 3
"""


def test_a_factory_makes_the_model_and_the_file_says_what_is_in_it(tmp_path: Path, package: Any) -> None:
    module = package("plant", FACTORY)
    model = module.build(3, depth=2)
    model[1] = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU())
    path = save(model, tmp_path, factory="plant:build", kwargs={"width": 3, "depth": 2})
    same = tk.open(path).architecture
    save(model, tmp_path, factory=module.build, kwargs={"width": 3, "depth": 2})
    assert tk.open(path).architecture == same
    back = tk.load_model(path, trust=["plant"])
    assert repr(back) == repr(model)
    assert back.act(1) == 2
    assert torch.equal(back(torch.ones(1, 3)), model(torch.ones(1, 3)))
    given = tk.load_model(path, classes={"plant:build": module.build})
    assert given.act(1) == 2
    with pytest.warns(RebuildWarning, match="act is a lambda"):
        tk.load_model(path)


def test_factories_are_checked_when_they_are_given(tmp_path: Path, package: Any) -> None:
    package("plant_two", FACTORY)
    model = nn.Linear(2, 2)
    for factory, kwargs, said in [
        ("plant_two:nothing", {}, "cannot be imported"),
        ("plant_two.build", {}, "names no factory"),
        ("no_such_plant:build", {}, "cannot be imported"),
        ("plant_two:build", {"height": 3}, r"\(width, depth=1\) does not take"),
        ("plant_two:build", {"width": threading.Lock()}, "cannot be kept"),
        ("plant_two:nn", {}, "no function"),
        (lambda: model, {}, "is not what is found|cannot be imported|names no factory"),
    ]:
        with pytest.raises(SaveError, match=said):
            tk.save(model, tmp_path / "model.safetensors", factory=factory, kwargs=kwargs)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="give both"):
        tk.save(model, tmp_path / "model.safetensors", kwargs={})
    with pytest.raises(SaveError, match="makes a module"):
        tk.save({}, tmp_path / "model.safetensors", factory="plant_two:build")
    path = save(model, tmp_path, factory="plant_two:bad")
    with pytest.raises(RebuildError, match="gave a int, and no module"):
        tk.load_model(path, trust=["plant_two"])


# Hostile and old files


def rewritten(path: Path, change: Any) -> Path:
    """The file with other facts, as somebody else could write it."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(facts)
    facts = {key: value for key, value in facts.items() if key not in {"hashes", "runs", "outline"}}
    facts |= {"version": 1, "header": "0" * 64, "digests": dict.fromkeys(tensors, "0" * 64)}
    save_file(tensors, path, {KEY: json.dumps(facts), "format": "pt"})
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    from blake3 import blake3

    digest = blake3(bytes(data[8 : 8 + size])).hexdigest().encode()
    at = data.index(b"0" * 64)
    data[at : at + 64] = digest
    path.write_bytes(data)
    return path


def record(module: str, name: str, *args: Any) -> dict[str, Any]:
    said = {"$": "record", "class": {"$": "global", "v": [module, name]}, "called": True, "args": list(args)}
    return said | {"kwargs": [], "items": [], "pairs": [], "state": None}


def test_nothing_of_a_hostile_file_is_imported_or_called(tmp_path: Path, package: Any) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "code" / "evil_code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    path = save(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    touch = f"touch {marker}"

    def change(facts: dict[str, Any]) -> None:
        said = facts["architecture"]
        said["factory"], said["call"] = "os:system", [[touch], {}]
        said["classes"].append({"name": "evil_code.Net"})
        said["kinds"][0] |= {"call": [[record("os", "system", touch)], {}]}
        said["kinds"][0]["attributes"] = {
            "a": record("os", "system", touch),
            "b": record("builtins", "getattr", record("builtins", "__import__", "evil_code"), "x"),
            "c": record("functools", "partial", {"$": "global", "v": ["os", "system"]}),
            "d": {"$": "global", "v": ["evil_code", "x"]},
            "e": record("builtins", "getattr", {"$": "module", "v": 0}, "__class__"),
        }
        said["kinds"][0]["hooks"] = {"_forward_pre_hooks": [record("os", "system", touch)]}

    rewritten(path, change)
    assert tk.open(path).architecture.factory == "os:system"
    back, said = told(path)
    assert "os.system" in said
    assert "hooks are left out" in said
    back(torch.ones(1, 2))
    assert not marker.exists()
    assert "evil_code" not in sys.modules
    for name in ("os.system", "evil_code.Net", "torch.nn.modules.linear.os", "builtins.eval"):
        rewritten(path, lambda facts, name=name: facts["architecture"]["classes"].__setitem__(0, {"name": name}))
        assert isinstance(quiet(path), tk.Skeleton)
    rewritten(path, lambda facts: facts["architecture"]["classes"].__setitem__(0, {"name": "torch.nn.functional.relu"}))
    with pytest.raises(RebuildError, match="no class of modules"):
        tk.load_model(path)
    assert not marker.exists()
    assert "evil_code" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"modules": [0]},
        {"modules": [0, 1, 1]},
        {"modules": [0, -1]},
        {"modules": [0, -9]},
        {"modules": [7, 1]},
        {"kinds": [{"of": 5}]},
        {"kinds": []},
        {"eval": [0]},
        {"eval": [0, 100]},
        {"held": {"0.weight": 3}},
        {"tensors": [["float32", [2], 0, 4]], "bytes": "AAAA"},
        {"tensors": [["float32", [2], 0, 4]], "bytes": "not base64"},
        {"tensors": [["float32", [-2]]]},
        {"kinds": [{"of": 0, "children": ["0"]}, {"of": 1, "attributes": {"_forward_hooks": {"0": 1}}}]},
        {"kinds": [{"of": 0, "children": ["0"]}, {"of": 1, "attributes": {"_torchkeep_freeze": 1}}]},
        {"objects": [{"$": "unknown"}]},
        {"objects": [{"$": "module", "v": "0"}]},
        {"classes": 3},
        {"call": [1]},
    ],
)
def test_damage_is_told_as_damage(change: dict[str, Any], tmp_path: Path) -> None:
    path = rewritten(save(nn.Sequential(nn.Linear(2, 2)), tmp_path), lambda facts: facts["architecture"].update(change))
    assert tk.open(path)["0.weight"].shape == (2, 2)
    with pytest.raises(CorruptCheckpointError):
        tk.load_model(path)


def test_sharing_without_end_is_refused(tmp_path: Path) -> None:
    path = save(nn.Sequential(nn.Sequential(nn.ReLU())), tmp_path)

    def change(facts: dict[str, Any]) -> None:
        said = facts["architecture"]
        said["classes"] = [{"name": "torch.nn.modules.container.Sequential"}]
        said["kinds"] = [{"of": 0, "children": ["a", "b"], "parameters": [], "buffers": []}, {"of": 0, "children": []}]
        # each has a new one and, beside it, the same one again
        said["modules"] = [0] * 40 + [1] + [one for at in range(39, -1, -1) for one in [-1 - (at + 1)]]

    with pytest.raises(tk.errors.UnsafeCheckpointError, match="too many paths"):
        tk.load_model(rewritten(path, change))


def test_a_bomb_among_the_held_tensors_is_refused(tmp_path: Path) -> None:
    path = save(nn.Sequential(nn.ReLU()), tmp_path)
    change = {"tensors": [["uint8", [1 << 40], 0, 4]] * 2, "bytes": "AAAA"}
    with pytest.raises(tk.errors.UnsafeCheckpointError, match="expanded_bytes"):
        tk.load_model(rewritten(path, lambda facts: facts["architecture"].update(change)))


def test_files_of_before_say_what_to_do(tmp_path: Path) -> None:
    path = rewritten(save(TinyNet(), tmp_path), lambda facts: facts.pop("architecture"))
    with pytest.raises(RebuildError, match="no more of a model than") as caught:
        tk.load_model(path, classes=TINY)
    assert "tk.load_into" in str(caught.value)
    save_file(TinyNet().conv.state_dict(), path)
    with pytest.raises(RebuildError, match="no word of the model"):
        tk.load_model(path)


def test_a_run_says_what_to_do(tmp_path: Path) -> None:
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=TinyNet())
    with pytest.raises(RebuildError, match="weights and no architecture") as caught:
        tk.load_model(tmp_path / "run")
    assert "tk.load_into" in str(caught.value)


# Other ways through a file


def test_shards_conversion_and_edits_keep_it_while_the_model_is_the_same(tmp_path: Path) -> None:
    model = TinyNet().eval()
    tk.save(model, tmp_path / "s.safetensors", max_shard_size=100)
    index = tmp_path / "s.safetensors.index.json"
    whole = save(model, tmp_path)
    tk.convert(index, tmp_path / "from_shards.safetensors")
    tk.convert(whole, tmp_path / "converted.safetensors")
    tk.save(tk.open(whole), tmp_path / "copied.safetensors")
    tk.save(tk.edit.cast(whole, "float64"), tmp_path / "cast.safetensors")
    for file in (index, "from_shards.safetensors", "converted.safetensors", "copied.safetensors"):
        back = tk.load_model(tmp_path / file, classes=TINY)
        assert torch.equal(back(IMAGES), model(IMAGES))
    assert tk.load_model(tmp_path / "cast.safetensors", classes=TINY).conv.weight.dtype is torch.float64
    tk.save(tk.edit.drop(whole, "head"), tmp_path / "dropped.safetensors")
    with pytest.raises(RebuildError):
        tk.load_model(tmp_path / "dropped.safetensors", classes=TINY)


def test_copies_of_skeletons_can_be_saved(tmp_path: Path) -> None:
    model = TinyNet().eval()
    skeleton = copy.deepcopy(quiet(save(model, tmp_path)))
    assert tk.inspect(skeleton).class_name == "models.TinyNet"
    back = tk.load_model(save(skeleton, tmp_path), classes=TINY)
    assert torch.equal(back(IMAGES), model(IMAGES))


def test_the_plan_says_where_modules_come_from(tmp_path: Path) -> None:
    path = save(TinyNet(), tmp_path)
    plan = tk.plan_model(path)
    assert plan.missing == ("models.TinyNet",)
    assert tk.plan_model(path, classes=TINY).missing == ()
    with pytest.raises(RebuildError, match=r"names no 'model\.TinyNet'"):
        tk.plan_model(path, classes={"model.TinyNet": TinyNet})


def test_efficientnet_comes_back(tmp_path: Path) -> None:
    model = EfficientNetLite0().eval()
    tk.load_into(model, imagenet_weights())
    path = save(model, tmp_path)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(tk.load_model(path, trust=["network"])(x), expected)
        skeleton = quiet(path)
        assert state_bits(skeleton) == state_bits(model)
        with pytest.raises(RebuildError, match="EfficientNetLite0"):
            skeleton(x)


def test_masks_that_expand_to_hundreds_of_megabytes_are_left_out_and_said(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for number in range(5):
        model.register_buffer(f"mask{number}", torch.full((60 << 20,), number, dtype=torch.uint8), persistent=False)
    report = tk.save(model, tmp_path / "model.safetensors")
    assert any("mask4 has 62.9 MB outside of the state dict" in note for note in report.notes)
    with pytest.warns(RebuildWarning, match="mask4"):
        back = tk.load_model(tmp_path / "model.safetensors")
    assert int(back.mask3[0]) == 3


def test_warnings_carry_no_commands_to_a_terminal(tmp_path: Path) -> None:
    class Net(nn.Module):
        pass

    Net.__module__, Net.__qualname__ = "gone", "Net\x1b[2J"
    tk.save(Net(), tmp_path / "model.safetensors")
    with pytest.warns(RebuildWarning) as said:
        tk.load_model(tmp_path / "model.safetensors")
    assert all(str(one.message).isprintable() for one in said)


def test_a_package_that_was_moved_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from torch import nn\n\n\nclass Block(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(2, 2)\n\n    def forward(self, x):\n        return self.fc(x)\n\n\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.block = Block()\n\n"
        "    def forward(self, x):\n        return self.block(x)\n"
    )
    for name in ("before_move", "after_move"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "deep" / "__init__.py").touch()
    (tmp_path / "before_move" / "nets.py").write_text(source)
    (tmp_path / "after_move" / "deep" / "nets.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    old = importlib.import_module("before_move.nets").Net()
    tk.save(old, tmp_path / "model.safetensors")
    shutil.rmtree(tmp_path / "before_move")
    for name in [*sys.modules]:
        if name.partition(".")[0] == "before_move":
            monkeypatch.delitem(sys.modules, name)
    back = tk.load_model(tmp_path / "model.safetensors", classes={"before_move.": "after_move.deep."})
    assert type(back).__module__ == type(back.block).__module__ == "after_move.deep.nets"
    x = torch.randn(3, 2)
    assert torch.equal(back(x), old(x))
    plan = tk.plan_model(tmp_path / "model.safetensors", classes={"before_move.nets.": "after_move.deep.nets."})
    assert plan.missing == ()
    with pytest.raises(tk.errors.RebuildError, match=r"names no 'elsewhere\.'"):
        tk.load_model(tmp_path / "model.safetensors", classes={"elsewhere.": "after_move."})
    with pytest.raises(tk.errors.RebuildError, match="cannot be imported"):
        tk.load_model(tmp_path / "model.safetensors", classes={"before_move.": "after_move."})
    with pytest.raises(TypeError, match=r"\{'old\.': 'new\.'\}"):
        tk.load_model(tmp_path / "model.safetensors", classes={"before_move.nets.Net": "after_move.deep.nets.Net"})
