"""Whole models that real versions of torch pickled: made again without their classes, and with classes written anew."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from formats.test_corpus import sha256
from formats.test_evil import MARKERS
from gone_classes import Attn, Bare, Dyn, Nested, Net, SmallCNN, Traceable
from torchkeep.errors import RebuildError, RebuildWarning, TorchkeepError

WRITERS = (
    "synth-torch0.1-0.3",
    "torch1.0.1-py2.7",
    "torch1.1.0-py3.6",
    "torch1.12.1-py3.7",
    "torch1.3.1-py3.6",
    "torch1.4.0-py3.6",
    "torch1.5.1-py3.6",
    "torch1.6.0-py3.7",
    "torch1.8.1-py3.8",
    "torch2.0.1-py3.9",
    "torch2.13.0-extras",
    "torch2.13.0-py3.11",
    "torch2.4.1-py3.10",
    "torch2.6.0-py3.11",
    "torch2.8.0-py3.10",
)
CLASSES = {
    "gone_pkg.nets.SmallCNN": SmallCNN,
    "gone_pkg.nets.Nested": Nested,
    "gone_pkg.nets.Attn": Attn,
    "gone_pkg.nets.Traceable": Traceable,
    "gone_pkg.old.Net": Net,
    "__main__.Dyn": Dyn,
    "<computed by the file>": Dyn,
}
FILLED = "num_batches_tracked"
MOVED = {"_LinearWithBias": "NonDynamicallyQuantizableLinear"}


pytestmark = pytest.mark.usefixtures("one_thread")


def pickled(root: Path, writer: str = "*", name: str = "*") -> list[tuple[Path, dict[str, Any]]]:
    """The files with a pickled module in them, and what their writers saw."""
    found = []
    for sidecar in sorted(root.glob(f"{writer}/{name}.json")):
        said = json.loads(sidecar.read_text())
        if isinstance(said, dict) and said.get("modules"):
            found.append((sidecar.with_suffix(""), said))
    return found


def quietly(path: Path, **options: Any) -> nn.Module:
    """load_model, without what it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuildWarning)
        return tk.load_model(path, **options)


def known_in(path: Path) -> dict[str, Any]:
    """The classes of CLASSES that a file names."""
    names = {one.name for one in tk.plan_model(path).classes}
    known = {name: cls for name, cls in CLASSES.items() if name in names}
    return known | {"gone_pkg.old.Net": Bare} if path.name.startswith("legacy03") else known


def dotted(path: list[Any]) -> str:
    return ".".join(map(str, path))


