"""Corners of freezing and resuming in which something once diverged without a word."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

import torchkeep as tk
from models import TinyNet, state_bits, train_epoch
from test_position import Calm, Noisy
from torchkeep.errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    LoadError,
    ResumeWarning,
    SelectorError,
    UnsavableError,
)
from torchkeep.freezing import held_modules


def seed(value: int) -> None:
    torch.manual_seed(value), random.seed(value), np.random.seed(value)


# -- memory order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_moments_and_gradients_lie_in_memory_as_their_parameters_do(tmp_path: Path, kind: str, fused: bool) -> None:
    def made() -> tuple[nn.Module, Any]:
        seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        return model, getattr(torch.optim, kind)(model.parameters(), lr=0.1, fused=fused, **options)

    def steps(model: nn.Module, optimizer: Any, numbers: range) -> None:
        for number in numbers:
            images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(number))
            model(images.to(memory_format=torch.channels_last)).square().mean().backward()
            if number % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

    whole = made()
    steps(*whole, range(9))
    for stop in (4, 5):
        cut = made()
        steps(*cut, range(stop))
        with tk.Run(tmp_path / f"{stop}") as run:
            run.save(0, model=cut[0], optimizer=cut[1])
            again = made()
            run.resume(model=again[0], optimizer=again[1])
        steps(*again, range(stop, 9))
        assert state_bits(*again) == state_bits(*whole), stop


# -- several loaders ----------------------------------------------------------------------------------------------


def shared_generator() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(4)
    return DataLoader(Calm(), 2, shuffle=True, generator=generator), DataLoader(Calm(6), 2, generator=generator)


def two_noisy() -> tuple[Any, Any]:
    return DataLoader(Noisy(), 2, shuffle=True), DataLoader(Noisy(14), 2, shuffle=True)


def two_stateful() -> tuple[Any, Any]:
    options: dict[str, Any] = {"batch_size": 2, "shuffle": True}
    first = StatefulDataLoader(Noisy(13), generator=torch.Generator().manual_seed(1), **options)
    return first, StatefulDataLoader(Noisy(14), generator=torch.Generator().manual_seed(2), **options)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(
    ("zipped", "stop"),
    [(True, (0, 2)), (True, (1, 1)), (False, (0, 2)), (False, (0, 7)), (False, (1, 1)), (False, (1, 7))],
)
@pytest.mark.parametrize("loaders", [shared_generator, two_noisy, two_stateful])
def test_loaders_side_by_side_and_one_after_the_other(tmp_path: Path, loaders: Any, zipped: bool, stop: Any) -> None:
    def train(run: tk.Run, model: nn.Module, pair: Any, stop: Any = None) -> list[Any]:
        seen: list[Any] = []

        def step(*batches: Tensor) -> bool:
            seen.append(([batch.tolist() for batch in batches], torch.rand(()).item(), random.random()))
            if stop == (run.epoch, run.position().taken):
                run.save(0, model=model)
                return True
            return False

        for _ in range(run.epoch, 3):
            first, second = (
                run.batches(loader, name=name) for loader, name in zip(pair, ("train", "val"), strict=True)
            )
            for batches in zip(first, second, strict=False) if zipped else first:
                if step(*(batches if zipped else [batches])):
                    return seen
            if not zipped:
                seen += [batch.tolist() for batch in second]
        return seen

    seed(0)
    whole = train(tk.Run(tmp_path / "whole"), nn.Linear(1, 1), loaders())
    seed(0)
    with tk.Run(tmp_path / "run") as run:
        before = train(run, nn.Linear(1, 1), loaders(), stop)
    seed(9)
    with tk.Run(tmp_path / "run") as run:
        pair, model = loaders(), nn.Linear(1, 1)
        run.resume(model=model)
        after = train(run, model, pair)
    assert before == whole[: len(before)] and after == whole[len(before) :]


def test_a_tracked_generator_is_where_it_was_when_the_epoch_began(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)

    def made() -> tuple[torch.Generator, Any]:
        generator = torch.Generator().manual_seed(2)
        return generator, DataLoader(Calm(), 2, sampler=Hidden(generator))

    generator, loader = made()
    with tk.Run(tmp_path) as run:
        batches = run.batches(loader)
        run.save(0, model=model, shuffle=generator)  # so that it is tracked
        for _ in range(3):
            next(batches)
        run.save(1)
        rest = [batch.tolist() for batch in batches]
        later = [batch.tolist() for batch in run.batches(loader)]
    with tk.Run(tmp_path) as run:
        generator, loader = made()
        run.resume(model=model, shuffle=generator)
        assert [batch.tolist() for batch in run.batches(loader)] == rest
        assert [batch.tolist() for batch in run.batches(loader)] == later


class Hidden(Sampler[int]):
    """A sampler whose generator is not where one would look for it."""

    def __init__(self, random_source: torch.Generator) -> None:
        self.hidden = random_source

    def __len__(self) -> int:
        return 13

    def __iter__(self) -> Any:
        return iter(torch.randperm(13, generator=self.hidden).tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_order_that_cannot_be_had_again_is_said(tmp_path: Path, workers: int) -> None:
    model, loader = nn.Linear(1, 1), DataLoader(Calm(), 2, sampler=Hidden(torch.Generator()), num_workers=workers)
    with tk.Run(tmp_path) as run:
        batches = run.batches(loader)
        next(batches), next(batches)
        run.save(0, model=model)
        batches.close()
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        with pytest.warns(ResumeWarning, match="in another order"):
            list(run.batches(loader))


def test_a_loop_that_an_exception_ends_is_saved_where_it_was(tmp_path: Path) -> None:
    model, loader = nn.Linear(1, 1), DataLoader(Calm(), 2)
    with tk.Run(tmp_path) as run:
        try:
            for batch in run.batches(loader):
                if batch[0, 0] == 6:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            run.save(0, model=model)
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        assert run.epoch == 0 and next(run.batches(loader)).tolist() == [[8.0], [9.0]]


def test_resuming_inside_a_loop_ends_the_loop(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        with pytest.raises(RuntimeError, match="leave the loop"):
            for _ in run.batches([1, 2, 3]):
                run.resume()


# -- SIGTERM ------------------------------------------------------------------------------------------------------

VALIDATING = """
    import os, signal, sys, time, torch, torchkeep as tk
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    train = torch.utils.data.DataLoader(torch.arange(4.0), batch_size=1, shuffle=True, num_workers={workers})
    val = torch.utils.data.DataLoader(torch.arange(3.0), batch_size=1)
    with tk.Run({path!r}, sigterm=True) as run:
        run.resume(model=model)
        for epoch in range(run.epoch, 2):
            for batch in run.batches(train):
                print("train", epoch, batch.item(), torch.rand(()).item(), flush=True)
                if len(sys.argv) > 1 and "{group}" and run.position().steps == 2:
                    os.killpg(0, signal.SIGTERM); time.sleep(1)
            for batch in run.batches(val, name="val"):
                print("val", epoch, batch.item(), flush=True)
                if len(sys.argv) > 1 and not "{group}" and run.position("val").steps == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
            print("end", epoch, flush=True)
            run.save(epoch)
