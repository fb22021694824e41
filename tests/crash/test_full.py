"""A disk that is full at any one of the writes of a save, simulated and real, and one that fails at any sync."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import state_bits
from torchkeep.errors import NoSpaceError, SaveError

from .calls import Op, Watch
from .disk import Disk, tree_of
from .states import MODES, Mode, parts, resumed


class Failing:
    """Makes the nth call of some kind fail, and counts them.

    Attributes:
        hit: the call that failed, None if there were fewer.
    """

    def __init__(self, number: int, error: int, wanted: Callable[[Op], bool]) -> None:
        self.hit: Op | None = None
        self._left, self._error, self._wanted = number, error, wanted

    def __call__(self, op: Op) -> None:
        if self._wanted(op):
            self._left -= 1
            if self._left == 0:
                self.hit = op
                raise OSError(self._error, "as a disk says it")


def train(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 32)).square().mean().backward()
    optimizer.step()


def sizes(folder: Path) -> dict[str, int]:
    """What takes space: every file but the lock, and the history, which may have grown by a whole line."""
    tree = tree_of(folder) if folder.exists() else {}
    return {path: len(data) for path, data in tree.items() if data and path not in {"lock", "guard", "history.jsonl"}}


def saves(run: tk.Run, model: nn.Module, optimizer: Any, step: int, *, blocking: bool = True) -> int:
    """What a training loop does at the end of an epoch."""
    run.log(epoch=step, val_loss=1 / (step + 1))
    if blocking:
        return run.save(step, model=model, optimizer=optimizer).sequence
    return run.save(step, model=model, optimizer=optimizer, blocking=False).result().sequence


def check_untouched(folder: Path, old: list[tuple[str, bytes]] | None, before: dict[str, int]) -> None:
    """The run is as it was: nothing unfinished, nothing more on the disk, the former snapshot for who reads it."""
    assert not list(folder.rglob(".tmp-*")), "unfinished files stay"
    assert sizes(folder) == before, "the space was not given back"
    reader = tk.Run(folder)
    assert len(reader.snapshots) == (old is not None)
    assert reader.history.damaged == ()
    if old is not None:
        assert tk.verify(folder).ok
        copied = folder.with_name("copy")
        shutil.copytree(folder, copied)
        with resumed(copied) as (_, model, optimizer, step):
            assert step == 1 and state_bits(model, optimizer) == old
        shutil.rmtree(copied)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("saved", [False, True], ids=["new", "saved before"])
def test_a_disk_that_is_full_at_any_write(tmp_path: Path, saved: bool, mode: Mode) -> None:
    base = tmp_path / "base"
    old = None
    if saved:
        model, optimizer = parts()
        with tk.Run(base / "run") as run:
            saves(run, model, optimizer, 0)
        old = state_bits(model, optimizer)
    kinds = set()
    for number in range(1, 100):
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        if saved:
            shutil.copytree(base / "run", folder)
        model, optimizer = parts()
        run = mode.run(folder)
        before = sizes(folder)
        failing = Failing(number, errno.ENOSPC, lambda op: op.takes_space)
        refused = False
        try:
            with Watch(folder.parent, before=failing):
                step = run.resume(model=model, optimizer=optimizer)
                before |= sizes(folder)  # the file that makes a folder a run
                train(model, optimizer)
                saves(run, model, optimizer, step, blocking=mode.blocking)
        except NoSpaceError as error:
            refused = True
            assert error.needed > 0 and error.free > 0, error
            check_untouched(folder, old, before)
        if failing.hit is None:
            break
        kinds.add(failing.hit.kind)
        spared = failing.hit.path.startswith("run/tags") or "run/lock" in failing.hit.path
        spared |= mode.engine == "direct" and "run/packs" in failing.hit.path  # then it is tried without a stream
        assert refused or spared, failing.hit
        train(model, optimizer)
        sequence = run.save(7, model=model, optimizer=optimizer).sequence
        assert sequence == saved + 1 + (not refused)
        now = state_bits(model, optimizer)
        run.close()
        with resumed(folder) as (_, model, optimizer, step):
            assert step == 8 and state_bits(model, optimizer) == now
        assert tk.verify(folder).ok and not list(folder.rglob(".tmp-*"))
    assert kinds == {"open", "write", "allocate", "link", "rename"} | (set() if saved else {"mkdir"})
    assert number > 12


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_sync_that_fails_is_not_taken_for_done(tmp_path: Path, mode: Mode) -> None:
    """The save fails, the next one is committed, and then power is lost: what counts was synced again."""
    for number in range(1, 100):
        world = tmp_path / str(number)
        world.mkdir()
        calls: list[Op] = []
        failing = Failing(number, errno.EIO, lambda op: op.kind in {"sync", "sync_folder"})
        model, optimizer = parts()
        with Watch(world, before=failing, after=calls.append), mode.run(world / "deep" / "run") as run:
            for step in range(3):
                try:
                    train(model, optimizer)
                    saves(run, model, optimizer, step, blocking=mode.blocking)
                except SaveError as error:
                    assert failing.hit is not None, error
                    saves(run, model, optimizer, step, blocking=mode.blocking)
            saved = run.snapshots[-1].sequence
        if failing.hit is None:
            break
        disk = Disk()
        for op in calls:
            disk.apply(op)
        disk.lose_power().make(tmp_path / "after")
        was = state_bits(model, optimizer)
        with resumed(tmp_path / "after" / "deep" / "run") as (run, model, optimizer, step):
            assert run.last_resume.sequence == saved and step == 3, failing.hit
            assert not run.last_resume.skipped and not run.last_resume.lost
            assert state_bits(model, optimizer) == was
        shutil.rmtree(tmp_path / "after")
    assert number > 20


def test_a_small_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of a few hundred kilobytes in memory, or of a few dozen files, filled up to the last block."""
    mount = "mount -t tmpfs -o size=400k,nr_inodes=90 none"
    place = tmp_path / "disk"
    place.mkdir()
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    able = shutil.which("unshare") and subprocess.run(
        [*alone, f"{mount} {place}"], capture_output=True, check=False, timeout=60
    ).returncode == 0  # fmt: skip
    if not able:
        pytest.skip("no file system can be mounted here")
    script = Path(__file__).with_name("small_disk.py")
    done = subprocess.run(
        [*alone, f"{mount} {place} && exec {sys.executable} {script} {place} {tmp_path / 'base'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    assert all(3 <= int(refused) <= 7 for refused in done.stdout.split()), "of ten saves some were refused"
