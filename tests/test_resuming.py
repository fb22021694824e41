"""Resuming: everything that is tracked comes back by name, whatever it is wrapped in, in the phase it was in."""

from __future__ import annotations

import copy
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchkeep as tk
from models import SCHEDULERS, TinyNet, state_bits, train_epoch
from torchkeep.errors import IncompatibleCheckpointError, ResumeWarning, SaveError, UnsavableError


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


class Stopper:
    """Early stopping as many write it: a few numbers."""

    def __init__(self) -> None:
        self.best, self.bad, self.seen = float("inf"), 0, Counter()

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


# -- what is tracked ----------------------------------------------------------------------------------------------


def test_anything_with_a_state_is_tracked_by_name(tmp_path: Path) -> None:
    def everything(value: int) -> dict[str, Any]:
        seed(value)
        model, critic = TinyNet(), nn.Linear(2, 1)
        return {
            "model": model,
            "critic": critic,
            "ema": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
            "optimizer": torch.optim.AdamW(model.parameters()),
            "critic_optimizer": torch.optim.SGD([*critic.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9),
            "scaler": torch.amp.GradScaler("cpu", init_scale=float(2**value)),
            "stopper": Stopper(),
            "shuffle": torch.Generator().manual_seed(value),
            "noise": np.random.default_rng(value),
            "old_noise": np.random.RandomState(value),
            "choice": random.Random(value),
        }

    first = everything(3)
    train_epoch(first["model"], first["optimizer"])
    first["ema"].update_parameters(first["model"])
    first["critic"](torch.ones(1, 2)).sum().backward()
    first["critic_optimizer"].step()
    first["stopper"].bad, first["stopper"].seen = 4, Counter({3: 2})
    with tk.Run(tmp_path) as run:
        run.save(0, **first)
        names = run.digests()
    assert {"ema/module.conv.weight", "ema/n_averaged", "critic/weight"} <= names.keys()
    assert {
        "critic_optimizer/critic:weight/momentum_buffer",
        "critic_optimizer/head.bias/momentum_buffer",
    } <= names.keys()

    second = everything(5)
    with tk.Run(tmp_path) as run:
        assert run.resume(**second) == 1
        assert set(run.last_resume.restored) == {*first, "rng"}
    for name in ("model", "critic", "ema"):
        assert state_bits(first[name]) == state_bits(second[name]), name
    assert state_bits(first["critic"], first["critic_optimizer"]) == state_bits(
        second["critic"], second["critic_optimizer"]
    )
    assert second["scaler"].state_dict() == first["scaler"].state_dict()
    assert vars(second["stopper"]) == vars(first["stopper"]) and type(second["stopper"].seen) is Counter
    draw = {
        "shuffle": lambda one: torch.rand(3, generator=one).tolist(),
        "noise": lambda one: one.random(3).tolist(),
        "old_noise": lambda one: one.rand(3).tolist(),
        "choice": lambda one: [one.random() for _ in range(3)],
    }
    for name, numbers in draw.items():
        assert numbers(first[name]) == numbers(second[name]), name


def test_what_has_no_state_is_refused_by_name(tmp_path: Path) -> None:
    run = tk.Run(tmp_path)
    for wrong, match in (
        ({"stopper": object()}, "stopper= is a object, which is no object that can be tracked"),
        ({"rng": Stopper()}, "name is in use"),
        ({"model": Stopper()}, "which is no nn.Module"),
    ):
        with pytest.raises(SaveError, match=match):
            run.save(0, **wrong)
    broken = Stopper()
    broken.seen = {"f": print}
    with pytest.raises(UnsavableError) as caught:
        run.save(0, model=nn.Linear(1, 1), stopper=broken)
    assert caught.value.path == "stopper.seen.f"


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, stopper=Stopper())
    with tk.Run(tmp_path) as run:
        with pytest.warns(ResumeWarning, match="holds a stopper, and none was given"):
            run.resume(model=model)
        with pytest.raises(IncompatibleCheckpointError, match="holds no ema"):
            run.resume(model=model, ema=model)
        with pytest.raises(IncompatibleCheckpointError, match=r"holds the state of a test_resuming\.Stopper"):
            run.resume(stopper=torch.amp.GradScaler("cpu"))