"""


@pytest.mark.parametrize(("workers", "group"), [(0, ""), (1, "yes")])
def test_sigterm_waits_for_the_loader_of_the_training_and_spares_its_workers(
    tmp_path: Path, workers: int, group: str
) -> None:
    def play(name: str, *args: str) -> tuple[int, list[str]]:
        code = textwrap.dedent(VALIDATING.format(path=str(tmp_path / name), workers=workers, group=group))
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, start_new_session=True
        )
        return done.returncode, done.stdout.splitlines()

    code, whole = play("whole")
    assert code == 0 and len(whole) == 16
    code, first = play("run", "now")
    assert code == 75
    code, rest = play("run")
    assert code == 0 and first + rest == whole


# -- optimizers and phases ----------------------------------------------------------------------------------------


def test_lbfgs_follows_the_phases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tk.freeze(model, tk.FreezeSpec([tk.Phase("*", epochs=1), tk.Phase("1", epochs=1), tk.Phase("*")]))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def step(target: float) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (model(torch.ones(2, 2)) - target).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    step(1.0)
    report = tk.enter_phase(model, 1, optimizer)
    assert any("begins anew" in note for note in report.regrouped.notes)
    before = tk.fingerprint(model)
    step(2.0)
    assert len(tk.assert_frozen(model, before).parameters) == 2
    tk.enter_phase(model, 2, optimizer)
    step(3.0)
    assert tk.fingerprint(model).digests["0.weight"] != before.digests["0.weight"]
    tk.freeze(model, "0")
    assert not tk.audit(model, optimizer).ok and tk.audit(model, optimizer).findings[0].severity == "danger"


def test_several_optimizers_keep_what_is_theirs() -> None:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("*")]))
    body = torch.optim.SGD([*model.conv.parameters(), *model.bn.parameters()], lr=0.1)
    rest = torch.optim.Adam([*model.fc.parameters(), model.tied.bias, *model.head.parameters()])
    for epoch, sizes in ((0, (4, 5)), (1, (4, 5)), (0, (0, 2)), (1, (4, 5))):
        tk.enter_phase(model, epoch, [body, rest])
        assert (len(body.param_groups[0]["params"]), len(rest.param_groups[0]["params"])) == sizes
    model.train()(torch.randn(4, 1, 5, 5)).sum().backward()
    assert tk.audit(model, [body, rest]).ok and not tk.audit(model, body).ok


def test_rates_that_cannot_be_followed_are_said() -> None:
    model = TinyNet()
    tk.freeze(model, tk.freeze_spec(model, "lp-ft", epochs=1))
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "not applied" in tk.enter_phase(model, 1, plain).regrouped.notes[0]
    tk.enter_phase(model, 0)
    grouped = torch.optim.SGD(tk.param_groups(model, lr=0.1))
    torch.optim.lr_scheduler.StepLR(grouped, 1)
    assert "give it to enter_phase" in tk.enter_phase(model, 1, grouped).regrouped.notes[0]
    with pytest.raises(ValueError, match="layer_decay is -1"):
        tk.param_groups(model, lr=0.1, layer_decay=-1)


def test_going_back_to_a_snapshot_of_an_earlier_phase(tmp_path: Path) -> None:
    for kind in ("AdamW", "Adagrad"):
        model = TinyNet()
        tk.freeze(model, tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("*")]))
        optimizer = getattr(torch.optim, kind)(tk.param_groups(model, lr=0.01))
        with tk.Run(tmp_path / kind) as run:
            train_epoch(model, optimizer)
            run.save(0, model=model, optimizer=optimizer)
            before = state_bits(model, optimizer)
            tk.enter_phase(model, 1, optimizer)
            train_epoch(model, optimizer)
            run.save(1)
            run.resume(snapshot=run.snapshots[0])
            assert state_bits(model, optimizer) == before and tk.freeze_state(model).phase == 0
            other = TinyNet()
            fresh = getattr(torch.optim, kind)(tk.param_groups(other, lr=0.01))
            run.resume(model=other, optimizer=fresh, snapshot=1)
            assert tk.freeze_state(other).phase == 0


def test_disjoint_phases_of_one_group_with_a_scheduler_are_resumed(tmp_path: Path) -> None:
    spec = tk.FreezeSpec([tk.Phase("head", epochs=1), tk.Phase("conv")])

    def made() -> tuple[Any, Any, Any]:
        model = TinyNet()
        tk.freeze(model, spec)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    model, optimizer, scheduler = made()
    tk.enter_phase(model, 1, optimizer, scheduler)
    train_epoch(model, optimizer, scheduler)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=optimizer, scheduler=scheduler)
        again = made()
        run.resume(model=again[0], optimizer=again[1], scheduler=again[2])
    assert state_bits(*again) == state_bits(model, optimizer, scheduler)


# -- all or nothing -----------------------------------------------------------------------------------------------


class Extra(nn.Linear):
    def __init__(self, refuses: bool = False) -> None:
        super().__init__(1, 1)
        self.refuses, self.table = refuses, {"seen": 0}

    def get_extra_state(self) -> Any:
        return self.table

    def set_extra_state(self, state: Any) -> None:
        self.table.update(state)
        if self.refuses and state["seen"]:
            raise ValueError("no")


def test_a_module_that_refuses_leaves_the_others_untouched(tmp_path: Path) -> None:
    first, second = Extra(), Extra()
    first.table["seen"] = second.table["seen"] = 5
    with tk.Run(tmp_path) as run:
        run.save(0, model=first, ema=second)
        other, refusing = Extra(), Extra(refuses=True)
        other.weight.grad = torch.ones(1, 1)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(IncompatibleCheckpointError, match="the ema refuses"):
            run.resume(model=other, ema=refusing)
    assert str(other.state_dict()) == str(before) and other.weight.grad is not None and refusing.table["seen"] == 0


def test_sparse_gradients_that_wait_are_refused_with_a_way_out(tmp_path: Path) -> None:
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    model(torch.tensor([1])).sum().backward()
    with tk.Run(tmp_path) as run:
        with pytest.raises(UnsavableError, match="sparse and waits") as caught:
            run.save(0, model=model, optimizer=optimizer)
        assert "gradients=False" in caught.value.hint
        run.save(0, model=model, optimizer=optimizer, gradients=False)
        optimizer.step()
        run.save(1)


def test_specs_that_could_not_be_read_again_are_refused(tmp_path: Path) -> None:
    for wrong in ({"epochs": 2.0}, {"train": 3}, {"train": []}, {"rates": {"a": "lr/0"}}):
        with pytest.raises((ValueError, SelectorError)):
            tk.Phase(**{"train": "head", **wrong})
    model = TinyNet()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        from torchkeep.core.freezespec import state_from

        with pytest.raises(CorruptCheckpointError, match="freeze spec"):
            state_from({"spec": {"phases": [{"train": "head", "epochs": 2.5}]}, "phase": 0})


def test_loading_does_not_unfreeze_and_goes_by_names(tmp_path: Path) -> None:
    saved = TinyNet()
    tk.freeze(saved, "* but head")
    tk.save(saved, tmp_path / "frozen.safetensors")
    model = TinyNet()
    tk.freeze(model, "*")
    report = tk.load_into(model, tmp_path / "frozen.safetensors")
    assert len(held_modules(model)) > 5 and any("freeze=True" in note for note in report.notes)
    tk.save({f"model.{name}": tensor for name, tensor in saved.state_dict().items()}, tmp_path / "renamed.safetensors")
    wrapped = nn.ModuleDict({"model": TinyNet()})
    with pytest.raises(LoadError, match="goes by names"):
        tk.load_into(wrapped, tmp_path / "frozen.safetensors", rules=[tk.add("model."), "exact"], freeze=True)
    assert held_modules(wrapped) == []


def test_a_script_module_can_be_frozen_saved_and_resumed(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        script = torch.jit.script(nn.Sequential(nn.Linear(1, 1)))
    with tk.Run(tmp_path) as run:
        run.save(0, model=script)
        before = script.state_dict()["0.weight"].clone()
        with torch.no_grad():
            dict(script.named_parameters())["0.weight"].zero_()
        run.resume(model=script)
    assert torch.equal(script.state_dict()["0.weight"], before)
    with tk.Run(tmp_path / "critic") as run:
        run.save(0, critic=nn.Linear(1, 1))
        with pytest.raises(LoadError, match="holds no model, only critic"):
            run.open()


def test_audit_knows_embeddings_that_renormalise_and_weights_that_are_computed() -> None:
    model = nn.Sequential(nn.Embedding(4, 2, max_norm=0.1))
    tk.freeze(model, "*")
    before = tk.fingerprint(model)
    model(torch.tensor([0, 1]))
    assert "renormalised" in tk.audit(model).codes
    with pytest.raises(tk.errors.FrozenChangedError, match="max_norm"):
        tk.assert_frozen(model, before)
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(2, 2))
    assert "plain-tensor" not in tk.audit(nn.Sequential(normed)).codes
