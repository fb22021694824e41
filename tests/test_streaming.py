"""Packs that are written while their tensors are hashed: what is new and nothing else, under the name of its content."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import torchkeep as tk
from models import state_bits
from torchkeep.core.manifest import decode_manifest
from torchkeep.engines import files
from torchkeep.errors import SaveError
from torchkeep.running import packs
from torchkeep.stores.local import LocalStore

SIDE = 1100  # 4.8 MB: large enough to be hashed beside, and two of them to be streamed


def layers(count: int = 4, side: int = SIDE) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(side, side) for _ in range(count)))


def change(model: nn.Sequential, *which: int) -> None:
    with torch.no_grad():
        for number in which:
            model[number].weight.add_(1e-3)
            model[number].bias.add_(1e-3)


def pack_files(run: Path) -> set[Path]:
    return set((run / "packs").glob("*"))


def keys_of(pack: Path) -> set[str]:
    with safe_open(pack, "pt") as file:  # a second opinion on the file
        return set(file.keys())


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each pack that was streamed, whether it was there by that."""
    found: list[bool] = []
    real = LocalStore.put_named

    def put_named(store: LocalStore, *args: Any, **options: Any) -> bool:
        found.append(real(store, *args, **options))
        return found[-1]

    monkeypatch.setattr(LocalStore, "put_named", put_named)
    return found


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("durable", [True, False])
def test_only_what_changed_is_written(tmp_path: Path, streamed: list[bool], blocking: bool, durable: bool) -> None:
    model = layers()

    def save(step: int) -> tk.SaveReport:
        saved = run.save(step, model=model, blocking=blocking)
        return saved if isinstance(saved, tk.SaveReport) else saved.result()

    with tk.Run(tmp_path / "run", durable=durable) as run:
        first = save(0)
        assert streamed == [True] and first.tensors_written == first.tensors_total
        before = pack_files(tmp_path / "run")
        change(model, 1, 3)
        second = save(1)
        (new,) = pack_files(tmp_path / "run") - before
        assert keys_of(new) >= {"model/1.weight", "model/1.bias", "model/3.weight", "model/3.bias"}
        assert not any(key.startswith(("model/0", "model/2")) for key in keys_of(new))
        assert second.tensors_written == len(keys_of(new)) and streamed == [True, True]
        assert new.stat().st_size <= second.bytes_written < new.stat().st_size + 16_384
    assert tk.verify(tmp_path / "run").ok
    fresh = layers()
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=fresh)
    assert state_bits(fresh) == state_bits(model)


def test_nothing_is_written_where_nothing_changed(tmp_path: Path, streamed: list[bool]) -> None:
    model = layers()
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        before = pack_files(tmp_path / "run")
        report = run.save(1)
        assert streamed == [True] and report.tensors_written == 0 and report.engine == ""
        assert pack_files(tmp_path / "run") == before


def test_what_was_settled_and_changes_after_all_comes_in_a_second_pack(tmp_path: Path, streamed: list[bool]) -> None:
    model = layers()
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        change(model, 2, 3)
        run.save(1)
        before = pack_files(tmp_path / "run")
        change(model, 0, 2, 3)
        report = run.save(2)
        new = [keys_of(pack) for pack in pack_files(tmp_path / "run") - before]
        assert len(new) == 2 and len(streamed) == 3
        assert {"model/0.weight", "model/0.bias"} in new
        assert report.tensors_written == sum(map(len, new))
    assert tk.verify(tmp_path / "run").ok


def test_part_of_what_is_likely_leaves_no_room_behind(tmp_path: Path, streamed: list[bool]) -> None:
    """The file is as long as what came and the header of all that could have come, and no reserved space stays."""
    model = layers(6)
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        before = pack_files(tmp_path / "run")
        change(model, 5)
        run.save(1)
    (new,) = pack_files(tmp_path / "run") - before
    stat = new.stat()
    assert stat.st_size < 4 * SIDE * (SIDE + 1) + 16_384
    assert stat.st_blocks * 512 < stat.st_size + 16_384
    assert len(streamed) == 2 and tk.verify(tmp_path / "run").ok


def test_equal_tensors_and_odd_dtypes_are_streamed_once_and_whole(tmp_path: Path, streamed: list[bool]) -> None:
    model = layers(2)
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight)
    extra = {
        "twin": model[0].weight.detach().clone(),
        "complex": torch.randn(600, 600, dtype=torch.complex128),
        "turned": torch.randn(700, 900).t(),
        "empty": torch.zeros(0, 3),
        "flags": torch.ones(5, dtype=torch.bool),
        "bf16": torch.randn(1000, 1000).bfloat16(),
    }
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model, extra=extra)
        assert streamed == [True]
    (pack,) = pack_files(tmp_path / "run")
    assert sum(key in keys_of(pack) for key in ("model/0.weight", "model/1.weight", "extra/twin")) == 1
    assert tk.verify(tmp_path / "run").ok
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=layers(2))
        found = run.last_resume.extra
    for name, tensor in extra.items():
        value = found[name]
        assert value.dtype == tensor.dtype and torch.equal(value, tensor)


