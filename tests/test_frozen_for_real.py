"""A real ImageNet network, fully frozen, sees thirty batches of other images in train mode: not one bit may move."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import torchkeep as tk

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import PIXEL_MEAN, PIXEL_SCALE, EfficientNetLite0, imagenet_weights

BATCHES = 30


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    model = EfficientNetLite0()
    assert tk.load_into(model, imagenet_weights()).coverage == 1
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Handwritten digits, which the network has never seen, enlarged and in three channels."""
    digits = torch.tensor(load_digits().images[: 4 * BATCHES], dtype=torch.float32)[:, None] * (255 / 16)
    digits = functional.interpolate(digits, size=(32, 32), mode="bilinear", align_corners=False)
    return ((digits - PIXEL_MEAN) / PIXEL_SCALE).expand(-1, 3, -1, -1)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def train_on(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    for batch in images.split(4)[:BATCHES]:
        for module in (model, *model.children()):
            module.train()
        output = model(batch)
        if optimizer is not None:
            output.logsumexp(1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def predict(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(images[:8])


def saved_and_loaded(model: nn.Module, folder: Path) -> nn.Module:
    tk.save(model, folder / "frozen.safetensors")
    other = EfficientNetLite0()
    tk.load_into(other, folder / "frozen.safetensors")
    return other


def resumed(model: nn.Module, folder: Path) -> nn.Module:
    with tk.Run(folder / "run") as run:
        run.save(0, model=model)
        other = EfficientNetLite0()
        run.resume(model=other)
    return other


WAYS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "itself": lambda model, folder: model,
    "saved and loaded": saved_and_loaded,
    "resumed": resumed,
    "deep copy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "DataParallel": lambda model, folder: nn.DataParallel(model),
    "compiled": lambda model, folder: torch.compile(model, backend="aot_eager"),
}


def test_requires_grad_alone_lets_all_statistics_move(pretrained: nn.Module, images: Tensor) -> None:
    """The control: what the promise is about happens without it."""
    model = copy.deepcopy(pretrained).requires_grad_(False)
    before, expected = tk.fingerprint(model), predict(model, images)
    with torch.no_grad():
        train_on(model, images)
    moved = [name for name, digest in tk.fingerprint(model).digests.items() if digest != before.digests[name]]
    assert len([name for name in moved if name.endswith("running_mean")]) == 49
    assert not torch.equal(predict(model, images), expected)
    with pytest.raises(tk.errors.FrozenChangedError, match="train mode"):
        tk.assert_frozen(model.train(), before)


@pytest.mark.parametrize("way", WAYS)
def test_frozen_as_a_whole_not_one_bit_moves(tmp_path: Path, pretrained: nn.Module, images: Tensor, way: str) -> None:
    frozen = copy.deepcopy(pretrained)
    tk.freeze(frozen, "*")
    before, expected = tk.fingerprint(frozen), predict(frozen, images)
    model = WAYS[way](frozen, tmp_path)
    with torch.no_grad():
        train_on(model, images)
    report = tk.assert_frozen(model, before)
    assert len(report.parameters) == 149 and len(report.buffers) == 147 and not report.unchecked
    assert torch.equal(predict(model, images), expected)


def test_a_head_is_trained_and_the_backbone_stands_still(pretrained: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(pretrained)
    tk.surgery.resize_head(model, classes=10)
    tk.freeze(model, tk.freeze_spec(model, "head"))
    optimizer = torch.optim.AdamW(tk.param_groups(model, lr=0.01, weight_decay=0.1))
    before, head = tk.fingerprint(model), copy.deepcopy(model._fc)
    train_on(model, images, optimizer)
    assert len(tk.assert_frozen(model, before).parameters) == 147
    assert not torch.equal(model._fc.weight, head.weight) and model._dropout.training
    assert tk.audit(model, optimizer).ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself, while it is imported
def test_under_the_compiler_a_frozen_part_stands_still() -> None:
    """With the compiler's own code generator, on a network that is small enough to be compiled in a test."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(4 * 6 * 6, 3))
    tk.freeze(model, "0")
    before = tk.fingerprint(model)
    compiled = torch.compile(model)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    for _ in range(5):
        compiled.train()
        compiled(torch.randn(4, 1, 8, 8)).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    report = tk.assert_frozen(compiled, before)
    assert len(report.parameters) == 4 and len(report.buffers) == 3
    still = torch.randn(4, 1, 8, 8)
    assert torch.equal(compiled(still), compiled(still)), "no dropout"
