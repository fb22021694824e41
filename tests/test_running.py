"""Runs: saving only what changed, resuming bit for bit, falling back on damage, one writer, straight history."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from crash.states import MODES, Mode
from models import OPTIMIZERS, SCHEDULERS, TinyNet, state_bits, train_epoch
from torchkeep.errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    LoadError,
    ResumeWarning,
    RunLockedError,
    SaveError,
    UnsavableError,
)


def make(optimizer: str = "adamw", scheduler: str = "none", seed: int = 0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = TinyNet()
    opt = OPTIMIZERS[optimizer](model.parameters())
    return model, opt, SCHEDULERS[scheduler](opt)


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw-fused"])
def test_resumed_equals_uninterrupted(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    check_resume(tmp_path, optimizer, scheduler)


@pytest.mark.parametrize("optimizer", ["adam", "adamw-foreach", "rmsprop", "lbfgs"])
def test_resumed_equals_uninterrupted_with_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    check_resume(tmp_path, optimizer, "none")


def check_resume(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    model, opt, sched = make(optimizer, scheduler)
    for _ in range(5):
        train_epoch(model, opt, sched)
    expected = state_bits(model, opt, sched), draws()

    model, opt, sched = make(optimizer, scheduler)
    with tk.Run(tmp_path) as run:
        for epoch in range(2):
            train_epoch(model, opt, sched)
            run.save(epoch, model=model, optimizer=opt, scheduler=sched)
    model, opt, sched = make(optimizer, scheduler, seed=99)
    with tk.Run(tmp_path) as run:
        start = run.resume(model=model, optimizer=opt, scheduler=sched)
        assert start == 2
        for _ in range(start, 5):
            train_epoch(model, opt, sched)
    assert (state_bits(model, opt, sched), draws()) == expected


def test_a_new_run_starts_at_zero(tmp_path: Path) -> None:
    model, opt, _ = make()
    before = state_bits(model, opt)
    with tk.Run(tmp_path / "new" / "run") as run:
        assert run.resume(model=model, optimizer=opt) == 0
        assert run.last_resume is not None and run.last_resume.sequence == 0
    assert state_bits(model, opt) == before


def test_moments_follow_names_when_the_parameters_are_reordered(tmp_path: Path) -> None:
    model, opt, _ = make("adam")
    train_epoch(model, opt)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
    moments = {name: opt.state[parameter]["exp_avg"].clone() for name, parameter in model.named_parameters()}

    other = TinyNet()
    backwards = torch.optim.Adam(list(other.parameters())[::-1], lr=0.5, amsgrad=True)
    tk.Run(tmp_path).resume(model=other, optimizer=backwards)
    assert backwards.param_groups[0]["lr"] == 0.01
    for name, parameter in other.named_parameters():
        assert torch.equal(backwards.state[parameter]["exp_avg"], moments[name]), name


def test_parameter_groups_in_another_order_keep_their_options(tmp_path: Path) -> None:
    def grouped(model: nn.Module, reverse: bool) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for n, p in model.named_parameters() if ("head" in n) == head]} for head in (False, True)
        ]
        return torch.optim.SGD(groups[::-1] if reverse else groups, lr=1.0, momentum=0.9)

    model = TinyNet()
    opt = grouped(model, reverse=False)
    opt.param_groups[0]["lr"], opt.param_groups[1]["lr"] = 0.1, 0.2
    train_epoch(model, opt)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        other = TinyNet()
        swapped = grouped(other, reverse=True)
        run.resume(model=other, optimizer=swapped)
    assert [group["lr"] for group in swapped.param_groups] == [0.2, 0.1]


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 2))
    tk.freeze(model, "0")
    opt = torch.optim.Adam(model[1].parameters())
    with tk.Run(tmp_path) as run:
        first = run.save(0, model=model, optimizer=opt)
        model(torch.randn(3, 500)).sum().backward()
        opt.step()
        second = run.save(1)
        third = run.save(2)
    backbone = 500 * 500 * 4
    assert first.bytes_written > backbone
    assert second.bytes_written < 60_000  # head, its moments, generators, manifest
    assert third.tensors_written == 0
    assert third.bytes_total > backbone
    assert len(list((tmp_path / "packs").iterdir())) == 2


def test_tied_and_equal_tensors_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model, opt, _ = make()
    with torch.no_grad():
        model.fc.bias.copy_(model.tied.bias)  # equal, not tied
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        pack = tk.open(next((tmp_path / "packs").iterdir()))
        assert "model/fc.weight" in pack and "model/tied.weight" not in pack
        assert "model/tied.bias" not in pack
        other, other_opt, _ = make(seed=5)
        run.resume(model=other, optimizer=other_opt)
    assert other.tied.weight is other.fc.weight
    assert state_bits(model) == state_bits(other)
    with torch.no_grad():
        other.fc.bias.add_(1)
    assert not torch.equal(other.fc.bias, other.tied.bias), "equal tensors must not become one"


def test_restored_parameters_are_no_views_of_the_files(tmp_path: Path) -> None:
    model, opt, _ = make()
    train_epoch(model, opt)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
        run.resume(model=model, optimizer=opt)
        train_epoch(model, opt)
        assert all(path.read_bytes() == data for path, data in before.items())
        run.resume(model=model, optimizer=opt)  # the digests still hold: nothing wrote into a mapping


@pytest.mark.parametrize(
    ("what", "how"),
    [(what, how) for what in ("pack", "manifest") for how in ("flip", "truncate", "empty")] + [("pack", "delete")],
)
def test_damage_falls_back_to_an_older_snapshot_and_says_so(tmp_path: Path, what: str, how: str) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        kept = state_bits(model, opt)
        packs = set((tmp_path / "packs").iterdir())
        train_epoch(model, opt)
        run.save(1)
        new_pack = (set((tmp_path / "packs").iterdir()) - packs).pop()
    damage(new_pack if what == "pack" else tmp_path / "snapshots" / "2.json", how)
    other, other_opt, _ = make(seed=7)
    with tk.Run(tmp_path) as run:
        with pytest.warns(ResumeWarning, match="snapshot 2 was skipped"):
            assert run.resume(model=other, optimizer=other_opt) == 1
        assert run.last_resume is not None
        assert [one.sequence for one in run.last_resume.skipped] == [2]
        assert state_bits(other, other_opt) == kept
        train_epoch(other, other_opt)
        report = run.save(1)
        assert report.sequence == 3, "a damaged snapshot's number is not used again"
        again, again_opt, _ = make(seed=8)
        assert run.resume(model=again, optimizer=again_opt) == 2, "what is newest is whole again"
        assert state_bits(again, again_opt) == state_bits(other, other_opt)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "flip":
        data[len(data) * 2 // 3] ^= 16
    path.write_bytes(b"" if how == "empty" else data[: len(data) // 2] if how == "truncate" else data)


def test_a_pack_known_to_be_damaged_is_not_relied_on_again(tmp_path: Path) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        (pack,) = (tmp_path / "packs").iterdir()
    damage(pack, "flip")
    with tk.Run(tmp_path) as run:
        with pytest.raises(CorruptCheckpointError, match="no snapshot is intact"):
            run.resume(model=model, optimizer=opt)
        assert run.save(1, model=model, optimizer=opt).tensors_written > 0
        other, other_opt, _ = make(seed=3)
        assert run.resume(model=other, optimizer=other_opt) == 2
        assert state_bits(other, other_opt) == state_bits(model, opt)


def test_mismatch_is_an_error_and_touches_nothing(tmp_path: Path) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        wider = TinyNet(classes=9)
        wide_opt = OPTIMIZERS["adamw"](wider.parameters())
        before = state_bits(wider, wide_opt)
        with pytest.raises(IncompatibleCheckpointError) as caught:
            run.resume(model=wider, optimizer=wide_opt)
        assert set(caught.value.report.mismatched) == {"head.weight", "head.bias"}
        assert state_bits(wider, wide_opt) == before

        sgd = OPTIMIZERS["sgd"](model.parameters())
        before = state_bits(model, sgd)
        with pytest.raises(IncompatibleCheckpointError, match="AdamW"):
            run.resume(model=model, optimizer=sgd)
        half = copy.deepcopy(model).half()
        with pytest.raises(IncompatibleCheckpointError, match="dtypes"):
            run.resume(model=half, optimizer=OPTIMIZERS["adamw"](half.parameters()))
        assert state_bits(model, sgd) == before


def test_freeze_state_comes_back(tmp_path: Path) -> None:
    model, _, _ = make()
    tk.freeze(model, "* but head")
    opt = torch.optim.Adam(model.head.parameters())
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        other, _, _ = make(seed=4)
        other_opt = torch.optim.Adam(other.head.parameters())
        run.resume(model=other, optimizer=other_opt)
        assert run.last_resume is not None and "requires_grad" in run.last_resume.notes[0]
    other.train()
    assert not other.bn.training and not other.drop.training and other.head.training
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_extra_and_values_json_cannot_say(tmp_path: Path) -> None:
    extra = {
        "best": float("inf"),
        "nan": float("nan"),
        "pair": (1, 2),
        3: {"mask": torch.tensor([True, False])},
        "big": 1 << 80,
    }
    model, _, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, extra=extra)
        run.resume(model=model)
        got = run.last_resume.extra
    assert got["best"] == float("inf") and got["nan"] != got["nan"] and got["pair"] == (1, 2) and got["big"] == 1 << 80
    assert torch.equal(got[3]["mask"], extra[3]["mask"])


def test_what_cannot_be_said_is_refused_with_its_path_and_nothing_is_committed(tmp_path: Path) -> None:
    model, _, _ = make()
    with tk.Run(tmp_path) as run:
        with pytest.raises(UnsavableError) as caught:
            run.save(0, model=model, extra={"config": {"callbacks": [print]}})
        assert caught.value.path == "extra.config.callbacks.0"
        assert run.snapshots == ()


def test_history_branches_and_torn_lines(tmp_path: Path) -> None:
    model, _, _ = make()
    with tk.Run(tmp_path) as run:
        for epoch in range(4):
            run.log(epoch=epoch, val_loss=torch.tensor(1.0 / (epoch + 1)), lr=np.float32(0.5))
            if epoch < 2:
                run.save(epoch, model=model)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"epoch": 4, "val_lo')  # what a crash in the middle of a write leaves
    with tk.Run(tmp_path) as run:
        assert [record["epoch"] for record in run.history] == [0, 1, 2, 3]
        assert run.resume(model=model) == 2
        run.log(epoch=2, val_loss=float("nan"))
        run.save(2)
    history = tk.Run(tmp_path).history
    assert [record["epoch"] for record in history] == [0, 1, 2]
    assert history.metric("val_loss")[:2] == [1.0, 0.5] and np.isnan(history.metric("val_loss")[2])
    assert history.damaged == ()
    run = tk.Run(tmp_path)
    assert run.best is not None and run.best.step == 1, "NaN is never best"
    assert [snapshot.parent for snapshot in run.snapshots] == [0, 1, 2]
    assert tk.verify(tmp_path).ok


def test_resuming_an_older_snapshot_makes_a_branch(tmp_path: Path) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        states = []
        for epoch in range(3):
            train_epoch(model, opt)
            run.log(epoch=epoch)
            run.save(epoch, model=model, optimizer=opt)
            states.append(state_bits(model, opt))
        assert run.resume(snapshot=1) == 1
        assert state_bits(model, opt) == states[0]
        run.log(epoch=1)
        run.save(1)
        assert [(one.sequence, one.parent, one.step) for one in run.snapshots][-1] == (4, 1, 1)
        assert [record["epoch"] for record in run.history] == [0, 1]
        with pytest.raises(LoadError, match="no snapshot 17"):
            run.resume(snapshot=17)


def test_best_by_metric(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, monitor="val_acc") as run:
        assert run.best is None
        for epoch, accuracy in enumerate([0.2, 0.9, 0.9, 0.1]):
            run.log(epoch=epoch, val_acc=accuracy)
            run.save(epoch, model=model)
        assert run.best.step == 1
    assert tk.Run(tmp_path, monitor="val_acc", mode="min").best.step == 3
    assert b'"sequence":2' in (tmp_path / "tags" / "best.json").read_bytes()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        with pytest.raises(RunLockedError, match="another Run object of this process"):
            tk.Run(tmp_path).save(1, model=model)
        run.save(1)  # the refused attempt did not take the lock away
        code = f"import torchkeep as tk\ntk.Run({str(tmp_path)!r}).log(a=1)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1 and f"process {os.getpid()}" in other.stderr and "RunLockedError" in other.stderr
        assert len(tk.Run(tmp_path).snapshots) == 2, "reading needs no lock"
    tk.Run(tmp_path).save(2, model=model)


def test_a_killed_writer_leaves_no_lock_even_when_its_workers_live_on(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import os, time, torch, torchkeep as tk
        run = tk.Run({str(tmp_path)!r})
        run.save(0, model=torch.nn.Linear(1, 1))
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        print("ready", flush=True)
        time.sleep(30)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.kill()
        child.wait()
        with tk.Run(tmp_path) as run:
            run.save(1, model=nn.Linear(1, 1))
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


def test_wrappers_do_not_show_in_names(tmp_path: Path) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=nn.DataParallel(model), optimizer=opt)
        assert "model/conv.weight" in run.digests()
        compiled = torch.compile(TinyNet(), backend="eager")
        other = OPTIMIZERS["adamw"](compiled.parameters())
        run.resume(model=compiled, optimizer=other)
        assert state_bits(model) == state_bits(compiled._orig_mod)


def test_optimizer_parameters_outside_the_model_are_kept_by_position(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    margin = nn.Parameter(torch.ones(1))
    opt = torch.optim.Adam([*model.parameters(), margin])
    (model(torch.ones(1, 2)).sum() * margin).backward()
    opt.step()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        other, other_margin = nn.Linear(2, 2), nn.Parameter(torch.ones(1))
        other_opt = torch.optim.Adam([*other.parameters(), other_margin])
        run.resume(model=other, optimizer=other_opt)
    assert torch.equal(other_opt.state[other_margin]["exp_avg"], opt.state[margin]["exp_avg"])
    assert torch.equal(other_margin, margin) and not torch.equal(margin, torch.ones(1))


def test_misuse_is_named(tmp_path: Path) -> None:
    run = tk.Run(tmp_path)
    with pytest.raises(SaveError, match="no model"):
        run.save(0)
    with pytest.raises(ValueError, match="nothing to log"):
        run.log()
    with pytest.raises(ValueError, match="step"):
        run.save(-1, model=nn.Linear(1, 1))
    with pytest.raises(UnsavableError, match="confusion"):
        run.log(confusion=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="mode"):
        tk.Run(tmp_path, mode="best")
    with pytest.raises(LoadError, match="is no run"):
        tk.Run(tmp_path / "elsewhere").summary()
    (tmp_path / "torchkeep.json").write_text(json.dumps({"format": "torchkeep-run", "version": 9, "features": []}))
    run.close()
    with pytest.raises(SaveError, match="cannot write"):
        tk.Run(tmp_path).save(0, model=nn.Linear(1, 1))


# -- crashes ----------------------------------------------------------------------------------------------------

CALLS = ("fsync", "link", "writev", "pwrite", "posix_fallocate", "ftruncate", "unlink", "open", "replace", "close")


def dies_at(
    call_number: int, when: str, run_folder: Path, model: nn.Module, opt: torch.optim.Optimizer, mode: Mode
) -> int:
    """Save in a forked child that is killed at its nth system call; returns the child's status."""
    child = os.fork()
    if child == 0:
        count = 0

        def wrap(original):
            def patched(*args, **kwargs):
                nonlocal count
                count += 1
                if count == call_number and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                mine = count
                try:
                    return original(*args, **kwargs)
                finally:
                    if mine == call_number and when == "after":
                        os.kill(os.getpid(), signal.SIGKILL)

            return patched

        try:
            for name in CALLS:
                setattr(os, name, wrap(getattr(os, name)))
            run = mode.run(run_folder)
            if mode.blocking:
                run.save(1, model=model, optimizer=opt)
            else:
                run.save(1, model=model, optimizer=opt, blocking=False).result()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("mode", [*MODES, Mode(blocking=False, durable=False)], ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_every_system_call_leaves_a_whole_snapshot(tmp_path: Path, when: str, mode: Mode) -> None:
    """The states before and after the save are known; whatever the moment of death, resume gives one of the two."""
    torch.set_num_threads(1)  # forked children must not wait for threads they do not have
    model, opt, _ = make()
    base = tmp_path / "base"
    with tk.Run(base) as run:
        run.log(epoch=0, val_loss=1.0)
        run.save(0, model=model, optimizer=opt)
    old = state_bits(model, opt)
    train_epoch(model, opt)
    new = state_bits(model, opt)
    results = []
    for number in range(1, 200):
        folder = tmp_path / f"{number}"
        shutil.copytree(base, folder)
        status = dies_at(number, when, folder, model, opt, mode)
        other, other_opt, _ = make(seed=1)
        with tk.Run(folder) as run:
            start = run.resume(model=other, optimizer=other_opt)
            assert run.last_resume is not None and not run.last_resume.skipped
            assert state_bits(other, other_opt) == (old if start == 1 else new)
            assert not list(folder.rglob(".tmp-*")), "the next writer clears what the dead one left"
            results.append((start, os.WIFSIGNALED(status)))
            run.save(start)
        report = tk.verify(folder)
        assert report.ok, report
        if not os.WIFSIGNALED(status):
            break
    assert results[-1] == (2, False), "the last child was not killed and committed"
    assert len(results) > 13
    starts = [start for start, _ in results]
    assert starts == sorted(starts) and starts[0] == 1, "one commit point: old before it, new after it"


def _save_forever(folder: str, mode: Mode) -> None:
    torch.set_num_threads(1)
    model, opt, _ = make()
    with mode.run(Path(folder)) as run:
        for step in range(run.resume(model=model, optimizer=opt), 100_000):
            with torch.no_grad(), run.guard():
                for parameter in model.parameters():
                    parameter.fill_(float(step))
            run.log(step=step)
            if mode.blocking:
                run.save(step)
            else:
                run.save(step, blocking=False)


def kill_at_random(folder: Path, kills: int, seed: int = 0, mode: Mode = Mode()) -> None:  # noqa: B008 - it is frozen
    """Kill a loop that saves constantly, again and again; what resumes is always one whole step."""
    context = multiprocessing.get_context("forkserver")  # each child starts from a server that has torch loaded
    context.set_forkserver_preload(["torchkeep", "models"])
    newest = -1
    for kill in range(kills):
        child = context.Process(target=_save_forever, args=(str(folder), mode))
        child.start()
        before = newest
        while not any(int(path.stem) > before + 1 for path in folder.glob("snapshots/*.json")):
            child.join(0.005)
            assert child.is_alive()
        child.join(random.Random(1000 * seed + kill).random() * 0.05)
        child.kill()
        child.join()
        committed = max(int(path.stem) for path in folder.glob("snapshots/*.json"))
        model, opt, _ = make(seed=2)
        with tk.Run(folder) as run:
            step = run.resume(model=model, optimizer=opt) - 1
            assert run.last_resume is not None
            assert run.last_resume.sequence == committed and not run.last_resume.skipped
        assert all((parameter == step).all() for parameter in model.parameters())
        newest = committed
    assert tk.verify(folder).ok


@pytest.mark.parametrize("mode", [MODES[0], MODES[-1]], ids=str)
def test_random_kills_of_a_loop_that_saves_constantly(tmp_path: Path, mode: Mode) -> None:
    kill_at_random(tmp_path / "run", kills=3, mode=mode)


# -- what an adversarial review found ---------------------------------------------------------------------------


class Counting(nn.Module):
    """A module with extra state, as quantisers and some normalisations have."""

    def __init__(self, start: float = 0.0, tensor: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.count = start
        self.tensor = tensor

    def get_extra_state(self) -> object:
        return torch.tensor(self.count) if self.tensor else {"count": self.count, "seen": torch.tensor([self.count])}

    def set_extra_state(self, state: object) -> None:
        self.count = float(state["count"] if isinstance(state, dict) else state)


@pytest.mark.parametrize("tensor", [False, True])
def test_extra_state_is_resumed_and_missed(tmp_path: Path, tensor: bool) -> None:
    with tk.Run(tmp_path) as run:
        run.save(0, model=Counting(5.0, tensor))
        other = Counting(0.0, tensor)
        run.resume(model=other)
        assert other.count == 5.0
        plain = nn.ModuleDict({"fc": nn.Linear(1, 1)})
        with pytest.raises(IncompatibleCheckpointError, match="extra state"):
            run.resume(model=plain)


def test_a_snapshot_never_relies_on_packs_that_nobody_verified(tmp_path: Path) -> None:
    """Three packs, two damaged: the replayed steps give the same tensors, and are written anew."""
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        known: set[Path] = set()
        packs = []
        for step in range(3):
            run.save(step, model=model, optimizer=opt)
            (new,) = set((tmp_path / "packs").iterdir()) - known
            known.add(new)
            packs.append(new)
            train_epoch(model, opt)
    damage(packs[1], "truncate")
    damage(packs[2], "flip")
    with tk.Run(tmp_path) as run:
        assert run.resume(model=model, optimizer=opt, snapshot=1) == 1
        train_epoch(model, opt)
        run.save(1)
        train_epoch(model, opt)
        run.save(2)
        expected = state_bits(model, opt)
        other, other_opt, _ = make(seed=1)
        assert run.resume(model=other, optimizer=other_opt) == 3
        assert state_bits(other, other_opt) == expected and not run.last_resume.skipped


def test_history_follows_the_branch_that_is_resumed(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        for name in ("A0", "A1", "A2"):
            run.log(name=name)
            run.save(0, model=model)
        run.resume(snapshot=1)
        run.log(name="B1")
        run.save(1)
        run.resume(snapshot=3)
        assert [record["name"] for record in run.history] == ["A0", "A1", "A2"]
        run.log(name="A3")
        run.save(2)
        run.resume(snapshot=4)
        run.log(name="B2")
        assert [record["name"] for record in tk.Run(tmp_path).history] == ["A0", "B1", "B2"]
    assert tk.verify(tmp_path).ok


def test_records_of_a_process_that_never_saved_do_not_stay(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run:
        run.log(epoch=0)
    with tk.Run(tmp_path) as run:
        assert run.resume(model=nn.Linear(1, 1)) == 0
        run.log(epoch=0)
        run.save(0)
    assert [record["epoch"] for record in tk.Run(tmp_path).history] == [0]


def test_other_groups_keep_the_moments_and_what_can_be_said_of_the_options(tmp_path: Path) -> None:
    model, opt, _ = make("adam")
    train_epoch(model, opt)
    moments = {name: opt.state[parameter]["exp_avg"].clone() for name, parameter in model.named_parameters()}
    parameters = list(model.parameters())
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        split = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], lr=0.2)
        run.resume(model=model, optimizer=split)
        assert [group["lr"] for group in split.param_groups] == [0.01, 0.01], "all of them were in one group"
        run.save(1)
        joined = torch.optim.Adam(parameters, lr=0.7)
        split.param_groups[1]["lr"] = 0.3
        run.save(2)
        with pytest.warns(ResumeWarning, match="group 0 stay as given"):
            run.resume(optimizer=joined)
        assert joined.param_groups[0]["lr"] == 0.7
        for name, parameter in model.named_parameters():
            assert torch.equal(joined.state[parameter]["exp_avg"], moments[name]), name


def test_what_the_optimizer_held_comes_back_into_it_and_what_is_new_is_listed(tmp_path: Path) -> None:
    model, _, _ = make()
    part = torch.optim.Adam([*model.conv.parameters(), *model.head.parameters()])
    train_epoch(model, part)
    moments = {name: part.state[one]["exp_avg"].clone() for name, one in model.named_parameters() if one in part.state}
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=part)
        other = torch.optim.Adam([*model.fc.parameters(), *model.head.parameters()])
        with pytest.warns(ResumeWarning, match="2 parameters were not in the saved optimizer .*: fc.bias, fc.weight"):
            run.resume(optimizer=other)
        assert run.last_resume.notes == ("2 parameters came back into the optimizer: conv.bias, conv.weight",)
        for name, moment in moments.items():
            assert torch.equal(other.state[model.get_parameter(name)]["exp_avg"], moment)
        assert model.fc.weight not in other.state
        run.save(1)
    with tk.Run(tmp_path) as run, pytest.warns(ResumeWarning) as warned:
        run.resume(optimizer=torch.optim.Adam(nn.Linear(1, 1).parameters()))
    assert any("6 parameters of the saved optimizer are in no tracked module" in str(one.message) for one in warned)


@pytest.mark.parametrize("named", [True, False])
def test_a_group_that_was_added_on_the_way_comes_back(tmp_path: Path, named: bool) -> None:
    """As scripts unfreeze: the optimizer is made of the head, and the backbone joins it later."""

    def given(model: nn.Module, part: str) -> list:
        pairs = list(model.get_submodule(part).named_parameters(prefix=part))
        return pairs if named else [parameter for _, parameter in pairs]

    def train(run: tk.Run, stop: int) -> bytes:
        random.seed(0), torch.manual_seed(0)
        model = TinyNet()
        for part in (model.conv, model.bn, model.fc, model.tied):
            part.requires_grad_(False)
        opt = torch.optim.Adam(given(model, "head"), lr=0.1)
        for epoch in range(run.resume(model=model, optimizer=opt), stop):
            if epoch == 2:
                model.conv.requires_grad_(True)
                opt.add_param_group({"params": given(model, "conv"), "lr": 0.02})
            train_epoch(model, opt)
            run.save(epoch)
        assert len(opt.param_groups) == 1 + (stop > 2)
        return state_bits(model, opt)

    with tk.Run(tmp_path / "whole") as run:
        whole = train(run, 6)
    for stop in (1, 3, 4, 6):
        with tk.Run(tmp_path / "run") as run:
            state = train(run, stop)
    assert state == whole


def test_groups_in_another_order_are_refused_where_a_scheduler_counts_them(tmp_path: Path) -> None:
    def groups(model: TinyNet, reverse: bool):
        body = [p for n, p in model.named_parameters() if "head" not in n]
        both = [{"params": body, "lr": 0.1}, {"params": list(model.head.parameters()), "lr": 0.2}]
        opt = torch.optim.SGD(both[::-1] if reverse else both)
        return opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch)

    model = TinyNet()
    opt, sched = groups(model, reverse=False)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt, scheduler=sched)
        swapped, swapped_sched = groups(model, reverse=True)
        with pytest.raises(IncompatibleCheckpointError, match="in another order"):
            run.resume(optimizer=swapped, scheduler=swapped_sched)


