"""The contract of stores: local and memory stores pass it, a toy store passes it, and broken ones do not."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest

import broken_stores
import torchkeep as tk
from models import OPTIMIZERS, TinyNet, state_bits, train_epoch
from torchkeep.core.source import read_all
from torchkeep.engines.mapped import MappedSource
from torchkeep.errors import (
    CorruptCheckpointError,
    KeyNotFoundError,
    ResumeWarning,
    RunLockedError,
    SaveError,
    UnsupportedFeatureError,
)
from torchkeep.stores.memory import MemoryStore
from torchkeep.testing import StoreTests


def read(store: Any, key: str) -> bytes:
    return read_all(store.source(key))


class TestLocalStore(StoreTests):
    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def new(self) -> Any:
        return tk.local_store(self.folder / secrets.token_hex(4) / "run")

    def again(self, store: Any) -> Any:
        return tk.local_store(store.root)


class TestMemoryStore(StoreTests):
    def new(self) -> Any:
        return MemoryStore()

    def again(self, store: Any) -> Any:
        return MemoryStore(store)


def test_the_five_methods(tmp_path: Path) -> None:
    store = tk.local_store(tmp_path / "deep" / "run")
    assert store.put("packs/a", [b"one", b"", memoryview(b"two")], nbytes=6)
    assert not store.put("packs/a", [b"other"]), "what is there stays"
    assert read(store, "packs/a") == b"onetwo"
    assert store.put("packs/a", [b"new"], replace=True) and read(store, "packs/a") == b"new"
    store.append("log", b"1\n")
    store.append("log", b"2\n", durable=True)
    assert read(store, "log") == b"1\n2\n"
    store.put("packs/b", [])
    assert store.keys("packs/") == ["packs/a", "packs/b"] and store.keys("none/") == []
    assert read(store, "packs/b") == b""
    store.delete("packs/a")
    store.delete("packs/a")
    assert store.keys("packs/") == ["packs/b"]
    with pytest.raises(KeyNotFoundError, match="has no packs/a"):
        store.source("packs/a")


def test_a_source_reads_its_range_and_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"sibling")
    source = MappedSource(tmp_path / "a")
    assert bytes(source.read(2, 3)) == b"234" and bytes(source.read(10, 0)) == b""
    assert bytes(source.sibling("b").read(0, 7)) == b"sibling"
    for offset, nbytes in ((5, 6), (-1, 2), (11, 0), (0, -1)):
        with pytest.raises(CorruptCheckpointError, match="is truncated"):
            source.read(offset, nbytes)
    for name in ("../a", "/etc/hostname", "", ".", "..", "x/y"):
        with pytest.raises(CorruptCheckpointError, match="no plain file name"):
            source.sibling(name)
    with pytest.raises(UnsupportedFeatureError, match="not a regular file"):
        MappedSource("/dev/null")


def test_a_writable_view_never_reaches_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    view = MappedSource(tmp_path / "a").read(0, 4)
    view[0] = ord("X")
    assert (tmp_path / "a").read_bytes() == b"0123"


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="cannot be written"):
        tk.local_store(tmp_path / "file" / "run").put("packs/a", [b"x"])


# -- a run in memory --------------------------------------------------------------------------------------------


def test_a_run_in_memory_resumes_and_falls_back() -> None:
    store = MemoryStore()
    model = TinyNet()
    opt = OPTIMIZERS["adamw"](model.parameters())
    states = []
    with tk.Run("nowhere", store=store) as run:
        for epoch in range(3):
            train_epoch(model, opt)
            run.log(epoch=epoch, val_loss=1 / (epoch + 1))
            run.save(epoch, model=model, optimizer=opt)
            states.append(state_bits(model, opt))
        assert run.best.sequence == 3 and run.summary().damaged == ()
        with pytest.raises(RunLockedError, match="another store object of this process"):
            tk.Run("nowhere", store=MemoryStore(store)).log(a=1)
    other = TinyNet()
    other_opt = OPTIMIZERS["adamw"](other.parameters())
    with tk.Run("nowhere", store=MemoryStore(store)) as run:
        assert run.resume(model=other, optimizer=other_opt) == 3
        assert state_bits(other, other_opt) == states[2]
    damaged = bytearray(read(store, "snapshots/3.json"))
    damaged[len(damaged) // 2] ^= 1
    store.put("snapshots/3.json", [damaged], replace=True)
    with tk.Run("nowhere", store=MemoryStore(store)) as run:
        with pytest.warns(ResumeWarning, match="snapshot 3 was skipped"):
            assert run.resume(model=other, optimizer=other_opt) == 2
        assert state_bits(other, other_opt) == states[1]
        assert [one.sequence for one in run.last_resume.skipped] == [3]
        assert [record["epoch"] for record in run.history] == [0, 1]
        assert run.save(2).sequence == 4
        assert [one.sequence for one in run.snapshots] == [1, 2, 4]
        run.prune(tk.keep_last(1), damaged=True)
        assert run.gc().removed
    with tk.Run("nowhere", store=store) as run:
        assert run.resume(model=other, optimizer=other_opt) == 3 and state_bits(other, other_opt) == states[1]
    assert not Path("nowhere").exists()


def test_the_lock_of_a_run_in_memory_goes_with_its_store_and_stays_with_its_process() -> None:
    store = MemoryStore()
    with tk.Run("nowhere", store=store) as run:
        run.log(a=1)
        child = os.fork()
        if child == 0:
            try:
                run.log(a=2)
            except RunLockedError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        run.log(a=3)
        assert run.history.metric("a") == [1, 3]


# -- stores that break the contract -----------------------------------------------------------------------------


class TestToy(StoreTests):
    store: Any = broken_stores.Toy

    def new(self) -> Any:
        return self.store()


class TestBroken(TestMemoryStore):
    """Not run as it stands: what a store is, is filled in below."""

    __test__ = False
    rounds = 3
    store: Any = None

    def new(self) -> Any:
        return self.store()

    def again(self, store: Any) -> Any:
        return self.store(store) if isinstance(store, MemoryStore) else store


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (broken_stores.Overwriting, "test_what_is_there_stays"),
        (broken_stores.Overwriting, "test_one_of_many_writers_wins"),
        (broken_stores.Boasting, "test_what_is_there_stays"),
        (broken_stores.Boasting, "test_one_of_many_writers_wins"),
        (broken_stores.Piecemeal, "test_nobody_sees_what_is_being_put"),
        (broken_stores.Piecemeal, "test_who_reads_while_it_is_replaced_sees_the_old_or_the_new"),
        (broken_stores.Piecemeal, "test_a_writer_that_fails_leaves_nothing"),
        (broken_stores.Looking, "test_one_of_many_writers_wins"),
        (broken_stores.Clearing, "test_who_reads_while_it_is_replaced_sees_the_old_or_the_new"),
        (broken_stores.Clearing, "test_a_writer_that_fails_leaves_nothing"),
        (broken_stores.InTwo, "test_who_reads_while_it_is_replaced_sees_the_old_or_the_new"),
        (broken_stores.Littering, "test_nobody_sees_what_is_being_put"),
        (broken_stores.Littering, "test_a_writer_that_fails_leaves_nothing"),
        (broken_stores.Swallowing, "test_a_writer_that_fails_leaves_nothing"),
        (broken_stores.Padding, "test_bytes_of_every_kind"),
        (broken_stores.Short, "test_big_values_in_many_pieces"),
        (broken_stores.Forgetful, "test_appending"),
        (broken_stores.Forgetful, "test_appending_durably"),
        (broken_stores.Racing, "test_appending_from_several_threads"),
        (broken_stores.Prefixes, "test_keys_are_listed_by_prefix"),
        (broken_stores.Unsorted, "test_keys_are_listed_by_prefix"),
        (broken_stores.FewKeys, "test_many_keys"),
        (broken_stores.Unescaped, "test_odd_keys"),
        (broken_stores.Strict, "test_deleting"),
        (broken_stores.Undeleting, "test_deleting"),
        (broken_stores.Raw, "test_a_key_that_is_missing_is_named"),
        (broken_stores.Nothing, "test_empty_values"),
        (broken_stores.Unchecked, "test_sources_read_ranges"),
        (broken_stores.Live, "test_sources_stay_as_they_were"),
        (broken_stores.Lent, "test_who_reads_cannot_change_what_is_stored"),
        (broken_stores.Unlocked, "test_one_writer_at_a_time"),
        (broken_stores.Sticky, "test_one_writer_at_a_time"),
        (broken_stores.Unguarded, "test_the_guard_keeps_deleting_and_saving_apart"),
        (broken_stores.Leaving, "test_the_guard_goes_with_an_error"),
    ],
)
def test_a_store_that_breaks_the_contract_fails(broken: Any, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchkeep.testing.exclusion._SOON", 0.3)
    checks = TestBroken()
    checks.store = broken
    with pytest.raises((AssertionError, KeyError, KeyNotFoundError)):
        getattr(checks, test)()
