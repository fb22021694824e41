"""What a model can hold, what more would cost, and whether it can learn a few examples by heart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models import TinyNet
from torchkeep.sizing import can_overfit, capacity


def net(width: int, depth: int = 2) -> nn.Sequential:
    blocks = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(8, width), *blocks, nn.Linear(width, 3))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_parameter_stands_in_one_layer() -> None:
    model = TinyNet()
    model.conv.weight.requires_grad_(False)
    report = capacity(model)
    assert report.parameters == size(model)  # the tied weight once
    assert report.trainable == size(model) - model.conv.weight.numel()
    assert {layer.path: layer.width for layer in report.layers}["conv"] == 4
    tied = next(layer for layer in report.layers if layer.path == "tied")
    assert tied.parameters == 4  # its own bias
    assert capacity(nn.DataParallel(model)).layers == report.layers


@pytest.mark.parametrize("width", [4, 64])
def test_the_levers_say_what_the_larger_model_would_have(width: int) -> None:
    model = net(width)
    levers = {lever.name: lever.factor for lever in capacity(model).levers}
    assert levers["deeper"] * size(model) == pytest.approx(size(net(width, depth=3)))
    assert levers["wider"] * size(model) == pytest.approx(size(net(2 * width)), rel=2 / width)  # biases apart


def test_a_model_without_parameters() -> None:
    report = capacity(nn.ReLU())
    assert report.layers == report.levers == () and "ReLU" in str(report)


def test_a_sound_network_learns_by_heart_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3)).eval()
    model[0].weight.requires_grad_(False)
    batch = torch.randn(32, 8), torch.randint(0, 3, (32,))
    before, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    report = can_overfit(model, batch, nn.functional.cross_entropy, lr=1e-2)
    assert report.fits and report.signal > 0.98 and report.examples == 32 and 0 < report.steps < 200
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert model[2].p == 0.5 and not model.training and not model[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "learned by heart" in str(report)


def test_one_unit_does_not_learn_by_heart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 10))
    report = can_overfit(model, (torch.randn(32, 8), torch.randint(0, 10, (32,))), nn.functional.cross_entropy)
    assert not report.fits and "not learned" in str(report)


def test_a_loss_that_is_no_number_was_not_learned() -> None:
    model = nn.Linear(2, 2)
    report = can_overfit(model, (torch.full((4, 2), float("nan")), torch.zeros(4, 2)), nn.functional.mse_loss)
    assert not report.fits and report.steps == 0
