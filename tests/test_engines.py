"""The engines that write: the same bytes by every way, whatever the system does on the way."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from torchkeep.engines import direct
from torchkeep.engines.files import Head, write_file
from torchkeep.errors import NoSpaceError, SaveError
from torchkeep.stores.local import LocalStore

ENGINES = ["direct", "buffered"]
CHUNK = 8 << 20


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What one test makes a file system refuse is not remembered by the next."""
    direct._refused.clear()
    yield
    direct._refused.clear()


def cut(data: bytes, generator: random.Random) -> Iterator[bytes]:
    """Pieces of all sizes."""
    at = 0
    while at < len(data):
        size = generator.choice([1, 7, 100, 4096, 65_536, 65_537, 1 << 20, 3 << 20])
        yield data[at : at + size]
        at += size


def flags_of(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 5 * CHUNK + 12_345])
def test_every_size_is_written_as_it_is(tmp_path: Path, engine: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    for head in (None, Head(4096, lambda: b"h" * 4096)):
        path = tmp_path / "file"
        pieces = cut(data, random.Random(size))
        done = write_file(path, pieces, nbytes=size + 4096 * (head is not None), engine=engine, head=head)
        assert done.committed and done.engine == engine
        assert path.read_bytes() == (b"h" * 4096 if head else b"") + data
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_write_the_same_file(tmp_path: Path, engine: str) -> None:
    torch.manual_seed(0)
    wide = torch.randn(3000, 1000)
    state = {
        "plain": wide,
        "transposed": wide.t(),
        "expanded": torch.randn(1000, 1).expand(1000, 500),
        "strided": wide[::2, ::3],
        "conjugate": torch.randn(700, 700, dtype=torch.complex64).conj(),
        "halves": wide.half(),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(3),
        **{f"small.{number}": torch.randn(number) for number in range(500)},
    }
    report = tk.save(state, tmp_path / "file.safetensors", engine=engine)
    assert report.engine == engine and engine in str(report)
    assert tk.verify(tmp_path / "file.safetensors").ok
    loaded = tk.load(tmp_path / "file.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    data = (tmp_path / "file.safetensors").read_bytes()
    tk.save(state, tmp_path / "other.safetensors", engine="buffered" if engine == "direct" else "direct")
    assert data == (tmp_path / "other.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert header % 4096 == 0, "tensors begin where a page does"


def test_large_durable_files_go_past_the_page_cache(tmp_path: Path) -> None:
    large, small = {"w": torch.zeros(2 << 20)}, {"w": torch.zeros(10)}
    assert tk.save(large, tmp_path / "a.safetensors").engine == "direct"
    assert tk.save(large, tmp_path / "a.safetensors", durable=False).engine == "buffered"
    assert tk.save(small, tmp_path / "a.safetensors").engine == "buffered"


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_direct_io_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    real, tried = os.pwrite, []

    def refusing(fd: int, data: memoryview, offset: int) -> int:
        if flags_of(fd) & os.O_DIRECT:
            tried.append(offset)
            raise OSError(error, "not here")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    state = {"w": torch.randn(5 << 20)}
    for _ in range(2):
        report = tk.save(state, tmp_path / "a.safetensors")
        assert report.engine == "buffered"
        assert torch.equal(tk.load(tmp_path / "a.safetensors", verify=True)["w"], state["w"])
    assert len(tried) == 1, "it is asked once, and remembered"


def test_a_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    assert tk.save({"w": torch.randn(2 << 20)}, tmp_path / "a.safetensors").engine == "buffered"
    assert tk.verify(tmp_path / "a.safetensors").ok


def test_a_file_system_in_memory() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "a.safetensors"
        for engine in ENGINES:
            state = {"w": torch.randn((5 << 20) + 3)}
            report = tk.save(state, path, engine=engine)
            assert report.engine in {engine, "buffered"}
            assert torch.equal(tk.load(path, verify=True)["w"], state["w"])
        with tk.Run(Path(folder) / "run") as run:
            assert run.save(0, model=torch.nn.Linear(2000, 2000)).engine in {"direct", "buffered"}
        assert tk.verify(Path(folder) / "run").ok


@pytest.mark.parametrize("most", [4096, 5000, 4096 * 3 + 512, 1 << 20])
def test_a_system_that_writes_less_than_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    pwrite, writev = os.pwrite, os.writev
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:most], at))
    monkeypatch.setattr(os, "writev", lambda fd, views: writev(fd, [views[0][:most]]))
    data = random.Random(0).randbytes(3_000_001)
    for engine in ENGINES:
        write_file(tmp_path / engine, cut(data, random.Random(0)), nbytes=len(data), engine=engine)
        assert (tmp_path / engine).read_bytes() == data


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fails", [1, 2, 5, 11])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, fails: int
) -> None:
    path = tmp_path / "a.safetensors"
    tk.save({"w": torch.ones(3)}, path)
    before = path.read_bytes()
    state = {f"w{number}": torch.randn(3 << 20) for number in range(8)}
    for name in ("pwrite", "writev"):
        real, calls = getattr(os, name), []

        def failing(*args: object, real=real, calls=calls) -> int:
            calls.append(1)
            if len(calls) == fails:
                raise OSError(errno.ENOSPC, "no space")
            return real(*args)

        monkeypatch.setattr(os, name, failing)
    with pytest.raises(NoSpaceError, match="nothing was changed"):
        tk.save(state, path, engine=engine)
    assert path.read_bytes() == before and left_in(tmp_path) == ["a.safetensors"]
    monkeypatch.undo()
    assert tk.save(state, path, engine=engine).engine == engine
    assert tk.verify(path).ok


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_pieces_that_fail_leave_nothing(tmp_path: Path, engine: str, error: type[BaseException]) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * CHUNK * 6
        raise error

    for _ in range(6):  # threads and buffers are given back
        with pytest.raises(error):
            write_file(tmp_path / "a", pieces(), nbytes=CHUNK * 7, engine=engine)
    assert left_in(tmp_path) == []


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no engine 'fast' that writes; known are auto, direct, buffered"):
        tk.save({}, tmp_path / "a.safetensors", engine="fast")
    with pytest.raises(ValueError, match="no engine"):
        tk.Run(tmp_path / "run", engine="fast")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, engine: str) -> None:
    for mask in (0o022, 0o077, 0o002):
        old = os.umask(mask)
        try:
            tk.save({"w": torch.ones(2)}, tmp_path / "a.safetensors", engine=engine)
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_mapped_keeps_its_values_when_it_is_saved_anew(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "a.safetensors"
    tk.save({"w": torch.zeros(3 << 20)}, path, engine=engine)
    held = tk.load(path, mmap=True)["w"]
    tk.save({"w": torch.ones(1 << 20)}, path, engine=engine)
    assert held.shape == (3 << 20,) and not held.any()
    assert tk.load(path)["w"].all()


MEMORY = """
import sys, torch, torchkeep as tk
from pathlib import Path
engine, kind, folder = sys.argv[1:]
big = torch.zeros(100, 1_000_000)
big += 1
states = {
    "plain": {f"w{n}": big[n] for n in range(100)},
    "transposed": {"w": big.view(10_000, 10_000).t()},
    "small": {f"w{n}": part for n, part in enumerate(big.view(-1, 10_000)) },
    "expanded": {"w": big[0].expand(100, 1_000_000)},
}
tk.save({"w": torch.zeros(2 << 20)}, Path(folder) / "first.safetensors", engine=engine)

def peak():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = peak()
tk.save(states[kind], Path(folder) / "a.safetensors", engine=engine)
print(peak() - before)
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["plain", "transposed", "small", "expanded"])
def test_a_save_of_400_megabytes_takes_less_than_64_of_its_own(tmp_path: Path, engine: str, kind: str) -> None:
    command = [sys.executable, "-c", MEMORY, engine, kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64_000_000


def test_weights_that_another_thread_changes_are_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save hashes, and then writes: in between nothing may have changed."""
    model = torch.nn.Linear(300, 300)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        with torch.no_grad():
            model.weight.add_(1)
        real = LocalStore.put

        def put(store, key, pieces, **options):
            if key.startswith("packs/"):
                with torch.no_grad():
                    model.weight[7, 7] += 1
            return real(store, key, pieces, **options)

        monkeypatch.setattr(LocalStore, "put", put)
        with pytest.raises(SaveError, match=r"model/weight changed while it was being saved"):
            run.save(1)
        monkeypatch.undo()
        assert len(run.snapshots) == 1 and tk.verify(tmp_path).ok
        assert run.save(1).sequence == 2
