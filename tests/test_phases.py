"""Freeze specs: as text, on models, through phases, in optimizers, through copies and files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, train_epoch
from torchkeep.errors import CheckpointNotFoundError, SelectorError
from torchkeep.freezing import held_modules


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.1)


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(1, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "blocks": nn.Sequential(*(Block() for _ in range(4))),
            "drop": nn.Dropout(0.5),
            "head": nn.Linear(4, 3),
        }
    )


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


SPEC = tk.FreezeSpec(
    [
        tk.Phase("head, drop", epochs=2),
        tk.Phase(["last 2", "drop"], epochs=1, rates={"blocks": "lr/2.6"}),
        tk.Phase("*"),
    ],
    decay_norms_and_biases=False,
)

# -- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["head", "lp-ft", "gradual", "full"])
def test_presets_are_specs_that_can_be_written_and_read(tmp_path: Path, preset: str) -> None:
    model = deep()
    spec = tk.freeze_spec(model, preset, epochs=2)
    tk.write_spec(spec, tmp_path / "spec.yaml", model=model)
    assert tk.read_spec(tmp_path / "spec.yaml") == spec
    text = (tmp_path / "spec.yaml").read_text()
    assert "#   blocks.3: " in text and "#   stem, norm: " in text
    tk.freeze(model, spec)
    assert trained(model) == ({"head.weight", "head.bias"} if preset != "full" else trained(deep()))
    assert "drop" not in held_modules(model), "the dropout before the head belongs to it"
    assert len(str(spec).splitlines()) >= 6


def test_the_gradual_preset_goes_down_in_thirds() -> None:
    phases = tk.freeze_spec(deep(), "gradual", epochs=1).phases
    assert [phase.train for phase in phases] == [
        ["head", "drop"],
        ["blocks.2", "blocks.3", "head", "drop"],
        ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head", "drop"],
        "*",
    ]
    assert list(phases[-1].rates.values()) == ["lr/2.6", "lr/6.76", "lr/17.58"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases: []", "at least one"),
        ("phases: [{train: a}, {train: b}]", "phase 1 of 2 has no epochs"),
        ("phases: [{train: a, epochs: 0}]", "lasts at least one"),
        ("phases: [{train: a, rates: {b: lr-2}}]", r"'lr-2' cannot be read.*phases\[0\]"),
        ("phases: [{train: a, rates: {b: 0}}]", "not above 0"),
        ("phases: [{train: a, layer_decay: 1.5}]", "at most 1"),
        ("phases: [{train: 're:('}]", "not a regular expression"),
        ("phases: [{train: ''}]", "not a selector"),
        ("phases: [{train: a}]\nnorm: still", "Invalid enum value 'still'"),
        ("phases: [{training: a}]", "train"),
        ("stages: []", "unknown field `stages`|missing required field `phases`"),
        ("phases: [", "no YAML"),
        ("- 1", "Expected `object`"),
    ],
)
def test_a_spec_that_cannot_be_read_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SelectorError, match=rf"(?s)spec.yaml: .*({message})"):
        tk.read_spec(tmp_path / "spec.yaml")


def test_a_spec_that_is_not_there() -> None:
    with pytest.raises(CheckpointNotFoundError):
        tk.read_spec("nowhere.yaml")
    with pytest.raises(SelectorError, match="no preset"):
        tk.freeze_spec(deep(), "half")


def test_a_selector_of_any_phase_is_checked_before_anything_changes() -> None:
    model = deep()
    spec = tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("heads")])
    with pytest.raises(SelectorError, match="phase 2: 'heads' selects no parameter"):
        tk.freeze(model, spec)
    with pytest.raises(SelectorError, match="phase 1: 'blokcs'"):
        tk.freeze(model, tk.FreezeSpec([tk.Phase("head", rates={"blokcs": 0.1})]))
    assert trained(model) == trained(deep()) and held_modules(model) == [] and tk.freeze_state(model) is None


# -- models -------------------------------------------------------------------------------------------------------


def test_phases_follow_the_epochs() -> None:
    model = deep()
    report = tk.freeze(model, SPEC)
    assert (report.phase, report.phases) == (1, 3) and "stem" in report.held
    seen = []
    for epoch in range(5):
        seen.append(tk.enter_phase(model, epoch))
        model.train()
        assert model["drop"].training and model["norm"].training == (epoch > 2)
        assert model["blocks"][0].drop.training == (epoch > 1), "dropout inside of a frozen block is off"
    assert [one if one is None else one.phase for one in seen] == [None, None, 2, 3, None]
    assert seen[2].trained and all(name.startswith("blocks") for name in seen[2].trained)
    assert trained(model) == trained(deep()) and held_modules(model) == []
    back = tk.enter_phase(model, 0)
    assert back is not None and trained(model) == {"head.weight", "head.bias"}
    assert "phase 1 of 3" in str(back) and tk.to_json(back)["phase"] == 1


def test_policies_leave_statistics_or_dropout_live() -> None:
    for norm, dropout in (("live", "frozen"), ("frozen", "live"), ("live", "live")):
        model = deep()
        tk.freeze(model, tk.FreezeSpec([tk.Phase("head")], norm=norm, dropout=dropout))
        model.train()
        assert model["norm"].training == (norm == "live")
        assert model["blocks"][1].norm.training == (norm == "live")
        assert model["blocks"][1].drop.training == (dropout == "live")
        assert trained(model) == {"head.weight", "head.bias"}
        mean = model["norm"].running_mean.clone()
        model["norm"](torch.randn(2, 4, 3, 3))
        assert torch.equal(mean, model["norm"].running_mean) == (norm == "frozen")


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "compiled", "parallel", "file", "run"])
def test_a_spec_survives(tmp_path: Path, way: str) -> None:
    model: Any = TinyNet()
    spec = tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("head, fc", epochs=1), tk.Phase("*")])
    tk.freeze(model, spec, epoch=1)
    other: Any = TinyNet()
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "compiled":
        other = torch.compile(model, backend="eager")
    elif way == "parallel":
        other = nn.DataParallel(model)
    elif way == "file":
        tk.save(nn.DataParallel(model), tmp_path / "model.safetensors")
        report = tk.load_into(other, tmp_path / "model.safetensors")
        assert any("frozen as in the file" in note for note in report.notes)
    else:
        with tk.Run(tmp_path) as run:
            run.save(0, model=model)
            run.resume(model=other)
    state = tk.freeze_state(other)
    assert state is not None and state.spec == spec and state.phase == 1
    other.train()
    inner = other._orig_mod if way == "compiled" else other.module if way == "parallel" else other
    assert trained(inner) == trained(model) and held_modules(inner) == held_modules(model) != []
    mean = inner.bn.running_mean.clone()
    other(torch.randn(4, 1, 5, 5))
    assert torch.equal(mean, inner.bn.running_mean)
    report = tk.enter_phase(other, 2)
    assert report is not None and len(trained(inner)) == 9
    assert tk.inspect(inner).freeze == tk.freeze_state(inner) and "3 of 3" in str(tk.inspect(inner))


def test_loading_freezes_again_only_what_is_the_same_model(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, "* but head")
    tk.save(model, tmp_path / "model.safetensors")
    same, other, kept, asked = TinyNet(), TinyNet(classes=7), TinyNet(), TinyNet(classes=7)
    tk.load_into(same, tmp_path / "model.safetensors")
    assert trained(same) == {"head.weight", "head.bias"} and not same.train().bn.training
    report = tk.load_into(other, tmp_path / "model.safetensors", allow="head")
    assert len(trained(other)) == 9 and any("freeze=True" in note for note in report.notes)
    tk.load_into(kept, tmp_path / "model.safetensors", freeze=False)
    assert len(trained(kept)) == 9 and held_modules(kept) == []
    tk.load_into(asked, tmp_path / "model.safetensors", allow="head", freeze=True)
    assert trained(asked) == {"head.weight", "head.bias"}
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        from_run = TinyNet()
        tk.load_into(from_run, run.open())
    assert trained(from_run) == {"head.weight", "head.bias"} and held_modules(from_run) == held_modules(model)


# -- optimizers ---------------------------------------------------------------------------------------------------


def test_groups_have_names_rates_and_decay() -> None:
    model = deep()
    tk.freeze(model, SPEC)
    groups = tk.param_groups(model, lr=0.1, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    named = {group["name"]: group for group in optimizer.param_groups}
    assert [name for name, group in named.items() if group["params"]] == ["head", "head, no decay"]
    assert named["head"]["param_names"] == ["head.weight"] and named["head"]["weight_decay"] == 0.01
    assert named["head, no decay"]["param_names"] == ["head.bias"] and named["head, no decay"]["weight_decay"] == 0
    assert "blocks.3" in named and "stem" in named
    everything = [name for group in groups for name in group["members"]]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())


def test_layer_decay_counts_steps_from_the_head() -> None:
    model = deep()
    rates = {group["name"]: group["lr"] for group in tk.param_groups(model, lr=1.0, layer_decay=0.5)}
    assert rates == {"stem": 0.5**5, **{f"blocks.{n}": 0.5 ** (4 - n) for n in range(4)}, "head": 1.0}
    with pytest.raises(SelectorError, match="no parameter of the model requires"):
        tk.param_groups(model.requires_grad_(False), lr=1.0)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw-fused", "adamw-foreach"])
@pytest.mark.parametrize("grouped", [True, False])
def test_moments_of_what_stays_are_kept_through_a_change_of_phase(kind: str, grouped: bool) -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head, fc", epochs=1), tk.Phase("head, conv", epochs=1), tk.Phase("*")]))
    make = {
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "adam": lambda params: torch.optim.Adam(params, lr=0.1),
        "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
        "adamw-foreach": lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
    }[kind]
    optimizer = make(tk.param_groups(model, lr=0.1) if grouped else [p for p in model.parameters() if p.requires_grad])
    key = "momentum_buffer" if kind == "sgd" else "exp_avg"
    train_epoch(model, optimizer)
    kept = optimizer.state[model.head.weight][key].clone()
    count = len(optimizer.param_groups)
    report = tk.enter_phase(model, 1, optimizer)
    assert report is not None and report.regrouped is not None
    assert set(report.regrouped.kept) == {"head.weight", "head.bias"}
    assert set(report.regrouped.added) == {"conv.weight", "conv.bias"}
    assert set(report.regrouped.removed) == {"fc.weight", "fc.bias"}
    assert torch.equal(optimizer.state[model.head.weight][key], kept)
    assert model.fc.weight not in optimizer.state and model.conv.weight not in optimizer.state
    assert len(optimizer.param_groups) == count and not report.regrouped.notes
    assert tk.audit(model, optimizer).ok
    train_epoch(model, optimizer)
    tk.enter_phase(model, 2, optimizer)
    train_epoch(model, optimizer)
    assert len(optimizer.state) == 9


def test_rates_change_with_the_phase_and_schedules_go_on() -> None:
    def lrs(rate: Any, scheduler: Any) -> list[float]:
        model = TinyNet()
        tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=3), tk.Phase("head", rates={"head": rate})]))
        optimizer = torch.optim.SGD(tk.param_groups(model, lr=0.8), lr=0.8, momentum=0.5)
        sched = scheduler(optimizer)
        seen = []
        for epoch in range(8):
            tk.enter_phase(model, epoch, optimizer, sched)
            group = next(group for group in optimizer.param_groups if group["name"] == "head")
            seen.append(group["lr"])
            optimizer.step()
            sched.step()
        return seen

    lr = torch.optim.lr_scheduler
    for make in (
        lambda o: lr.StepLR(o, 2, 0.5),
        lambda o: lr.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lr.CosineAnnealingLR(o, 8),
        lambda o: lr.OneCycleLR(o, 0.8, total_steps=10),
        lambda o: lr.SequentialLR(o, [lr.ConstantLR(o, 0.5), lr.LambdaLR(o, lambda e: 0.8**e)], [4]),
    ):
        plain, lower = lrs(1.0, make), lrs("lr/4", make)
        assert lower[:3] == plain[:3]
        assert lower[3:] == pytest.approx([value / 4 for value in plain[3:]])


def test_a_scheduler_that_cannot_follow_is_refused_before_anything_moves() -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("*")]))
    optimizer = torch.optim.SGD([{"params": [model.head.weight]}, {"params": [model.head.bias], "lr": 0.2}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    with pytest.raises(SelectorError, match="no group for them") as caught:
        tk.enter_phase(model, 1, optimizer, scheduler)
    assert "tk.param_groups" in caught.value.hint
    assert trained(model) == {"head.weight", "head.bias"} and tk.freeze_state(model).phase == 0
    report = tk.enter_phase(model, 1, optimizer)
    assert "a group of their own" in report.regrouped.notes[0] and len(optimizer.param_groups) == 3
    with pytest.raises(SelectorError, match="not frozen by a spec"):
        tk.enter_phase(TinyNet(), 1)


def test_an_optimizer_of_all_parameters_gets_back_what_left_it() -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("fc, conv", epochs=1), tk.Phase("*")]))
    rest = [one for name, one in model.named_parameters() if not name.startswith("conv")]
    optimizer = torch.optim.SGD([{"params": rest}, {"params": list(model.conv.parameters()), "lr": 1.0}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    sizes = [[len(group["params"]) for group in optimizer.param_groups]]
    for epoch in (1, 2, 0, 2):
        tk.enter_phase(model, epoch, optimizer, scheduler)
        sizes.append([len(group["params"]) for group in optimizer.param_groups])
    assert sizes == [[7, 2], [2, 2], [7, 2], [2, 0], [7, 2]]
