"""What a loss of power leaves of a run, simulated; and that the simulation would notice if a sync were missing."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from models import state_bits
from torchkeep.stores.local import LocalStore

from .calls import Op, Watch
from .disk import Disk, tree_of
from .states import MODES, PLACE, Mode, kill_states, parts, run_states, told


def test_what_is_recorded_is_all_that_was_done(tmp_path: Path) -> None:
    """The calls alone give the same folder, byte for byte."""
    story = told(tmp_path)
    disk = Disk()
    for op in story.calls:
        disk.apply(op)
    assert disk.tree() == tree_of(tmp_path / "first")
    kinds = {op.kind for op in story.calls}
    assert kinds >= {"open", "write", "allocate", "sync", "link", "rename", "unlink", "mkdir", "sync_folder", "mark"}
    disk.make(tmp_path / "again")
    assert tree_of(tmp_path / "again") == disk.tree()


def test_calls_of_every_kind_are_recorded(tmp_path: Path) -> None:
    """Whatever way Python has of changing a file; a way that is not simulated is refused."""
    import os  # the functions are looked up when they are called

    calls: list[Op] = []
    world = tmp_path / "world"
    world.mkdir()
    with Watch(world, after=calls.append):
        (world / "text").write_text("text")
        with (world / "text").open("a") as file:
            file.write(" and more")
        with (world / "both").open("w+b") as both:
            both.write(b"0123456789")
            both.seek(2)
            both.write(b"XX")
            both.truncate(7)
        fd = os.open(world / "low", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"low")
        os.pwrite(fd, b"L", 0)
        os.posix_fallocate(fd, 0, 5)
        os.ftruncate(fd, 4)
        os.close(fd)
        (world / "folder").mkdir()
        (world / "low").rename(world / "folder" / "high")
        (world / "folder" / "link").hardlink_to(world / "text")
        (world / "both").replace(world / "text")
        (world / "gone").touch()
        (world / "gone").unlink()
        (tmp_path / "outside").write_text("not seen")
        with pytest.raises(AssertionError, match="not simulated"):
            (world / "soft").symlink_to("text")
    disk = Disk()
    for op in calls:
        disk.apply(op)
    assert disk.tree() == tree_of(world)
    assert disk.tree()["folder/high"] == b"Low\0" and disk.tree()["text"] == b"01XX456"


def test_what_is_synced_is_never_lost_and_what_is_not_may_be(tmp_path: Path) -> None:
    calls: list[Op] = []
    with Watch(tmp_path, after=calls.append):
        import os

        for name in ("safe", "named", "written"):
            fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
            os.write(fd, b"a" * 5000)
            if name != "named":
                os.fsync(fd)
            if name == "safe":
                os.write(fd, b"b" * 5000)
            os.close(fd)
            if name == "named":
                folder = os.open(tmp_path, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
    disk = Disk()
    for op in calls:
        disk.apply(op)
    generator = random.Random(0)
    trees = [disk.lose_power(generator).tree() for _ in range(500)]
    assert all(tree["safe"].startswith(b"a" * 5000) and "named" in tree for tree in trees)
    assert {len(tree["safe"]) for tree in trees} == {5000, 10_000}
    assert {len(tree["named"]) for tree in trees} == {0, 5000}
    assert any(set(tree["named"]) == {0, ord("a")} for tree in trees), "some blocks are written and others are not"
    assert {"written" in tree for tree in trees} == {True, False}
    assert {tree["written"] for tree in trees if "written" in tree} == {b"a" * 5000}
    assert disk.lose_power().tree() == {"safe": b"a" * 5000, "named": b""}


@pytest.mark.parametrize("engine", ["direct", "buffered"])
def test_a_saved_file_is_the_old_one_or_the_new_one(tmp_path: Path, engine: str) -> None:
    calls: list[Op] = []
    with Watch(tmp_path, after=calls.append):
        for number in range(3):
            tk.save({"weight": torch.full((3000,), float(number))}, tmp_path / "model.safetensors", engine=engine)
            calls.append(Op("mark", size=number))
    generator = random.Random(0)
    found = set()
    for number in range(200):
        reached = generator.randrange(len(calls) + 1)
        disk = Disk()
        for op in calls[:reached]:
            disk.apply(op)
        returned = [op.size for op in calls[:reached] if op.kind == "mark"]
        folder = tmp_path / f"state {number}"
        disk.lose_power(generator).make(folder)
        if not (folder / "model.safetensors").exists():
            assert not returned
            continue
        value = tk.load(folder / "model.safetensors")["weight"]
        assert tk.verify(folder / "model.safetensors").ok and len(set(value.tolist())) == 1
        assert value[0] >= max(returned, default=0)
        found.add(int(value[0]))
    assert found == {0, 1, 2}


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_run_outlives_losses_of_power(mode: Mode) -> None:
    summary = run_states(80, mode=mode)
    assert summary.seen["kills"] > 15 and summary.seen["of them with consequences"] > 60, summary


@pytest.mark.parametrize("blocking", [True, False])
def test_what_is_not_made_durable_outlives_kills_all_the_same(blocking: bool) -> None:
    summary = run_states(60, mode=Mode(blocking=blocking, durable=False))
    assert summary.seen["kills"] > 60 and not summary.seen["losses of power"], summary


def test_what_is_not_made_durable_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    kinds = {op.kind for op in told(tmp_path, mode=Mode(durable=False)).calls}
    assert not kinds & {"sync", "sync_folder"} and "link" in kinds


@pytest.mark.parametrize("mode", [MODES[0], MODES[-1]], ids=str)
def test_what_a_killed_process_left_is_made_safe_before_it_is_relied_on(mode: Mode) -> None:
    assert kill_states(mode) > 40


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("sync", r"\.tmp-torchkeep.*"),
        ("sync", r"history\.jsonl"),
        ("sync", r"packs/.*"),
        ("sync", r"snapshots/.*"),
        ("sync", r"tags/.*"),
        ("sync_folder", r""),
        ("sync_folder", r"packs"),
        ("sync_folder", r"snapshots"),
        ("sync_folder", r"tags"),
    ],
)
def test_without_a_sync_the_promise_is_broken(kind: str, path: str) -> None:
    wanted = re.compile(f"{PLACE}/{path}" if path else PLACE)
    with pytest.raises(AssertionError, match="run_states"):
        run_states(150, missed=lambda op: op.kind == kind and wanted.fullmatch(op.path) is not None)


@pytest.mark.parametrize("path", [".", "deep", "deep/er"])
def test_the_way_to_a_run_has_to_be_safe_too(path: str) -> None:
    with pytest.raises(AssertionError, match="run_states"):
        run_states(150, missed=lambda op: op.kind == "sync_folder" and op.path == path)


@pytest.mark.parametrize("step", ["_settle", "_settle_way"])
def test_without_settling_a_killed_process_breaks_the_promise(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, step, lambda store: None)
    with pytest.raises(AssertionError, match="killed after"):
        kill_states()


def test_what_was_saved_carelessly_is_made_durable_before_it_is_relied_on(tmp_path: Path) -> None:
    """A run that did not wait for the disk goes on as one that does, and then power is lost."""
    calls: list[Op] = []
    model, optimizer = parts()
    with Watch(tmp_path, after=calls.append):
        with Mode(durable=False).run(tmp_path / "run") as run:
            run.save(0, model=model, optimizer=optimizer)
        assert (tmp_path / "run" / "unsynced").exists()
        with Mode().run(tmp_path / "run") as run:
            assert run.resume(model=model, optimizer=optimizer) == 1
            run.save(1)
        assert not (tmp_path / "run" / "unsynced").exists()
    disk = Disk()
    for op in calls:
        disk.apply(op)
    disk.lose_power().make(tmp_path / "after")
    with tk.Run(tmp_path / "after" / "run") as run:
        other, other_optimizer = parts()
        assert run.resume(model=other, optimizer=other_optimizer) == 2
        assert not run.last_resume.skipped and state_bits(other, other_optimizer) == state_bits(model, optimizer)