def check_state(model: nn.Module, said: dict[str, Any], where: str) -> None:
    """Every tensor, flag, mode, child and class is what the writer saw."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for entry in said["modules"]:
        module, place = modules[dotted(entry["path"])], f"{where}: {entry['path']}"
        assert module.training is entry.get("training", True), place
        assert list(module._modules) == entry.get("children", list(module._modules)), place
        wanted = entry["class"].rpartition(".")[2]
        if isinstance(module, tk.Skeleton):
            assert wanted in repr(module).partition("(")[0] or "computed" in repr(module), place
        else:
            assert type(module).__name__ in {MOVED.get(wanted, wanted), "Bare"}, place
        if "parameters" in entry:
            held = {key: parameter is not None for key, parameter in module._parameters.items()}
            assert held == {key: there is not None for key, there in entry["parameters"].items()}, place
            assert set(module._buffers) - set(entry["buffers"]) <= {FILLED}, place
    live = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    seen = 0
    for tensor in said["tensors"]:
        if tensor["kind"] in {"parameter", "buffer"}:
            name = dotted(tensor["path"])
            assert sha256(live[name]) == tensor["sha256"], f"{where}: {name}"
            assert live[name].requires_grad is tensor["requires_grad"], f"{where}: {name}"
            assert isinstance(live[name], nn.Parameter) is (tensor["kind"] == "parameter"), f"{where}: {name}"
            seen += 1
    extra = {name for name in live if not name.endswith(FILLED)}
    assert seen, where
    assert len(extra) <= seen, where


@pytest.mark.parametrize("writer", WRITERS)
def test_every_pickled_model_comes_back_without_its_classes(checkpoints: Path, writer: str) -> None:
    found = pickled(checkpoints, writer)
    assert found
    for path, said in found:
        model = quietly(path)
        check_state(model, said, f"{writer}/{path.name}")
        missing = tk.plan_model(path).missing
        assert bool(missing) is any(isinstance(module, tk.Skeleton) for module in model.modules())


def test_the_whole_corpus_was_looked_at(checkpoints: Path) -> None:
    assert {path.parent.name for path, _ in pickled(checkpoints)} == set(WRITERS)
    assert len(pickled(checkpoints)) == 133


def test_a_skeleton_says_which_class_is_missing(checkpoints: Path) -> None:
    path = checkpoints / "torch1.4.0-py3.6" / "cnn_whole_model.pth"
    with pytest.warns(RebuildWarning, match="gone_pkg.nets.SmallCNN"):
        model = tk.load_model(path)
    with pytest.raises(RebuildError, match=r"classes=\{'gone_pkg.nets.SmallCNN': YourClass\}") as caught:
        model(torch.zeros(1, 3, 8, 8))
    assert caught.value.classes == ("gone_pkg.nets.SmallCNN",)
    again = copy.deepcopy(model)
    assert sha256(again.conv1.weight) == sha256(model.conv1.weight)
    assert again.conv1.weight.data_ptr() != model.conv1.weight.data_ptr()
    model.load_state_dict(again.state_dict())
    assert model.eval().conv1.training is False


def test_tied_tensors_are_one_in_a_skeleton_too(checkpoints: Path) -> None:
    for path, _ in pickled(checkpoints, name="nested_whole*"):
        for options in ({}, {"classes": known_in(path)}):
            model = quietly(path, **options)
            assert model.lm_head.weight is model.emb.weight, path
            assert len(list(model.parameters())) == len({id(one) for one in model.parameters()})


# With classes written anew


def inputs_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Two batches that the model takes."""
    inner = model.module if isinstance(model, nn.DataParallel) else model
    for seed in (1, 2):
        torch.manual_seed(seed)
        if isinstance(inner, SmallCNN):
            yield torch.randn(4, inner.conv1.in_channels, 9, 9)
        elif isinstance(inner, Nested):
            yield torch.randint(0, 7, (3, 4))
        elif isinstance(inner, Traceable):
            yield torch.randn(2, 3, 7, 7)
        else:
            yield torch.randn(3, 2 if isinstance(inner, Dyn) else 6)


def reference_for(model: nn.Module, path: Path) -> nn.Module:
    """The model constructed today, with the weights of the file in it, as torch puts them there."""
    inner = model.module if isinstance(model, nn.DataParallel) else model
    reference: nn.Module
    if isinstance(inner, SmallCNN):
        reference = SmallCNN(inner.conv1.in_channels, inner.conv1.out_channels, inner.fc.out_features, inner.drop.p)
    else:
        reference = type(inner)()
    with torch.no_grad():
        for tensor in (*reference.parameters(), *reference.buffers()):
            tensor.fill_(7)
    state = {name.removeprefix("module."): tensor for name, tensor in tk.open(path).model.load("cpu").items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(FILLED) for name in missing)
    return nn.DataParallel(reference) if isinstance(model, nn.DataParallel) else reference


def same_in_both_modes(model: nn.Module, reference: nn.Module, inputs: Callable[[], Iterator[Any]]) -> None:
    """Outputs, gradients and what the training forward changes are equal, bit by bit."""
    for mode in (False, True):
        model.train(mode)
        reference.train(mode)
        for given in inputs():
            outputs = []
            for one in (model, reference):
                torch.manual_seed(3)
                one.zero_grad()
                out = one(given)
                out = out if isinstance(out, torch.Tensor) else out[0]
                if out.requires_grad:
                    out.square().sum().backward()
                outputs.append(out)
            assert torch.equal(*outputs)
            theirs = dict(reference.named_parameters())
            for name, parameter in model.named_parameters():
                grads = (parameter.grad, theirs[name].grad if parameter.requires_grad else None)
                assert (grads[0] is None) is (grads[1] is None), name
                assert grads[0] is None or torch.equal(grads[0], grads[1]), name
    for name, buffer in model.named_buffers():
        if not name.endswith(FILLED):
            assert torch.equal(buffer, reference.get_buffer(name)), name


