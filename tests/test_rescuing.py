"""What is rescued of models whose code is gone: weights, the tree, source texts, and classes to complete."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchkeep as tk
from test_pickled_models import pickled
from torchkeep.cli.app import app
from torchkeep.core.blueprint import Blueprint, Part
from torchkeep.errors import RebuildError, RebuildWarning, SaveError
from torchkeep.rebuilding.classes import Classes
from torchkeep.rebuilding.making import Maker
from torchkeep.rebuilding.spelling import spelled


def imported(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("rescued_classes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def whole(path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuildWarning)
        return tk.load_model(path, **options)


@pytest.fixture
def pickle_away(tmp_path: Path) -> Any:
    """Pickle a model whose classes are of a package that is gone afterwards."""

    def pickle(model: Any, *classes: type[nn.Module]) -> Path:
        with pytest.MonkeyPatch.context() as patched:
            mine = ModuleType("gone_pkg.mine")
            patched.setitem(sys.modules, "gone_pkg", ModuleType("gone_pkg"))
            patched.setitem(sys.modules, "gone_pkg.mine", mine)
            for cls in classes:
                patched.setattr(cls, "__module__", "gone_pkg.mine")
                setattr(mine, cls.__name__, cls)
            torch.save(model, tmp_path / "old.pth")
        return tmp_path / "old.pth"

    return pickle


def test_every_model_of_the_corpus_is_rescued(checkpoints: Path, tmp_path: Path) -> None:
    seen = 0
    for number, (path, said) in enumerate(pickled(checkpoints)):
        if path.parent.name not in {"synth-torch0.1-0.3", "torch1.0.1-py2.7", "torch1.4.0-py3.6", "torch2.13.0-py3.11"}:
            continue
        out = tmp_path / str(number)
        report = tk.rescue(path, out)
        assert report.modules == len(said["modules"])
        tree = (out / "modules.txt").read_text()
        assert all(entry["class"] in tree or "computed" in tree for entry in said["modules"])
        weights = tk.open(out / "weights.safetensors")
        held = tk.open(path).model
        assert weights.keys() == held.keys()
        assert all(torch.equal(weights[name].load(), held[name].load("cpu")) for name in held)
        missing = tk.plan_model(path).missing
        assert [*report.classes] == [*missing] or sorted(report.classes) == sorted(missing)
        if missing:
            module = imported(out / "classes.py")
            classes = {name: getattr(module, own) for name, own in report.classes.items()}
            model = whole(path, classes=classes)
            assert not any(isinstance(one, tk.Skeleton) for one in model.modules())
            built = module.model()
            loaded = tk.load_into(built, out / "weights.safetensors")
            assert loaded.coverage == 1.0
            theirs = dict(model.named_parameters(remove_duplicate=False))
            for name, parameter in built.named_parameters(remove_duplicate=False):
                assert torch.equal(parameter, theirs[name]), (path, name)
            top = said["modules"][0]["class"]
            if top in classes:
                assert tk.load_into(classes[top](), out / "weights.safetensors").coverage == 1.0
                with pytest.raises(NotImplementedError, match="forward"):
                    built(torch.zeros(1))
            seen += 1
    assert seen > 20


def test_ties_are_made_again(checkpoints: Path, tmp_path: Path) -> None:
    tk.rescue(checkpoints / "torch2.13.0-py3.11" / "nested_whole.pth", tmp_path / "out")
    model = imported(tmp_path / "out" / "classes.py").model()
    assert model.lm_head.weight is model.emb.weight


def test_sources_are_kept_as_text(checkpoints: Path, tmp_path: Path) -> None:
    report = tk.rescue(checkpoints / "torch1.0.1-py2.7" / "nested_whole.pth", tmp_path / "out")
    text = (tmp_path / "out" / "sources" / "gone_pkg.nets.py").read_text()
    assert "class Nested(nn.Module)" in text
    assert "class Attn(nn.Module)" in text
    assert [name for name in report.files if name.startswith("sources/")] == ["sources/gone_pkg.nets.py"]
    assert "sources/gone_pkg.nets.py" in (tmp_path / "out" / "classes.py").read_text()


def test_packages_and_programs_are_taken_apart_too(checkpoints: Path, tmp_path: Path) -> None:
    tk.rescue(checkpoints / "torch2.13.0-py3.11" / "torch_package.pt", tmp_path / "package")
    assert "class Traceable" in (tmp_path / "package" / "sources" / "gone_pkg.nets.py").read_text()
    program = checkpoints / "torch2.13.0-py3.11" / "scripted.pt"
    report = tk.rescue(program, tmp_path / "program")
    assert report.classes == {}
    assert any(name.startswith("sources/") for name in report.files)
    assert "load_into" in report.steps[0]
    with pytest.raises(RebuildError, match="TorchScript") as caught:
        tk.load_model(program)
    assert "torch.jit.load" in str(caught.value)
    assert "rescue" in str(caught.value)
    with pytest.raises(RebuildError, match="TorchScript"):
        tk.plan_model(program)


def test_a_state_dict_holds_no_model(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pth")
    for refuse in (tk.load_model, tk.plan_model, lambda path: tk.rescue(path, tmp_path / "out")):
        with pytest.raises(RebuildError, match="no word of the model"):
            refuse(tmp_path / "state.pth")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_left_half(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoints / "torch2.13.0-py3.11" / "cnn_whole_model.pth"
    out = tmp_path / "space" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SaveError, match="not an empty folder"):
        tk.rescue(path, out)
    assert [one.name for one in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("torchkeep.rescuing._write", full)
        with pytest.raises(SaveError, match="No space left"):
            tk.rescue(path, out)
    assert [one.name for one in out.parent.iterdir()] == ["out"]
    assert not [*out.iterdir()]
    tk.rescue(path, out)
    assert (out / "classes.py").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError):
        tk.rescue(path, tmp_path / "file")


class Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.inner = nn.Linear(width, width)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.limit, self.nothing, self.text = float("inf"), float("nan"), 'it\'s "quoted"\n'
        self.when = {"a": (1,), 2: [None, True]}
        self.kind = torch.float16
        self.hidden = object
        self.blocks = nn.Sequential(Block(2, 0.5), Block(3, 0.5), Block(2, 0.5))
        self.table = nn.ModuleDict({"type_": nn.Linear(1, 1), "keys_": nn.GELU(approximate="tanh")})
        self.odd = nn.ModuleDict()
        self.odd._modules["norm.1"] = nn.BatchNorm1d(2)
        self.odd._modules["forward"] = nn.Linear(1, 2)
        self.named = nn.Sequential(OrderedDict([("first", nn.Conv2d(1, 2, (3, 1), padding=1)), ("then", nn.ReLU6())]))
        self.halved = nn.Linear(2, 3).half()
        self.normed = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))
        self.again = self.halved
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, nn.LayerNorm(4))
        self.whole = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
        self.lstm = nn.LSTM(2, 3, num_layers=2, proj_size=1, bidirectional=True)
        self.rare = nn.AdaptiveLogSoftmaxWithLoss(16, 10, [3, 6])
        self.parallel = nn.DataParallel(nn.Linear(1, 1))
        self.register_parameter("none", None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("grid", torch.zeros(0, 3))
        self.weird = nn.ParameterDict({"a-b": nn.Parameter(torch.ones(2), requires_grad=False)})


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_all_kinds_of_modules_are_spelled(pickle_away: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = Whole()
    path = pickle_away(original, Block, Whole)
    report = tk.rescue(path, tmp_path / "out")
    classes = imported(tmp_path / "out" / "classes.py")
    built = classes.model()
    assert tk.load_into(built, tmp_path / "out" / "weights.safetensors").coverage == 1.0
    state = built.state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype, name
    assert built.limit == float("inf")
    assert built.nothing != built.nothing
    assert built.text == original.text
    assert built.when == original.when
    assert built.kind is torch.float16
    assert built.again.weight is built.halved.weight
    assert built.steps.dtype == torch.long
    assert built.lstm(torch.zeros(4, 1, 2))[0].shape == (4, 1, 2)
    assert built.encoder(torch.zeros(1, 3, 4)).shape == (1, 3, 4)
    assert built.weird["a-b"].requires_grad is False
    assert isinstance(built.table["keys_"], nn.GELU)
    text = (tmp_path / "out" / "classes.py").read_text()
    assert "nn.Conv2d(in_channels=1, out_channels=2, kernel_size=(3, 1), padding=(1, 1))" in text
    assert report.classes.keys() == {"gone_pkg.mine.Block", "gone_pkg.mine.Whole"}
    assert text.count("class Block") == 2  # of two widths


# Attacks


def attack(text: str) -> Blueprint:
    """A blueprint that has a text wherever a file can have one."""
    child = Part(text, f"gone.{text}", attributes={text: text, "plain": text}, source="")
    return Blueprint(
        text,
        (
            Part(
                "",
                f"{text}.{text}",
                training=True,
                children={text: 1, "forward": 1, "": 1},
                parameters={text: None, "class": None},
                buffers={text: None, "__mangled": None},
                transient=frozenset({text}),
                attributes={text: {text: [text]}, "forward": text, "x": text, "self.y": 1, "__class__": 2},
                hooks={"_forward_hooks": (text,)},
            ),
            child,
        ),
    )


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\nimport os; os.mkdir('pwned')\n",
        '"""\nimport os; os.mkdir("pwned")\n"""',
        "'''); import os; os.mkdir('pwned') #",
        "Net(nn.Module):\n    pass\nimport os; os.mkdir('pwned')\nclass Y",
        "\\\nimport os; os.mkdir('pwned')",
        "# \r import os; os.mkdir('pwned')",
        "\x0c\u2028\u2029\x85import os; os.mkdir('pwned')",
        "{__import__('os').mkdir('pwned')}",
        "\ud800",
        "a" * 5000,
        "class",
        "None",
        "super",
        "torch",
        "nn",
        "model",
        "ＮＮ",
        "",
        "../../x",
    ],
)
def test_names_from_a_file_never_become_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blueprint = attack(text)
    maker = Maker(blueprint, Classes(), lambda lazy, name: torch.empty(0))
    maker.model()
    made = spelled(blueprint, maker.module, {f"{text}.{text}": text})
    assert made.text.isascii()
    path = tmp_path / "classes.py"
    path.write_text(made.text)
    model = imported(path).model()
    assert text in model._modules
    assert text in model._parameters
    assert [one.name for one in tmp_path.iterdir() if one.name != "__pycache__"] == ["classes.py"]


@pytest.mark.parametrize(
    "module",
    ["../../x", "/etc/x", "a" * 3000, "..", "", "con", "x\x00y", "a/b\\c", ".hidden", "sources/../../y", "\ud800"],
)
def test_sources_cannot_leave_the_folder(module: str, tmp_path: Path, pickle_away: Any) -> None:
    path = pickle_away(nn.Sequential(Block(2, 1.0)), Block)
    ckpt = tk.open(path)
    ckpt.metadata[f"source:{module}"] = "print(1)"  # type: ignore[index]
    ckpt.metadata[f"source:{module.upper()}"] = "print(2)"  # type: ignore[index]
    before = set(tmp_path.rglob("*"))
    tk.rescue(ckpt, tmp_path / "out")
    new = set(tmp_path.rglob("*")) - before
    assert all(one.is_relative_to(tmp_path / "out") for one in new)
    texts = [one.read_text() for one in (tmp_path / "out" / "sources").iterdir()]
    assert sorted(texts) == sorted({f"print({number})\n" for number in (1, 2)}) or texts == ["print(2)\n"]
    assert all(len(one.name) < 120 for one in (tmp_path / "out" / "sources").iterdir())


def test_the_tree_has_one_line_for_a_name_of_several(tmp_path: Path, pickle_away: Any) -> None:
    model = nn.ModuleDict()
    model._modules["a\n(the model): torch.nn.Fake\x1b[2J"] = Block(2, 1.0)
    path = pickle_away(model, Block)
    tk.rescue(path, tmp_path / "out")
    text = (tmp_path / "out" / "modules.txt").read_text()
    assert "\x1b" not in text
    assert "\n(the model): torch.nn.Fake" not in text


def test_a_model_of_torch_alone_needs_no_classes(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "plain.pth")
    report = tk.rescue(tmp_path / "plain.pth", tmp_path / "out")
    assert report.files == ("modules.txt",)
    assert "torch.nn alone" in report.steps[0]


def test_the_model_in_a_training_checkpoint_is_rescued(tmp_path: Path, pickle_away: Any) -> None:
    model = nn.Sequential(Block(2, 1.0))
    path = pickle_away(
        {"epoch": 1, "net": model, "optimizer": torch.optim.Adam(model.parameters()).state_dict()}, Block
    )
    report = tk.rescue(path, tmp_path / "out")
    assert report.tensors == 2
    built = imported(tmp_path / "out" / "classes.py").model()
    assert tk.load_into(built, tmp_path / "out" / "weights.safetensors").coverage == 1.0
    assert torch.equal(built[0].inner.weight, model[0].inner.weight)


def test_the_command_writes_and_plans(checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    shutil.copy(checkpoints / "torch1.4.0-py3.6" / "cnn_whole_model.pth", path)
    runner = CliRunner()
    done = runner.invoke(app, ["rescue", str(path), "--plan", "--json"])
    assert done.exit_code == 0, done.output
    said = {one["name"]: one["made"] for one in json.loads(done.output)["classes"]}
    assert said["gone_pkg.nets.SmallCNN"] == "skeleton"
    done = runner.invoke(app, ["rescue", str(path)])
    assert done.exit_code == 0, done.output
    assert "classes.py" in done.output
    assert (tmp_path / "old.rescued" / "weights.safetensors").exists()
    done = runner.invoke(app, ["rescue", str(path), "-o", str(tmp_path / "two"), "--json"])
    said = json.loads(done.output)
    assert said["classes"] == {"gone_pkg.nets.SmallCNN": "SmallCNN"}
    assert "import classes" in said["steps"][1] and "classes.SmallCNN" in said["steps"][2]