def test_a_scheduler_that_refuses_its_state_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def sequential(opt: torch.optim.Optimizer, count: int) -> torch.optim.lr_scheduler.SequentialLR:
        parts = [torch.optim.lr_scheduler.ConstantLR(opt) for _ in range(count)]
        return torch.optim.lr_scheduler.SequentialLR(opt, parts, milestones=list(range(1, count)))

    model, opt, _ = make("sgd")
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt, scheduler=sequential(opt, 3))
        other, other_opt, _ = make("sgd", seed=5)
        sched = sequential(other_opt, 2)
        before = state_bits(other, other_opt, sched)
        with pytest.raises(IncompatibleCheckpointError, match="the scheduler refuses"):
            run.resume(model=other, optimizer=other_opt, scheduler=sched)
        assert state_bits(other, other_opt, sched) == before


def test_values_that_were_apart_are_not_put_into_a_tied_tensor(tmp_path: Path) -> None:
    apart = TinyNet()
    apart.tied.weight = nn.Parameter(torch.zeros(4, 4))
    with tk.Run(tmp_path) as run:
        run.save(0, model=apart)
        with pytest.raises(IncompatibleCheckpointError, match="tied now"):
            run.resume(model=TinyNet())


def test_models_without_memory_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = TinyNet()
    with tk.Run(tmp_path) as run:
        with pytest.raises(UnsavableError, match="meta device"):
            run.save(0, model=empty)
        run.save(0, model=TinyNet())
        with pytest.raises(IncompatibleCheckpointError, match="without memory"):
            run.resume(model=empty)


