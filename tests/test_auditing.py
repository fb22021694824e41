"""Auditing a model and its optimizer, and making sure that what is frozen has not moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchkeep as tk
from models import TinyNet, train_epoch
from torchkeep.errors import FrozenChangedError, LoadError


def codes(model: nn.Module, optimizer: Any = None) -> set[str]:
    return set(tk.audit(model, optimizer).codes)


def find(model: nn.Module, code: str, optimizer: Any = None) -> tuple[str, ...]:
    return next(one.names for one in tk.audit(model, optimizer).findings if one.code == code)


def test_a_model_frozen_by_torchkeep_has_no_findings() -> None:
    model = TinyNet()
    tk.freeze(model, "* but head")
    optimizer = torch.optim.AdamW(tk.param_groups(model, lr=0.1))
    model.train()
    report = tk.audit(model, optimizer)
    assert report.ok and not report.findings and "nothing found" in str(report)
    assert tk.to_json(report)["trainable"] == 15


def test_requires_grad_alone_is_found_out() -> None:
    model = TinyNet()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    model.train()
    assert codes(model, torch.optim.SGD(model.parameters(), lr=0.1)) == {"moving-statistics", "frozen-in-optimizer"}
    assert find(model, "moving-statistics") == ("bn",)
    model.bn.eval()
    assert codes(model, torch.optim.SGD(model.head.parameters(), lr=0.1)) == set()


def test_statistics_of_norms_without_parameters_of_their_own() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    assert find(model, "moving-statistics") == ("0.1",)


def test_trained_in_no_group_and_groups_that_do_not_learn() -> None:
    model = TinyNet()
    groups = [
        {"params": model.conv.parameters(), "lr": 0.0},
        {"params": [*model.fc.parameters(), nn.Parameter(torch.ones(2))]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert codes(model, optimizer) == {"in-no-group", "zero-rate", "not-in-model"}
    assert set(find(model, "in-no-group", optimizer)) == {
        "bn.weight",
        "bn.bias",
        "tied.bias",
        "head.weight",
        "head.bias",
    }
    assert find(model, "zero-rate", optimizer) == ("0",)


def test_stale_gradients_and_the_weight_decay_they_let_in() -> None:
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    train_epoch(model, optimizer)
    model.fc.requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    before = model.fc.bias.clone()
    optimizer.step()
    assert not torch.equal(before, model.fc.bias), "this is what the finding is about"
    report = tk.audit(model, optimizer)
    assert {"stale-gradient", "decay-on-frozen", "frozen-in-optimizer"} <= report.codes and not report.ok
    assert report.findings[0].severity == "danger"
    assert codes(model) == {"stale-gradient", "frozen-tie"}
    tk.freeze(model, "fc")
    assert codes(model) == {"frozen-tie"}


def test_shared_memory_that_is_half_frozen() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 1)})
    model["b"].weight = nn.Parameter(model["a"].weight.detach())
    model["a"].requires_grad_(False)
    assert find(model, "half-frozen") == ("a.weight", "b.weight")
    tied = TinyNet()
    tk.freeze(tied, "fc")
    assert find(tied, "frozen-tie") == ("fc.weight",)


def test_what_is_neither_trained_nor_saved() -> None:
    class Sloppy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)
            self.scale = torch.ones(3)
            self.table = {"a": torch.zeros(2)}
            self.layers = [nn.Linear(1, 1)]
            self.temperatures = [nn.Parameter(torch.ones(1))]
            self.same = [self.fc, self.fc.weight]

    model = nn.ModuleDict({"inner": Sloppy()})
    assert set(find(model, "plain-tensor")) == {"inner.scale", "inner.table"}
    assert find(model, "unregistered-module") == ("inner.layers",)
    assert find(model, "unregistered-parameter") == ("inner.temperatures",)


def test_a_held_module_that_is_trained() -> None:
    model = TinyNet()
    tk.freeze(model, "conv, bn")
    model.bn.weight.requires_grad_(True)
    assert find(model, "held-but-trained") == ("bn",)


def test_live_dropout_is_told() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    report = tk.audit(model)
    assert report.codes == {"live-dropout"} and report.ok


# -- assert_frozen ------------------------------------------------------------------------------------------------


def test_what_stands_still_passes_and_what_moves_is_named(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, "* but head")
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model, optimizer=optimizer)
    tk.save(model, tmp_path / "model.safetensors")
    before = tk.fingerprint(model)
    train_epoch(model, optimizer)
    everything = (
        before,
        run.snapshots[0],
        run.open(1),
        tmp_path / "model.safetensors",
        tk.open(tmp_path / "model.safetensors"),
    )
    for since in everything:
        report = tk.assert_frozen(model, since)
        assert len(report.parameters) == 8 and {"bn.running_mean", "bn.num_batches_tracked"} <= set(report.buffers)
    assert tk.assert_frozen(model, before).unchecked == ()

    with torch.no_grad():
        model.fc.weight.view(-1)[0].view(torch.int32).bitwise_xor_(1)  # the last bit of one value
    for since in everything:
        with pytest.raises(FrozenChangedError, match=r"fc\.weight") as caught:
            tk.assert_frozen(model, since)
        assert set(caught.value.changed) == {"fc.weight", "tied.weight"}
    assert isinstance(caught.value, AssertionError)


def test_statistics_that_move_are_explained() -> None:
    model = TinyNet().requires_grad_(False)
    before = tk.fingerprint(model)
    model.train()(torch.randn(4, 1, 5, 5))
    with pytest.raises(FrozenChangedError, match="train mode") as caught:
        tk.assert_frozen(model, before)
    assert "bn.running_mean" in caught.value.changed


def test_a_module_that_writes_buffers_even_in_eval_mode_is_detected() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(x)

    model = Counting()
    tk.freeze(model, "*")
    before = tk.fingerprint(model)
    model.train()(torch.ones(1, 1))
    with pytest.raises(FrozenChangedError, match="even in eval mode") as caught:
        tk.assert_frozen(model, before)
    assert caught.value.changed == ("calls",)


def test_misuse_of_assert_frozen_is_named(tmp_path: Path) -> None:
    model = TinyNet()
    before = tk.fingerprint(model)
    with pytest.raises(FrozenChangedError, match="nothing in the model is frozen"):
        tk.assert_frozen(model, before)
    assert len(tk.assert_frozen(model, before, "conv").parameters) == 2
    tk.freeze(model, "*")
    with pytest.raises(LoadError, match="cannot be compared with a int"):
        tk.assert_frozen(model, 3)
    tk.save(nn.Linear(1, 1), tmp_path / "other.safetensors")
    with pytest.raises(LoadError, match=r"has no bn\.bias"):
        tk.assert_frozen(model, tmp_path / "other.safetensors")