@pytest.mark.parametrize("writer", WRITERS)
def test_with_classes_written_anew_it_computes_what_a_reference_computes(checkpoints: Path, writer: str) -> None:
    seen = 0
    for path, said in pickled(checkpoints, writer):
        known = known_in(path)
        top = said["modules"][0]["class"]
        if not known:
            continue
        model = quietly(path, classes=known)
        assert not any(isinstance(module, tk.Skeleton) for module in model.modules()), path
        check_state(model, said, str(path))
        if top in CLASSES or isinstance(model, nn.DataParallel):
            assert isinstance(getattr(model, "module", model), tuple(known.values())), path
            same_in_both_modes(model, reference_for(model, path), lambda model=model: inputs_of(model))
            seen += 1
    assert seen, writer


def test_a_model_with_its_own_attributes_keeps_them(checkpoints: Path) -> None:
    for path, _ in pickled(checkpoints, name="cnn_whole_model*"):
        model = quietly(path, classes=known_in(path))
        assert model.config == {"arch": "small", "lr": 0.1, "layers": [1, 2, 3]}, path
        assert model.width == model.conv1.out_channels


def standard_inputs(name: str, shape: tuple[int, ...]) -> Callable[[], Iterator[Any]]:
    def made() -> Iterator[Any]:
        for seed in (4, 5):
            torch.manual_seed(seed)
            yield torch.randn(*shape)

    return made


def parts_of_standard() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "relu": nn.ReLU(),
            "pool": nn.AdaptiveAvgPool2d((1, 1)),
            "gru": nn.GRU(2, 2),
            "up": nn.Upsample(scale_factor=2, mode="nearest"),
            "gn": nn.GroupNorm(1, 2),
            "ln": nn.LayerNorm(2),
        }
    )


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("conv", (2, 1, 6, 6)),
        ("relu", (2, 2)),
        ("pool", (2, 2, 5, 5)),
        ("gru", (3, 2, 2)),
        ("up", (2, 2, 3, 5)),
        ("gn", (2, 2, 4, 4)),
        ("ln", (3, 2)),
    ],
)
def test_layers_of_torch_compute_as_those_of_today(checkpoints: Path, part: str, shape: tuple[int, ...]) -> None:
    found = pickled(checkpoints, name="std_modules_whole*")
    assert len(found) == 9
    for path, _ in found:
        model = quietly(path)
        reference = parts_of_standard()
        reference.load_state_dict({name: one for name, one in tk.open(path).model.load().items() if "loss" not in name})
        same_in_both_modes(model.get_submodule(part), reference[part], standard_inputs(part, shape))


def test_a_loss_computes_as_that_of_today(checkpoints: Path) -> None:
    for path, _ in pickled(checkpoints, name="std_modules_whole*"):
        loss = quietly(path).loss
        logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, loss.ignore_index])
        weight = tk.open(path).model["loss.weight"].load()
        fresh = nn.CrossEntropyLoss(weight, ignore_index=loss.ignore_index, reduction=loss.reduction)
        assert torch.equal(loss(logits, labels), fresh(logits, labels)), path


def test_transformers_compute_as_those_of_today(checkpoints: Path) -> None:
    found = pickled(checkpoints, name="transformer_whole*")
    assert len(found) == 8
    for path, _ in found:
        model = quietly(path)
        first = model.layers[0]
        layer = nn.TransformerEncoderLayer(
            4, first.self_attn.num_heads, 8, first.dropout.p, batch_first=first.self_attn.batch_first
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            reference = nn.TransformerEncoder(layer, len(model.layers), enable_nested_tensor=model.enable_nested_tensor)
        reference.load_state_dict(tk.open(path).model.load())
        same_in_both_modes(model, reference, standard_inputs("transformer", (3, 2, 4)))
        assert vars(model).keys() >= vars(reference).keys(), path
        assert vars(first).keys() >= vars(layer).keys(), path
        with torch.no_grad():
            masks = torch.tensor([[False, False, True], [False, True, True]])
            given = torch.randn(3, 2, 4)
            masks = masks.t() if first.self_attn.batch_first else masks
            assert torch.equal(
                model.eval()(given, src_key_padding_mask=masks), reference.eval()(given, src_key_padding_mask=masks)
            )


# Hooks


def test_spectral_norm_goes_on_as_torch_would(checkpoints: Path) -> None:
    found = pickled(checkpoints, name="spectral_norm_model*")
    assert len(found) == 9
    for path, _ in found:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = tk.load_model(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 2)))
        reference.load_state_dict(tk.open(path).model.load())
        same_in_both_modes(model, reference, standard_inputs("spectral", (3, 4)))
        assert "torch.nn.utils" in str(tk.plan_model(path))
        nn.utils.remove_spectral_norm(model[0])
        assert isinstance(model[0].weight, nn.Parameter)