def test_a_default_device_does_not_reach_inside(tmp_path: Path) -> None:
    model, opt, _ = make()
    with torch.device("meta"), tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        run.resume(model=model, optimizer=opt)
        assert tk.open(next((tmp_path / "packs").iterdir()))["model/fc.bias"].load().device.type == "cpu"


def test_the_best_of_a_loss_is_the_lowest_whatever_else_is_in_its_name(tmp_path: Path) -> None:
    for metric, best in [
        ("val_dice_loss", 1),
        ("layer2_loss", 1),
        ("val_loss_accumulated", 1),
        ("val/f1", 2),
        ("val.acc", 2),
    ]:
        folder = tmp_path / metric.replace("/", "_")
        with tk.Run(folder, monitor=metric) as run:
            for step, value in enumerate([0.1, 0.9], start=1):
                run.log(**{metric: value})
                run.save(step, model=nn.Linear(1, 1))
            assert run.best.step == best, metric
    with pytest.raises(ValueError, match="high or a low 'goodness'"):
        tk.Run(tmp_path, monitor="goodness")


def test_a_forked_child_has_to_ask_for_the_lock(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run:
        run.log(a=1)
        child = os.fork()
        if child == 0:
            try:
                run.log(a=2)
                os._exit(1)
            except RunLockedError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        shutil.copytree(tmp_path, tmp_path / "backup")  # opens and closes the lock file
        code = f"import torchkeep as tk\ntk.Run({str(tmp_path)!r}).log(a=3)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
        run.log(a=4)
    assert tk.Run(tmp_path).history.metric("a") == [1, 4]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with tk.Run("run") as run:
        run.save(0, model=nn.Linear(1, 1))
        monkeypatch.chdir(tmp_path / "elsewhere")
        run.save(1)
    assert len(tk.Run(tmp_path / "run").snapshots) == 2 and not list((tmp_path / "elsewhere").iterdir())


def test_a_log_that_fails_leaves_the_history_whole(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import resource, signal, torchkeep as tk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run = tk.Run({str(tmp_path)!r})
        run.log(a=1)
        size = (run.path / "history.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
        try:
            run.log(a=2)
        except tk.errors.SaveError as error:
            print(error.brief)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run.log(a=3)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "history.jsonl cannot be written" in done.stdout
    assert tk.Run(tmp_path).history.metric("a") == [1, 3] and tk.Run(tmp_path).history.damaged == ()


def test_a_run_in_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="cannot be written"):
        tk.Run(tmp_path / "file" / "run").log(a=1)
    with pytest.raises(SaveError, match="which is no optimizer"):
        tk.Run(tmp_path / "run").resume(optimizer=[1, 2])


def test_a_pointer_that_cannot_be_written_does_not_fail_a_committed_save(tmp_path: Path) -> None:
    class NoTags:
        def __init__(self, store: object) -> None:
            self.store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self.store, name)

        def put(self, key: str, *args: object, **options: object) -> bool:
            if key.startswith("tags/"):
                raise SaveError("no")
            return self.store.put(key, *args, **options)

    with tk.Run(tmp_path, store=NoTags(tk.local_store(tmp_path))) as run:
        run.log(val_loss=1.0)
        assert run.save(0, model=nn.Linear(1, 1)).sequence == 1
        assert run.best is not None


# -- what a newcomer stumbled over ------------------------------------------------------------------------------


def test_a_refused_resume_does_not_change_what_is_tracked(tmp_path: Path) -> None:
    right = nn.Linear(3, 2)
    with tk.Run(tmp_path) as run:
        run.save(0, model=right)
        with pytest.raises(IncompatibleCheckpointError):
            run.resume(model=nn.Linear(3, 4))
        run.save(1)
        assert run.digests()["model/weight"] == run.digests(1)["model/weight"]
        with pytest.raises(IncompatibleCheckpointError, match="holds no scheduler"):
            run.resume(model=right, scheduler=SCHEDULERS["step"](torch.optim.SGD(right.parameters(), lr=1)))
        assert run.resume(model=right) == 2
        for wrong in ({"model": "x"}, {"model": right.state_dict()}, {"scheduler": 3}):
            with pytest.raises(SaveError, match="which is no"):
                run.resume(**wrong)


def test_who_reads_a_run_later_sees_the_best_as_its_writer_did(tmp_path: Path) -> None:
    with tk.Run(tmp_path, monitor="goodness", mode="max") as run:
        for step, (goodness, loss) in enumerate([(0.1, 0.1), (0.9, 0.9)]):
            run.log(goodness=goodness, val_loss=loss)
            run.save(step, model=nn.Linear(1, 1))
        assert run.best.step == 1
    assert tk.Run(tmp_path).best.step == 1
    assert tk.Run(tmp_path, monitor="val_loss").best.step == 0
    (tmp_path / "tags" / "best.json").write_bytes(b"broken")
    assert tk.Run(tmp_path).best.step == 0, "without the pointer a usual metric decides"


def test_weights_of_a_snapshot_without_resuming(tmp_path: Path) -> None:
    model, opt, _ = make()
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=opt)
        first = state_bits(model)
        train_epoch(model, opt)
        run.save(1)
        other = TinyNet()
        reader = tk.Run(tmp_path)  # while the writer holds the lock
        tk.load_into(other, reader.open(1))
        assert state_bits(other) == first
        tk.load_into(other, reader.open(reader.snapshots[-1]))
        assert state_bits(other) == state_bits(model)
        assert set(reader.open()) == set(model.state_dict())
        with pytest.raises(LoadError, match="no snapshot 9"):
            reader.open(9)
        extra = Counting(4.0)
        run.save(2, model=extra, optimizer=torch.optim.SGD(extra.parameters(), lr=1))
        again = Counting()
        tk.load_into(again, reader.open())
        assert again.count == 4.0
    for pack in (tmp_path / "packs").iterdir():
        damage(pack, "flip")
    with pytest.raises(CorruptCheckpointError):
        tk.Run(tmp_path).open(1)