def test_one_that_refuses_leaves_all_others_as_they_were(tmp_path: Path) -> None:
    class Refusing(Stopper):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            if state["bad"]:
                raise ValueError("no")
            super().load_state_dict(state)

    Refusing.__qualname__, Refusing.__module__ = Stopper.__qualname__, Stopper.__module__
    model, generator, stopper = nn.Linear(1, 1), torch.Generator().manual_seed(1), Stopper()
    stopper.bad = 1
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, generator=generator, stopper=stopper)
        other, fresh = nn.Linear(1, 1), torch.Generator().manual_seed(2)
        before = state_bits(other), fresh.get_state().tolist()
        with pytest.raises(IncompatibleCheckpointError, match="the stopper refuses"):
            run.resume(model=other, generator=fresh, stopper=Refusing())
        assert (state_bits(other), fresh.get_state().tolist()) == before


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_come_back_with_the_types_of_their_values(tmp_path: Path, scheduler: str) -> None:
    if scheduler == "none":
        return
    model = nn.Linear(1, 1)
    opt = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9))
    sched = SCHEDULERS[scheduler](opt)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt, scheduler=sched)
        other = torch.optim.Adam(model.parameters())
        other_sched = SCHEDULERS[scheduler](other)
        run.resume(optimizer=other, scheduler=other_sched)
    assert (
        other.param_groups[0]["betas"] == opt.param_groups[0]["betas"] and type(other.param_groups[0]["betas"]) is tuple
    )

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value), {key: shape(child) for key, child in value.items()}
        return (type(value), [shape(child) for child in value]) if isinstance(value, (list, tuple)) else repr(value)

    plain = {key: shape(value) for key, value in sched.state_dict().items() if "fn" not in key and key[0] != "_"}
    assert plain == {key: shape(value) for key, value in other_sched.state_dict().items() if key in plain}


# -- wrappers -----------------------------------------------------------------------------------------------------


def nest(wrap: Any) -> nn.Module:
    torch.manual_seed(1)
    return nn.ModuleDict({"encoder": wrap(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))), "head": nn.Linear(3, 1)})


WRAPS = {
    "plain": lambda module: module,
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module, backend="eager")),
}


@pytest.mark.parametrize("saved", WRAPS)
@pytest.mark.parametrize("resumed", WRAPS)
def test_wrappers_do_not_show_wherever_they_are(tmp_path: Path, saved: str, resumed: str) -> None:
    model, other = WRAPS[saved](nest(WRAPS[saved])), WRAPS[resumed](nest(WRAPS[resumed]))
    opt, other_opt = torch.optim.Adam(model.parameters()), torch.optim.Adam(list(other.parameters())[::-1])
    tk.freeze(model, "encoder")
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    opt.step()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        assert {name for name in run.digests() if name.startswith("model/")} >= {
            "model/encoder.0.weight",
            "model/head.bias",
        }
        run.resume(model=other, optimizer=other_opt)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.requires_grad == theirs.requires_grad
        assert torch.equal(opt.state[mine]["exp_avg"], other_opt.state[theirs]["exp_avg"])
    assert [held.removesuffix(".0") for held in tk.inspect(other).frozen] == ["encoder", "encoder", "encoder.1"]
    other.train()
    batch_norm = next(module for module in other.modules() if isinstance(module, nn.BatchNorm1d))
    assert not batch_norm.training
    report = tk.load_into(WRAPS[resumed](nest(WRAPS[resumed])), tk.Run(tmp_path).open())
    assert report.coverage == 1


# -- gradients ----------------------------------------------------------------------------------------------------


def accumulate(model: nn.Module, opt: torch.optim.Optimizer, steps: range, every: int = 4) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 1, 5, 5, generator=generator)).logsumexp(1).mean().backward()
        if (step + 1) % every == 0:
            opt.step()
            opt.zero_grad()


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("gradients", [None, True])
def test_an_accumulation_goes_on_in_the_middle(tmp_path: Path, stop: int, gradients: bool | None) -> None:
    seed(0)
    model = TinyNet()
    opt = torch.optim.AdamW(model.parameters())
    accumulate(model, opt, range(8))
    expected = state_bits(model, opt)
    seed(0)
    model = TinyNet()
    opt = torch.optim.AdamW(model.parameters())
    accumulate(model, opt, range(stop))
    with tk.Run(tmp_path) as run:
        run.save(stop, model=model, optimizer=opt, gradients=gradients)
    seed(9)
    model = TinyNet()
    opt = torch.optim.AdamW(model.parameters())
    accumulate(model, opt, range(3))  # leaves gradients that must go
    with tk.Run(tmp_path) as run:
        assert run.resume(model=model, optimizer=opt) == stop + 1
    accumulate(model, opt, range(stop, 8))
    assert state_bits(model, opt) == expected


@pytest.mark.parametrize("to_none", [True, False])
def test_only_gradients_that_wait_are_kept(tmp_path: Path, to_none: bool) -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def kept(**options: Any) -> bool:
        run.save(0, **options)
        return "gradients/model/weight" in run.digests()

    def backward() -> None:
        model(torch.ones(1, 2)).sum().backward()

    with tk.Run(tmp_path) as run:
        assert not kept(model=model, optimizer=opt)
        backward()
        assert kept() and not kept(gradients=False)
        opt.step()
        assert not kept() and kept(gradients=True)
        backward()
        assert kept(), "more was added to what was applied"
        opt.step()
        opt.zero_grad(set_to_none=to_none)
        backward()
        assert kept(), "a new one, perhaps at the same address"
        opt.step()
        assert not kept()
        run.resume()
    assert model.weight.grad is None


