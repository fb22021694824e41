"""Letting go of snapshots: tags, prune and gc by hand and after each save, beside a writer, and killed at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.cli.app import main
from torchkeep.errors import CorruptCheckpointError, KeyNotFoundError, LoadError, NoSpaceError, SelectorError
from torchkeep.stores.memory import MemoryStore

LOSSES = (0.5, 0.2, math.nan, 0.3, 0.9, 0.4)


def filled(model: nn.Module, value: float) -> nn.Module:
    """Every tensor of a model, and the random generators, made to depend on a number."""
    torch.manual_seed(int(value))
    random.seed(int(value))
    np.random.seed(int(value))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(value)
    return model


def make_run(folder: Path, count: int = 6, **options: Any) -> list[list[tuple[str, bytes]]]:
    """A run with snapshots 1, 2, 3 ... of steps 0, 1, 2 ..., each wholly its own; returns what the models were."""
    model = TinyNet()
    states = []
    with tk.Run(folder, **options) as run:
        for step in range(count):
            run.log(epoch=step, val_loss=LOSSES[step % len(LOSSES)])
            run.save(step, model=filled(model, step))
            states.append(state_bits(model))
    return states


def sequences(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "snapshots").glob("*.json"))


def packs(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "packs").glob("*.safetensors")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(folder: Path, states: list[list[tuple[str, bytes]]]) -> None:
    """Every snapshot that is there is whole and is what was saved."""
    run = tk.Run(folder)
    assert run.summary().damaged == ()
    for one in run.snapshots:
        model = TinyNet()
        tk.load_into(model, run.open(one))
        assert state_bits(model) == states[one.step], one
    report = tk.verify(folder)
    assert report.ok, report


# -- pruning and collecting -----------------------------------------------------------------------------------------


def test_prune_then_gc(tmp_path: Path) -> None:
    states = make_run(tmp_path)
    run = tk.Run(tmp_path)
    report = run.prune(tk.keep_last(2) | tk.keep_best(1, "val_loss"))
    assert [one.sequence for one in report.kept] == [2, 5, 6] == sequences(tmp_path)
    assert [(one.sequence, one.step) for one in report.removed] == [(1, 0), (3, 2), (4, 3)]
    assert {one.sequence: one.why for one in report.kept}[2] == "best 1 by val_loss"
    assert [one.sequence for one in run.snapshots] == [2, 5, 6], "who pruned sees it too"
    assert len(packs(tmp_path)) == 6 and len(report.packs) == 3
    assert_whole(tmp_path, states)

    before = {ident: (tmp_path / "packs" / f"{ident}.safetensors").stat().st_size for ident in packs(tmp_path)}
    waiting = run.gc()
    assert waiting.removed == () and len(waiting.waiting) == 3 and waiting.kept == 3, "younger than an hour"
    freed = run.gc(grace=0)
    gone = before.keys() - packs(tmp_path)
    assert gone == set(report.packs)
    assert freed.nbytes == report.nbytes == waiting.waiting_nbytes == sum(before[ident] for ident in gone)
    assert_whole(tmp_path, states)
    assert run.gc(grace=0).removed == () and run.prune(tk.keep_last(9)).removed == ()


def test_grace_counts_from_the_files_time(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    run = tk.Run(tmp_path)
    run.prune(tk.keep_last(1))
    old = sorted(packs(tmp_path) - set(run.snapshots[0].packs))[0]
    hours_ago = time.time() - 2 * 3600
    os.utime(tmp_path / "packs" / f"{old}.safetensors", (hours_ago, hours_ago))
    report = run.gc()
    assert report.removed == (f"packs/{old}.safetensors",) and len(report.waiting) == 1
    assert run.gc(grace="1d").removed == () and len(run.gc(grace="0s").removed) == 1


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = tk.Run(tmp_path)
    run.tag("first", 1)
    (tmp_path / "packs" / ".tmp-left").write_bytes(b"x" * 100)
    before = files(tmp_path)
    planned = run.prune(tk.keep_last(1) | tk.keep_every(3), dry_run=True)
    run.gc(grace=0, dry_run=True)
    assert files(tmp_path) == before and planned.dry_run and planned.tags == ()
    done = run.prune(tk.keep_last(1) | tk.keep_every(3))
    assert (planned.removed, planned.kept, planned.packs, planned.nbytes) == (
        done.removed, done.kept, done.packs, done.nbytes,
    )  # fmt: skip
    before = files(tmp_path)
    expected = run.gc(grace=0, dry_run=True)
    assert files(tmp_path) == before
    assert expected.removed == run.gc(grace=0).removed and "packs/.tmp-left" in expected.removed
    assert "would go" in str(planned) and "removed" in str(done)


def test_packs_that_are_shared_stay(tmp_path: Path) -> None:
    backbone, head = nn.Linear(64, 64), nn.Linear(64, 2)
    model = nn.Sequential(backbone, head)
    with tk.Run(tmp_path) as run:
        for step in range(4):
            run.save(step, model=nn.Sequential(backbone, filled(head, step)))
        del model
        first = run.snapshots[0].packs
        run.prune(tk.keep_last(1))
        run.gc(grace=0)
    assert set(first) <= packs(tmp_path) and len(packs(tmp_path)) == 2
    assert tk.verify(tmp_path).ok


def test_the_highest_number_is_never_used_again(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    (tmp_path / "snapshots" / "3.json").write_bytes(b"broken")
    run = tk.Run(tmp_path)
    report = run.prune(tk.keep_last(1), damaged=True)
    assert sequences(tmp_path) == [2, 3], "the newest intact one and the highest number"
    assert "the highest number" in {one.sequence: one.why for one in report.kept}[3]
    with tk.Run(tmp_path) as writer:
        assert writer.save(9, model=filled(TinyNet(), 9)).sequence == 4
        writer.prune(tk.keep_last(1), damaged=True)
        writer.gc(grace=0)
    assert sequences(tmp_path) == [4] and len(packs(tmp_path)) == 1 and tk.verify(tmp_path).ok


def test_damaged_snapshots_are_left_alone_unless_told(tmp_path: Path) -> None:
    states = make_run(tmp_path)
    (tmp_path / "snapshots" / "2.json").write_bytes(b"broken")
    run = tk.Run(tmp_path)
    (lost,) = (one.packs for one in run.snapshots if one.sequence == 4)
    (tmp_path / "packs" / f"{lost[0]}.safetensors").unlink()
    report = run.prune(tk.keep_last(2))
    assert sequences(tmp_path) == [2, 4, 5, 6]
    assert "left alone" in {one.sequence: one.why for one in report.kept}[4]
    assert "gc frees nothing" in report.notes[0]
    before = files(tmp_path)
    for dry_run in (True, False):
        with pytest.raises(CorruptCheckpointError, match=r"nothing was collected.*snapshots/2.json") as caught:
            run.gc(grace=0, dry_run=dry_run)
        assert "damaged=True" in caught.value.hint
    assert files(tmp_path) == before
    report = run.prune(tk.keep_last(2), damaged=True)
    assert [(one.sequence, one.step) for one in report.removed] == [(2, None), (4, 3)]
    assert sequences(tmp_path) == [5, 6]
    run.gc(grace=0)
    assert len(packs(tmp_path)) == 2
    assert_whole(tmp_path, states)


def test_a_newest_snapshot_whose_pack_is_cut_does_not_cost_the_one_before(tmp_path: Path) -> None:
    states = make_run(tmp_path, 4)
    run = tk.Run(tmp_path)
    pack = tmp_path / "packs" / f"{run.snapshots[-1].packs[0]}.safetensors"
    pack.write_bytes(pack.read_bytes()[:-10])
    run.prune(tk.keep_last(1))
    run.gc(grace=0)
    assert sequences(tmp_path) == [3, 4]
    model = TinyNet()
    with pytest.warns(tk.errors.ResumeWarning, match="snapshot 4 was skipped"), tk.Run(tmp_path) as run:
        assert run.resume(model=model) == 3
    assert state_bits(model) == states[2]


def test_a_gap_that_was_not_pruned_is_still_damage(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = tk.Run(tmp_path)
    run.prune(tk.keep_last(3))
    assert tk.verify(tmp_path).ok
    (tmp_path / "snapshots" / "5.json").unlink()
    assert [one.what for one in tk.verify(tmp_path).damaged] == ["snapshot 5"]
    report = run.prune(tk.keep_last(3), damaged=True)
    assert report.removed == () and any("missing, and taken as pruned: 5" in note for note in report.notes)
    assert tk.verify(tmp_path).ok


def test_the_list_of_what_was_pruned_can_be_mended(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = tk.Run(tmp_path)
    run.prune(tk.keep_last(3))
    data = bytearray((tmp_path / "pruned.json").read_bytes())
    data[-5] ^= 1
    (tmp_path / "pruned.json").write_bytes(data)
    assert "pruned.json" in str(tk.verify(tmp_path))
    with pytest.raises(CorruptCheckpointError, match=r"pruned\.json"):
        run.prune(tk.keep_last(2))
    run.prune(tk.keep_last(2), damaged=True)
    assert tk.verify(tmp_path).ok and sequences(tmp_path) == [5, 6]


def test_a_full_disk_can_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = make_run(tmp_path)
    run = tk.Run(tmp_path)
    store, put = run._store, run._store.put

    def full_until_something_goes(key: str, *arguments: Any, **options: Any) -> bool:
        if len(sequences(tmp_path)) == 6:
            raise NoSpaceError("the disk is full", needed=1, free=0)
        return put(key, *arguments, **options)

    monkeypatch.setattr(store, "put", full_until_something_goes)
    run.prune(tk.keep_last(2))
    run.gc(grace=0)
    assert sequences(tmp_path) == [5, 6] and len(packs(tmp_path)) == 2
    assert_whole(tmp_path, states)


def test_misuse_of_prune_and_gc(tmp_path: Path) -> None:
    for act in (lambda run: run.prune(tk.keep_last(1)), lambda run: run.gc(), lambda run: run.tag("x")):
        with pytest.raises(LoadError, match="is no run"):
            act(tk.Run(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    make_run(tmp_path, 2)
    run = tk.Run(tmp_path)
    with pytest.raises(SelectorError, match="no snapshot has the metric 'vall_loss'") as caught:
        run.prune(tk.keep_last(1) | tk.keep_best(1, "vall_loss"))
    assert "val_loss" in caught.value.hint and sequences(tmp_path) == [1, 2]
    with pytest.raises(ValueError, match="is no length of time"):
        run.gc(grace="soon")
    for wrong in (lambda: run.prune(3), lambda: tk.Run(tmp_path, keep=3), lambda: run.prune(tk.keep_last)):
        with pytest.raises(TypeError, match="is no policy"):
            wrong()


def test_what_is_best_does_not_go_silently(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = tk.Run(tmp_path)
    assert run.best is not None and run.best.sequence == 2
    report = run.prune(tk.keep_last(2))
    assert any("snapshot 2 is the best" in note for note in report.notes)
    assert tk.verify(tmp_path).ok, "the pointer to the best may point to what was pruned"
    assert run.best is not None and run.best.sequence == 6
    limited = run.prune(tk.keep_last(2).at_most(10), dry_run=True)
    assert any("more than the limit of 10 B" in note for note in limited.notes)


# -- tags -----------------------------------------------------------------------------------------------------------


def test_tags(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = tk.Run(tmp_path)
    assert run.tags == {} and run.tag("paper_v1.0-final", 2) == 2 and run.tag("newest") == 6
    assert run.tag("moved", run.snapshots[0]) == 1 and run.tag("moved", 3) == 3
    assert tk.Run(tmp_path).tags == {"paper_v1.0-final": 2, "newest": 6, "moved": 3}
    assert "2 best, paper_v1.0-final" in str(run.summary()) and "6 newest" in str(run.summary())
    assert tk.to_json(run.summary())["tags"]["moved"] == 3
    run.prune(tk.keep_tagged())
    assert sequences(tmp_path) == [2, 3, 6] and tk.verify(tmp_path).ok
    run.untag("moved")
    assert run.tags == {"paper_v1.0-final": 2, "newest": 6}
    report = run.prune(tk.keep_last(1))
    assert report.tags == ("paper_v1.0-final",) and run.tags == {"newest": 6}
    assert tk.verify(tmp_path).ok
    with pytest.raises(KeyNotFoundError, match="no tag 'moved'"):
        run.untag("moved")
    with pytest.raises(LoadError, match="no intact snapshot 2"):
        run.tag("again", 2)
    for name in ("best", "", ".hidden", "a/b", "..", "ü", "a b", "x" * 101, None):
        with pytest.raises(ValueError, match=r"no name for a tag|the run's own"):
            run.tag(name)


def test_a_damaged_tag_stops_pruning(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    run = tk.Run(tmp_path)
    run.tag("release", 1)
    path = tmp_path / "tags" / "release.json"
    path.write_bytes(path.read_bytes().replace(b'"sequence":1', b'"sequence":2'))
    assert run.tags == {} and "tags/release.json" in str(tk.verify(tmp_path))
    with pytest.raises(CorruptCheckpointError, match=r"tags/release\.json"):
        run.prune(tk.keep_last(1) | tk.keep_tagged())
    assert sequences(tmp_path) == [1, 2, 3]
    run.tag("release", 1)
    assert tk.verify(tmp_path).ok
    path.write_bytes(b"broken")
    assert run.prune(tk.keep_last(1) | tk.keep_tagged(), damaged=True).tags == ("release",)
    assert not path.exists() and tk.verify(tmp_path).ok


def test_a_tag_that_points_nowhere_is_damage(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    run = tk.Run(tmp_path)
    run.tag("release", 3)
    (tmp_path / "snapshots" / "3.json").unlink()
    assert run.tags == {} and "it points to snapshot 3, which is not intact" in str(tk.verify(tmp_path))


# -- keep= ----------------------------------------------------------------------------------------------------------


def test_keep_is_applied_after_each_save(tmp_path: Path) -> None:
    policy = tk.keep_last(2) | tk.keep_best(1, "val_loss")
    states = make_run(tmp_path, keep=policy)
    assert sequences(tmp_path) == [2, 5, 6] and len(packs(tmp_path)) == 3
    assert_whole(tmp_path, states)
    model = TinyNet()
    with tk.Run(tmp_path, keep=policy) as run:
        assert run.resume(model=model) == 6
        assert state_bits(model) == states[5]
        run.log(val_loss=0.1)
        report = run.save(6)
        assert report.sequence == 7 and report.notes == () and report.tensors_written < report.tensors_total
    assert sequences(tmp_path) == [6, 7] and tk.verify(tmp_path).ok


def test_keep_best_waits_for_its_metric(tmp_path: Path) -> None:
    with tk.Run(tmp_path, keep=tk.keep_best(2, "val_loss")) as run:
        run.save(0, model=TinyNet())
        for step, loss in enumerate((0.3, 0.1, 0.2, 0.4), start=1):
            run.log(val_loss=loss)
            assert run.save(step).notes == ()
    assert sequences(tmp_path) == [3, 4, 5]


def test_keep_with_damage_is_a_note_and_the_save_stands(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    (tmp_path / "snapshots" / "1.json").write_bytes(b"broken")
    with tk.Run(tmp_path, keep=tk.keep_last(1)) as run:
        report = run.save(3, model=TinyNet())
        assert report.sequence == 4 and "a damaged manifest may name any pack" in report.notes[0]
        assert sequences(tmp_path) == [1, 4] and len(packs(tmp_path)) == 4
        run.prune(tk.keep_last(1), damaged=True)
        filled(run._objects["model"], 7)
        assert run.save(4).notes == ()
        run.gc(grace=0)
    assert sequences(tmp_path) == [5] and len(packs(tmp_path)) <= 2 and tk.verify(tmp_path).ok


def test_a_long_lived_writer_forgets_what_was_pruned(tmp_path: Path) -> None:
    model = TinyNet()
    with tk.Run(tmp_path) as run:
        for step in range(30):
            run.save(step, model=filled(model, step % 4))
            if step % 3 == 2:
                other = tk.Run(tmp_path)  # as another process would
                other.prune(tk.keep_last(1))
                other.gc(grace=0)
        assert [one.sequence for one in run.snapshots] == [30]
        archive = run._archive
        known = len(archive._known)
        assert known < 60 and sum(map(len, archive._verified.values())) < 60 and len(archive._counted) < 60
        assert archive._damaged_packs == set(), "a pack that was collected is not damaged"
        written = [run.save(step).tensors_written for step in (30, 31)]
    assert written == [0, 0], "what was written anew after a collection is relied on again"
    assert tk.verify(tmp_path).ok


def test_after_damage_a_tensor_is_rewritten_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))

    def save(run: tk.Run, step: int) -> int:
        nn.init.constant_(model[1].weight, step)
        return run.save(step, model=model).tensors_written

    with tk.Run(tmp_path) as run:
        save(run, 0)
    (pack,) = (tmp_path / "packs").iterdir()
    pack.unlink()
    with tk.Run(tmp_path) as run:
        assert save(run, 1) == 7 and save(run, 2) == 1
    with tk.Run(tmp_path) as run:
        assert save(run, 3) == 1


# -- stores without a guard, without files ----------------------------------------------------------------------------


def test_in_memory(tmp_path: Path) -> None:
    store = MemoryStore()
    make_run(tmp_path, store=store)
    run = tk.Run(tmp_path, store=MemoryStore(store))
    run.tag("second", 2)
    report = run.prune(tk.keep_last(1) | tk.keep_tagged())
    assert [one.sequence for one in report.kept] == [2, 6]
    assert len(run.gc(grace=0).removed) == 4
    assert len(store.keys("packs/")) == 2 and run.tags == {"second": 2}


class Bare:
    """A store with the five methods and nothing more."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.put, self.append, self.source = store.put, store.append, store.source
        self.keys, self.delete = store.keys, store.delete