def test_a_pack_is_called_after_its_content_whoever_writes_it(tmp_path: Path, streamed: list[bool]) -> None:
    """A process that goes on with a run streams the same pack under the same name as the one that began it."""
    model = layers(3)
    with tk.Run(tmp_path / "one") as run:
        run.save(0, model=model)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    names = []
    for where in ("one", "two"):
        torch.manual_seed(1)
        again = layers(3)
        with tk.Run(tmp_path / where) as run:
            run.resume(model=again)
            change(again, 0, 1, 2)
            run.save(1)
            change(again, 1)
            run.save(2)
        names.append({path.name for path in pack_files(tmp_path / where)})
    assert names[0] == names[1] and len(names[0]) == 3


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pack_that_is_there_is_kept_if_it_is_whole(tmp_path: Path, streamed: list[bool], damaged: bool) -> None:
    """As after a crash between the pack and its manifest."""
    model = layers(2)
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
    (pack,) = pack_files(tmp_path / "run")
    (tmp_path / "run/snapshots/1.json").unlink()
    if damaged:
        data = bytearray(pack.read_bytes())
        data[-9] ^= 4
        pack.write_bytes(data)
    inode = pack.stat().st_ino
    with tk.Run(tmp_path / "run") as run:
        torch.manual_seed(0)
        layers(2)
        run.save(0, model=model)
    assert streamed == [True, False]
    assert tk.verify(tmp_path / "run").ok
    assert (pack.stat().st_ino == inode) == (not damaged)
    assert len(pack_files(tmp_path / "run")) == 1


def test_room_for_what_may_be_new_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for what changed and not for all that changed last time."""
    model = layers()
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        change(model, 0, 1, 2, 3)
        run.save(1)
        change(model, 1)
        real = os.posix_fallocate

        def full(fd: int, offset: int, nbytes: int) -> None:
            if nbytes > 3 * 4 * SIDE * SIDE:
                raise OSError(28, "No space left on device")
            real(fd, offset, nbytes)

        monkeypatch.setattr(files.os, "posix_fallocate", full)
        report = run.save(2)
        assert report.tensors_written >= 2 and report.bytes_written < 2 * 4 * SIDE * SIDE
    assert tk.verify(tmp_path / "run").ok
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_what_changes_while_it_is_streamed_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers(3)
    real = packs.hot_blocks

    def meddling(tensor: torch.Tensor) -> Any:
        if tensor is model[1].weight:
            tensor.data.add_(1)
        return real(tensor)

    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        before = pack_files(tmp_path / "run")
        change(model, 0, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(packs, "hot_blocks", meddling)
            with pytest.raises(SaveError, match=r"model/1.weight changed while it was being saved"):
                run.save(1)
        assert pack_files(tmp_path / "run") == before
        assert [one.sequence for one in run.snapshots] == [1]
        run.save(1)
    assert tk.verify(tmp_path / "run").ok


def test_small_tensors_are_what_was_hashed_whatever_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(15)))
    real = packs.digest_bytes

    def meddling(data: Any) -> str:
        digest = real(data)
        with torch.no_grad():
            for layer in model:
                layer.weight.add_(1)
        return digest

    monkeypatch.setattr(packs, "digest_bytes", meddling)
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
    assert tk.verify(tmp_path / "run").ok


def test_an_error_of_hashing_comes_out_and_ends_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from torchkeep.core import digests

    def failing(tensor: torch.Tensor) -> str:
        raise MemoryError("no memory to hash with")

    model = layers(3)
    with tk.Run(tmp_path / "run") as run:
        with monkeypatch.context() as patch:
            patch.setattr(digests, "digest_tensor", failing)
            with pytest.raises(MemoryError, match="no memory to hash with"):
                run.save(0, model=model)
        assert not [thread for thread in threading.enumerate() if thread.name == "torchkeep-hash"]
        run.save(0, model=model)
    assert tk.verify(tmp_path / "run").ok


class Plain:
    """A store that has the five methods and no more."""

    def __init__(self, store: Any) -> None:
        self._store = store
        for name in ("put", "append", "source", "keys", "delete"):
            setattr(self, name, getattr(store, name))


@pytest.mark.parametrize("wrap", [Plain, lambda store: store])
def test_a_store_that_has_to_know_the_name_first_gets_it(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    store = wrap(tk.memory_store())
    model = layers(3)
    with tk.Run("anywhere", store=store) as run:
        run.save(0, model=model)
        change(model, 1)
        assert run.save(1).tensors_written >= 2
    fresh = layers(3)
    with tk.Run("anywhere", store=store) as run:
        run.resume(model=fresh)
    assert state_bits(fresh) == state_bits(model)


def test_the_manifest_names_both_packs_in_order(tmp_path: Path) -> None:
    model = layers()
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        change(model, 2, 3)
        run.save(1)
        change(model, 0, 2, 3)
        run.save(2)
    body = decode_manifest((tmp_path / "run/snapshots/3.json").read_bytes(), file="3.json")
    held = {ident: keys_of(tmp_path / f"run/packs/{ident}.safetensors") for ident in body.packs}
    assert len(held) == 3
    for entry in body.entries:
        assert (entry.key or entry.name) in held[body.packs[entry.pack]]


@pytest.mark.parametrize("which", [1, 2])
def test_the_store_of_the_demo_dies_in_the_middle_of_whatever_pack(tmp_path: Path, which: int) -> None:
    """The first pack is streamed, the second, which is small, is not."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "examples" / "digits")!r})
import torch, torchkeep as tk
from killed import DyingStore
run = {str(tmp_path / "run")!r}
with tk.Run(run, store=DyingStore(tk.local_store(run), {which})) as run:
    model = torch.nn.Sequential(torch.nn.Linear({SIDE}, {SIDE}), torch.nn.Linear(2, 2))
    run.save(0, model=model)
    torch.nn.init.ones_(model[1].weight)
    run.save(1)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(tk.Run(tmp_path / "run").snapshots) == which - 1
    assert len(list((tmp_path / "run" / "packs").glob(".tmp-*"))) == 1