def test_pruned_layers_stay_pruned_while_they_train(checkpoints: Path) -> None:
    found = pickled(checkpoints, name="pruned_whole*")
    assert len(found) == 8
    for path, _ in found:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = tk.load_model(path)
        layer = model[0]
        with torch.no_grad():
            layer.weight_orig.add_(1.0)
        given = torch.randn(2, 4)
        out = model(given)
        assert torch.equal(out, nn.functional.linear(given, layer.weight_orig * layer.weight_mask, layer.bias))
        out.sum().backward()
        assert torch.equal(layer.weight_orig.grad, layer.weight_orig.grad * layer.weight_mask)
        nn.utils.prune.l1_unstructured(layer, "weight", amount=1)  # torch finds the method that was there
        nn.utils.prune.remove(layer, "weight")
        assert isinstance(layer.weight, nn.Parameter)


def test_hooks_of_others_are_reported_and_not_there(checkpoints: Path) -> None:
    found = pickled(checkpoints, name="frozen_hook_model*")
    assert len(found) == 17
    for path, _ in found:
        with pytest.warns(RebuildWarning) as seen:
            model = tk.load_model(path, classes={"gone_pkg.nets.SmallCNN": SmallCNN})
        said = " ".join(str(one.message) for one in seen)
        assert "3 hooks are left out" in said
        for name in (
            "conv2: gone_pkg.nets.pre_hook",
            "bn1: gone_pkg.nets.CallableHook",
            "gone_pkg.nets.print_shape_hook",
        ):
            assert name in said, path
        assert not any(
            held for module in model.modules() for key, held in vars(module).items() if key.endswith("_hooks")
        )


# Nothing is imported and nothing called


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `gone_pkg` that leaves a mark when it is imported."""
    mark = tmp_path / "mark"
    package = tmp_path / "site" / "gone_pkg"
    package.mkdir(parents=True)
    for name in ("__init__", "nets", "old"):
        (package / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).write_text({name!r})\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return mark


def test_a_class_that_is_not_named_is_never_imported(checkpoints: Path, trap: Path, tmp_path: Path) -> None:
    for number, (path, _) in enumerate(pickled(checkpoints)):
        quietly(path, trust=["harmless_pkg."])
        quietly(path, classes=known_in(path))
        if number % 10 == 0:
            tk.rescue(path, tmp_path / f"out-{number}")
    assert not trap.exists()
    assert "gone_pkg" not in sys.modules
    with pytest.raises(RebuildError, match=r"gone_pkg.*SmallCNN"):
        quietly(checkpoints / "torch1.4.0-py3.6" / "cnn_whole_model.pth", trust=["gone_pkg."])
    assert trap.exists()  # the trap works
    for name in [name for name in sys.modules if name.partition(".")[0] == "gone_pkg"]:
        del sys.modules[name]


def test_files_that_mean_harm_run_nothing(
    evil: Path, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    MARKERS.mkdir(parents=True, exist_ok=True)  # where the files would leave a mark
    marks, before = set(MARKERS.iterdir()), set(sys.modules)
    tried = 0
    for path in sorted(path for path in evil.rglob("*") if path.is_file() and path.suffix != ".json"):
        tried += 1
        for attempt in (
            lambda path: quietly(path, trust=["harmless_pkg."]),
            tk.plan_model,
            lambda path: tk.rescue(path, tmp_path / f"rescued-{path.stem}"),
        ):
            try:
                attempt(path)
            except TorchkeepError as error:
                if not isinstance(error, RebuildError):
                    break  # it cannot be opened, by the next attempt neither
    assert tried > 50
    assert list(folder.iterdir()) == []
    assert set(MARKERS.iterdir()) <= marks
    assert not trap.exists()
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert new.isdisjoint({"gone_pkg", "harmless_pkg", "antigravity", "this", "pip", "webbrowser", "pty", "smtplib"})