def test_without_a_guard_a_pack_goes_only_when_it_was_found_unneeded_a_grace_period_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1e9]
    monkeypatch.setattr("torchkeep.running.retention.time.time", lambda: now[0])
    store = Bare(MemoryStore())
    model = TinyNet()
    writer = tk.Run("nowhere", store=store)
    for step in range(4):
        writer.save(step, model=filled(model, step % 3))
    other = tk.Run("nowhere", store=store)
    other.prune(tk.keep_last(1))
    assert other.gc(dry_run=True).removed == () and store.keys("condemned.json") == []
    first = other.gc()
    assert first.removed == () and len(first.waiting) == 2, "condemned"
    condemned = set(first.waiting)
    now[0] += 1800
    assert other.gc().removed == ()
    report = writer.save(4, model=filled(model, 1))  # has the tensors of a condemned pack
    assert report.tensors_written > 0, "a save relies on nothing that is condemned"
    assert not {f"packs/{ident}.safetensors" for ident in writer.snapshots[-1].packs} & condemned
    now[0] += 1900
    assert set(other.gc().removed) == condemned
    fresh = TinyNet()
    assert tk.Run("nowhere", store=store).resume(model=fresh) == 5
    assert state_bits(fresh) == state_bits(model)


# -- beside other processes -------------------------------------------------------------------------------------------