# -- phases -------------------------------------------------------------------------------------------------------


def phased(value: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    seed(value)
    model = TinyNet()
    spec = tk.FreezeSpec(
        [
            tk.Phase("head", epochs=2),
            tk.Phase("head, fc", epochs=1, rates={"fc": "lr/2.6"}),
            tk.Phase("*", rates={"fc": 0.5, "conv, bn": "lr/10"}),
        ]
    )
    tk.freeze(model, spec)
    opt = torch.optim.AdamW(tk.param_groups(model, lr=0.01, weight_decay=0.1))
    return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)


def epochs(model: nn.Module, opt: Any, sched: Any, numbers: range) -> list[Any]:
    for epoch in numbers:
        tk.enter_phase(model, epoch, opt, sched)
        train_epoch(model, opt, sched)
    return [[group["lr"] for group in opt.param_groups], state_bits(model, opt), sched.state_dict()]


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_phase_is_resumed_by_a_script_that_starts_in_the_first(tmp_path: Path, stop: int) -> None:
    expected = epochs(*phased(0), range(6))
    model, opt, sched = phased(0)
    epochs(model, opt, sched, range(stop))
    with tk.Run(tmp_path) as run:
        run.save(stop - 1, model=model, optimizer=opt, scheduler=sched)
    model, opt, sched = phased(7)
    with tk.Run(tmp_path) as run:
        start = run.resume(model=model, optimizer=opt, scheduler=sched)
        assert start == stop and run.last_resume.lost == ()
    state = tk.freeze_state(model)
    assert state is not None and state.phase == (0 if stop < 3 else 1 if stop == 3 else 2)
    assert epochs(model, opt, sched, range(start, 6)) == expected


def test_another_spec_than_the_saved_one_is_said(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head")]))
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        other = TinyNet()
        tk.freeze(other, tk.FreezeSpec([tk.Phase("*")]))
        with pytest.warns(ResumeWarning, match="spec of the snapshot is used"):
            run.resume(model=other)
        assert tk.freeze_state(other) == tk.freeze_state(model)
        plain = TinyNet()
        run.save(1, model=plain)
        with pytest.warns(ResumeWarning, match="keeps its own"):
            run.resume(model=other)
        assert tk.freeze_state(other) == tk.freeze_state(model) and other.conv.weight.requires_grad


# -- leaving on SIGTERM -------------------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys, time, torch, torchkeep as tk
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    data = torch.utils.data.DataLoader(torch.arange(6.0), batch_size=1, shuffle=True)
    with tk.Run({path!r}, sigterm={sigterm}) as run:
        run.resume(model=model)
        for epoch in range(run.epoch, 3):
            for batch in run.batches(data):
                print("batch", epoch, batch.item(), flush=True)
                with torch.no_grad():
                    model.weight.mul_(torch.rand(()))
                if len(sys.argv) > 1 and run.position().steps == int(sys.argv[1]):
                    os.kill(os.getpid(), signal.SIGTERM)
            run.save(epoch)
        print("end", model.weight.item())
"""


def run_script(path: Path, *args: str, sigterm: bool = True) -> tuple[int, list[str]]:
    code = textwrap.dedent(SCRIPT.format(path=str(path), sigterm=sigterm))
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("when", ["5", "6"])
def test_on_sigterm_the_run_saves_between_two_batches_and_leaves(tmp_path: Path, when: str) -> None:
    code, whole = run_script(tmp_path / "whole")
    assert code == 0 and len(whole) == 19
    code, first = run_script(tmp_path / "run", when)
    assert code == 75 and len(first) == int(when)
    code, rest = run_script(tmp_path / "run")
    assert code == 0 and first + rest == whole
    assert tk.verify(tmp_path / "run").ok


def test_without_asking_for_it_sigterm_ends_the_process(tmp_path: Path) -> None:
    code, lines = run_script(tmp_path, "2", sigterm=False)
    assert code == -signal.SIGTERM and len(lines) == 2


def test_sigterm_is_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with tk.Run(tmp_path, sigterm=True) as run:
        run.log(a=1)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_deep_copy_of_the_model_is_not_what_is_tracked(tmp_path: Path) -> None:
    model = TinyNet()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        frozen = copy.deepcopy(model)
        train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1))
        run.resume()
        assert state_bits(model) == state_bits(frozen)