def test_missing_packs_show_in_the_summary(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run:
        run.save(0, model=nn.Linear(1, 1))
        next((tmp_path / "packs").iterdir()).unlink()
        assert any("is missing; snapshots 1 need it" in text for text in run.summary().damaged)


def test_a_module_that_refuses_its_extra_state_leaves_everything_as_it_was(tmp_path: Path) -> None:
    class Refusing(Counting):
        def set_extra_state(self, state: object) -> None:
            super().set_extra_state(state)
            if self.count == 5.0:
                raise ValueError("not five")

    saved = Counting(5.0)
    opt = torch.optim.Adam(saved.parameters())
    saved.fc(torch.ones(1, 1)).sum().backward()
    opt.step()
    other = Refusing(1.0)
    other_opt = torch.optim.Adam(other.parameters(), lr=0.5)
    with tk.Run(tmp_path) as run:
        run.save(0, model=saved, optimizer=opt)
        before = state_bits(other, other_opt)
        with pytest.raises(IncompatibleCheckpointError, match=r"the model refuses .* not five"):
            run.resume(model=other, optimizer=other_opt)
        assert state_bits(other, other_opt) == before and other.count == 1.0


def test_a_parameter_named_like_a_part_of_a_snapshot_is_itself(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.register_parameter("extra/x", nn.Parameter(torch.ones(1), requires_grad=False))
    extra = {"x": torch.zeros(1, requires_grad=True)}
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, extra=extra)
        run.resume(model=model)
        assert not model.get_parameter("extra/x").requires_grad and run.last_resume.notes == ()