def test_who_reads_while_snapshots_go_gets_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot vanishes between the listing and the reading, or between manifest and packs: it is passed over."""
    from torchkeep.running.archive import Archive

    states = make_run(tmp_path, 3)
    reader, writer = tk.Run(tmp_path), tk.Run(tmp_path)
    original = {"body": Archive.body, "sequences": Archive.sequences, "_open": Archive._open}
    once = [True]

    def racing(name: str) -> Callable[..., Any]:
        def patched(self: Archive, *arguments: Any) -> Any:
            found = original["sequences"](self) if name == "sequences" else None
            if once[0] and self is not writer._archive:
                once[0] = False
                monkeypatch.undo()
                writer.save(3 + len(sequences(tmp_path)), model=filled(TinyNet(), 99))
                tk.Run(tmp_path).prune(tk.keep_last(1))
                tk.Run(tmp_path).gc(grace=0)
            return found if name == "sequences" else original[name](self, *arguments)

        return patched

    acts: dict[str, Callable[[], Any]] = {
        "open": lambda: tk.load_into(TinyNet(), reader.open()),
        "snapshots": lambda: reader.snapshots,
        "summary": lambda: reader.summary().damaged,
        "digests": reader.digests,
        "verify": lambda: tk.verify(tmp_path).damaged,
        "tags": lambda: reader.tags,
    }
    for what, act in acts.items():
        for name in original:
            once[0] = True
            monkeypatch.setattr(Archive, name, racing(name))
            found = act()
            monkeypatch.undo()
            assert what not in {"summary", "verify"} or found == (), (what, name)
    writer.close()
    once[0] = True
    with tk.Run(tmp_path) as run:
        model = TinyNet()
        run.resume(model=model)
        assert run.last_resume is not None and run.last_resume.skipped == ()
    assert states


def test_resume_passes_over_what_is_pruned_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchkeep.running.archive import Archive

    states = make_run(tmp_path, 4)
    data = bytearray((tmp_path / "snapshots" / "4.json").read_bytes())
    data[100] ^= 1
    (tmp_path / "snapshots" / "4.json").write_bytes(data)
    original = Archive._open

    def prunes_first(self: Archive, ident: str, body: Any) -> Any:
        monkeypatch.undo()
        (tmp_path / "snapshots" / "3.json").unlink()  # as a prune and a gc with another policy would
        (tmp_path / "packs" / f"{ident}.safetensors").unlink()
        return original(self, ident, body)

    monkeypatch.setattr(Archive, "_open", prunes_first)
    model = TinyNet()
    with pytest.warns(tk.errors.ResumeWarning, match="snapshot 4 was skipped"), tk.Run(tmp_path) as run:
        assert run.resume(model=model) == 2
        assert run.last_resume is not None and [one.sequence for one in run.last_resume.skipped] == [4]
    assert state_bits(model) == states[1]


def test_gc_waits_for_a_save_that_relies_on_a_pack(tmp_path: Path) -> None:
    """The save finds its tensors in an old pack, whose manifest is pruned before the save commits."""
    model = TinyNet()
    with tk.Run(tmp_path) as run:
        run.save(0, model=filled(model, 1))
        run.save(1, model=filled(model, 2))
        filled(model, 1)
        store, found, done = run._store, threading.Event(), threading.Event()
        put, freed = store.put, []

        def slow_put(key: str, *arguments: Any, **options: Any) -> bool:
            if key.startswith("snapshots/"):
                found.set()
                assert not done.wait(0.3), "gc did not wait"
            return put(key, *arguments, **options)

        def beside() -> None:
            found.wait()
            other = tk.Run(tmp_path)
            other.prune(tk.keep_last(1))
            freed.append(other.gc(grace=0))
            done.set()

        thread = threading.Thread(target=beside)
        thread.start()
        store.put = slow_put
        assert run.save(2).tensors_written < 3, "nearly all of it was in the first pack"
        thread.join()
    assert sequences(tmp_path) == [3] and len(freed[0].removed) >= 1
    fresh = TinyNet()
    tk.load_into(fresh, tk.Run(tmp_path).open())
    assert state_bits(fresh) == state_bits(model) and tk.verify(tmp_path).ok


def test_a_forked_child_is_not_in_the_guard(tmp_path: Path) -> None:
    store = tk.local_store(tmp_path)
    with store.guard(False):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        started = time.monotonic()
        with store.guard(True):
            pass
        assert time.monotonic() - started < 5
        with store.guard(True):
            other = os.fork()
            if other == 0:  # leaves the guard that it is not in, which must not free it
                with contextlib.suppress(BaseException):
                    raise ValueError
                os._exit(0)
            os.waitpid(other, 0)
            fd = os.open(tmp_path / "guard", os.O_RDWR)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(fd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_is_killed_in_the_guard_frees_it(tmp_path: Path) -> None:
    store = tk.local_store(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with store.guard(True):
            os.write(writer, b"x")
            time.sleep(30)
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with store.guard(True):
        pass
    os.close(reader)
    os.close(writer)


# -- crashes ----------------------------------------------------------------------------------------------------------

CALLS = ("fsync", "link", "writev", "posix_fallocate", "unlink", "open", "replace", "close", "mkdir")


def dies_at(call_number: int, when: str, act: Callable[[], None]) -> int:
    """Act in a forked child that is killed at its nth system call; returns the child's status."""
    child = os.fork()
    if child == 0:
        count = 0

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def patched(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                mine = count
                if mine == call_number and when == "before":
                    die()
                if mine == call_number and when == "during" and name == "writev":
                    os.write(arguments[0], bytes(arguments[1][0])[: len(arguments[1][0]) // 2])
                    die()
                try:
                    return original(*arguments, **options)
                finally:
                    if mine == call_number and when != "before":
                        die()

            return patched

        try:
            for name in CALLS:
                setattr(os, name, wrap(name, getattr(os, name)))
            fcntl.flock = wrap("flock", fcntl.flock)
            act()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_kill_at_every_system_call_of_prune_and_gc_leaves_whole_snapshots(tmp_path: Path, when: str) -> None:
    torch.set_num_threads(1)  # forked children must not wait for threads they do not have
    base = tmp_path / "base"
    states = make_run(base, 5)
    tk.Run(base).tag("old", 1)
    tk.Run(base).tag("kept", 2)
    (base / "packs" / ".tmp-left").write_bytes(b"x" * 100)
    policy = tk.keep_last(1) | tk.keep_best(1, "val_loss")
    seen = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        shutil.copytree(base, folder)

        def act(folder: Path = folder) -> None:
            run = tk.Run(folder)
            run.prune(policy)
            run.gc(grace=0)

        status = dies_at(number, when, act)
        left = sequences(folder)
        seen.append((len(left), len(packs(folder))))
        assert {2, 5} <= set(left)
        assert_whole(folder, states)
        model = TinyNet()
        with tk.Run(folder) as run:
            assert run.resume(model=model) == 5 and state_bits(model) == states[4]
            assert run.save(5, model=filled(model, 5)).sequence == 6
        assert not list(folder.rglob(".tmp-*")), "the next writer clears what the dead one left"
        run = tk.Run(folder)
        run.prune(policy)
        run.gc(grace=0)
        assert sequences(folder) == [2, 6] and len(packs(folder)) <= 3 and run.tags == {"kept": 2}
        assert_whole(folder, [*states, state_bits(model)])
        shutil.rmtree(folder)
        if not os.WIFSIGNALED(status):
            break
    assert not os.WIFSIGNALED(status) and len(seen) > 15
    assert seen[0] == (5, 5) and seen[-1] == (2, 2)
    assert seen == sorted(seen, reverse=True), "first the manifests go, one after another, then the packs"
    assert {manifests for manifests, _ in seen} == {5, 4, 3, 2} and {files for _, files in seen} == {5, 4, 3, 2}


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_kill_at_every_system_call_of_a_save_that_prunes(tmp_path: Path, when: str) -> None:
    torch.set_num_threads(1)
    base = tmp_path / "base"
    states = make_run(base, 3)
    model = filled(TinyNet(), 3)
    states.append(state_bits(model))
    done = []
    for number in range(1, 200):
        folder = tmp_path / str(number)
        shutil.copytree(base, folder)

        def act(folder: Path = folder) -> None:
            tk.Run(folder, keep=tk.keep_last(1)).save(3, model=model)

        status = dies_at(number, when, act)
        left = sequences(folder)
        done.append(4 in left)
        assert 3 in left or 4 in left
        assert_whole(folder, states)
        fresh = TinyNet()
        with tk.Run(folder) as run:
            start = run.resume(model=fresh)
            assert state_bits(fresh) == states[start - 1] and start == max(left)
        shutil.rmtree(folder)
        if not os.WIFSIGNALED(status):
            break
    assert not os.WIFSIGNALED(status) and done == sorted(done) and done[-1]


# -- at the same time -------------------------------------------------------------------------------------------------


def _sum(model: nn.Module) -> dict[str, float]:
    return {"sum": sum(float(parameter.detach().double().sum()) for parameter in model.parameters())}


def _saves(folder: str, until: float, seed: int) -> None:
    """Save as often as one can; half of the parameters take values they had before, so that packs are used again."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    model = TinyNet()
    with tk.Run(folder) as run:
        step = run.resume(model=model)
        while time.time() < until or not run.snapshots:  # a machine may be so busy that it begins when all is over
            with torch.no_grad():
                for place, parameter in enumerate(model.parameters()):
                    parameter.fill_(float(generator.randrange(4)) if place % 2 else float(step))
            model.scale.fill_(float(step))
            run.log(step=step, val_loss=generator.random())
            run.save(step, extra=_sum(model))
            step += 1


def _lets_go(folder: str, until: float, seed: int) -> None:
    """Prune by changing policies, collect without grace, tag."""
    torch.set_num_threads(1)
    generator = random.Random(seed)
    run = tk.Run(folder)
    collected = 0
    while time.time() < until:
        with contextlib.suppress(LoadError):  # there is no run yet
            policies = [tk.keep_last(generator.randint(1, 4)), tk.keep_every(7), tk.keep_best(2, "val_loss")]
            chosen = generator.sample(policies, generator.randint(1, 2))
            policy = chosen[0] if len(chosen) == 1 else chosen[0] | chosen[1]
            with contextlib.suppress(SelectorError):  # nothing was saved yet
                run.prune(policy | tk.keep_tagged())
            collected += len(run.gc(grace=0).removed)
            if generator.random() < 0.2:
                run.tag(f"t{generator.randrange(3)}")
    Path(folder).with_name("collected").write_text(str(collected))


def _reads(folder: str, until: float, seed: int) -> None:
    """Open, list and verify; nothing may ever look damaged."""
    torch.set_num_threads(1)
    run = tk.Run(folder)
    while time.time() < until:
        with contextlib.suppress(LoadError):  # there is no run yet, or no snapshot
            ckpt = run.open()
            assert float(ckpt["scale"].load()) == float(ckpt["conv.weight"].load()[0, 0, 0, 0])
            assert run.summary().damaged == ()
            run.digests()
            report = tk.verify(folder)
            assert report.ok, report


def save_and_let_go(folder: Path, seconds: float, seed: int = 0) -> tuple[int, int, int]:
    """One process saves constantly, others prune, collect and read: nothing is lost.

    Returns:
        How many snapshots were saved, how many are left, how many packs were collected.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchkeep", "models"])
    until = time.time() + seconds
    children = [
        context.Process(target=act, args=(str(folder), until, seed + number))
        for number, act in enumerate((_saves, _lets_go, _reads))
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    report = tk.verify(folder)
    assert report.ok, report
    run = tk.Run(folder)
    left = [one.sequence for one in run.snapshots]
    for one in run.snapshots:
        assert float(run.open(one)["scale"].load()) == one.step
    model = TinyNet()
    with tk.Run(folder) as run:
        step = run.resume(model=model) - 1
        assert run.last_resume is not None and run.last_resume.sequence == left[-1] and not run.last_resume.skipped
        assert float(model.scale) == step and run.last_resume.extra == _sum(model)
    return left[-1], len(left), int(folder.with_name("collected").read_text())


def test_saving_pruning_collecting_and_reading_at_the_same_time(tmp_path: Path) -> None:
    saves, left, collected = save_and_let_go(tmp_path / "run", seconds=6)
    assert saves > 20 and left < saves and collected > 10


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The program in this process: exit code, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchkeep", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    yield call


def test_prune_and_gc_from_the_command_line(call: Any, tmp_path: Path) -> None:
    make_run(tmp_path)
    assert call("tag", tmp_path, "start", "1") == (0, "start: snapshot 1\n", "")
    code, out, _ = call("prune", tmp_path, "--keep-last", "1", "--keep-best", "1", "--metric", "val_loss", "--dry-run")
    assert code == 0 and "would go" in out and "tag start" in out and sequences(tmp_path) == [1, 2, 3, 4, 5, 6]
    code, out, _ = call("prune", tmp_path, "--keep-last", "1", "--keep-every", "2", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["gc"] is None and not answer["prune"]["dry_run"]
    assert [one["sequence"] for one in answer["prune"]["kept"]] == [1, 3, 5, 6]
    code, out, _ = call("gc", tmp_path, "--json")
    assert code == 0 and json.loads(out)["removed"] == [] and len(json.loads(out)["waiting"]) == 2
    code, out, _ = call("gc", tmp_path, "--grace", "0s", "--dry-run")
    assert code == 0 and "would go" in out and len(packs(tmp_path)) == 6
    code, out, _ = call("prune", tmp_path, "--keep-last", "5", "--max-bytes", "1", "--no-keep-tagged", "--gc", "--json")
    answer = json.loads(out)
    assert code == 0 and sequences(tmp_path) == [6] and answer["prune"]["tags"] == ["start"]
    assert len(answer["gc"]["waiting"]) == 5, "the grace period of gc holds here too"
    code, out, _ = call("gc", tmp_path, "--grace", "0")
    assert code == 0 and "5 files" in out and len(packs(tmp_path)) == 1
    assert call("verify", tmp_path)[0] == 0


def test_tags_from_the_command_line(call: Any, tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    assert json.loads(call("tag", tmp_path, "a", "--json")[1]) == {"tags": {"a": 3}}
    assert call("tag", tmp_path, "b", "2")[1] == "a: snapshot 3\nb: snapshot 2\n"
    code, out, _ = call("runs", tmp_path)
    assert code == 0 and "2 best, b" in out and "3 a" in out
    assert json.loads(call("runs", tmp_path, "--json")[1])["runs"][0]["tags"] == {"a": 3, "b": 2}
    assert call("tag", tmp_path, "a", "--delete")[1] == "b: snapshot 2\n"
    assert call("tag", tmp_path, "b", "--delete")[1] == "no tags\n"
    assert call("tag", tmp_path, "b", "--delete")[0] == KeyNotFoundError.exit_code
    assert call("tag", tmp_path, "c", "17")[0] == LoadError.exit_code


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["prune"], 2, "say what stays"),
        (["prune", "--keep-best", "1"], 2, "go together"),
        (["prune", "--keep-last", "0"], 2, "keep-last"),
        (["prune", "--keep-best", "1", "--metric", "goodness"], 2, "high or a low"),
        (["prune", "--keep-best", "1", "--metric", "goodness", "--mode", "max"], 50, "no snapshot has the metric"),
        (["prune", "--keep-last", "1", "--max-bytes", "much"], 2, "is no size"),
        (["gc", "--grace", "soon"], 2, "is no length of time"),
        (["tag", "best"], 2, "own"),
        (["tag", "x", "1", "--delete"], 2, "SNAPSHOT"),
    ],
)
def test_wrong_command_lines_are_explained(
    call: Any, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    make_run(tmp_path, 2)
    got, _, err = call(arguments[0], tmp_path, *arguments[1:])
    assert got == code and words in err.replace("\n", " ").replace("│", "")
    assert sequences(tmp_path) == [1, 2]


def test_a_damaged_manifest_has_its_exit_code(call: Any, tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    (tmp_path / "snapshots" / "1.json").write_bytes(b"broken")
    code, out, _ = call("gc", tmp_path, "--grace", "0", "--json")
    assert code == CorruptCheckpointError.exit_code and "--damaged" in json.loads(out)["hint"]
    assert call("prune", tmp_path, "--keep-last", "1", "--damaged", "--gc")[0] == 0 and sequences(tmp_path) == [3]
    assert call("gc", tmp_path / "elsewhere")[0] == LoadError.exit_code
