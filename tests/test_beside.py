"""Saves that go on beside training: what they hold, what they wait for, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits, train_epoch
from torchkeep import staging
from torchkeep.engines import direct
from torchkeep.errors import NoSpaceError, RunLockedError, SaveError
from torchkeep.running.background import SaveHandle
from torchkeep.staging import CudaMover, HostMover, Staging
from torchkeep.stores.local import LocalStore


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(seed: int = 0) -> tuple[TinyNet, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = TinyNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_epoch(model, optimizer)
    return model, optimizer


def back(folder: Path, sequence: int | None = None) -> list[tuple[str, bytes]]:
    """What another process gets back."""
    model, optimizer = make(seed=9)
    with tk.Run(folder) as run:
        run.resume(model=model, optimizer=optimizer, snapshot=sequence)
        assert not run.last_resume.skipped
    return state_bits(model, optimizer)


class Slow:
    """Holds packs back until it is told to let them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()
        real = LocalStore.put

        def put(store: LocalStore, key: str, pieces: Any, **options: Any) -> bool:
            if key.startswith("packs/"):
                self.entered.set()
                assert self.go.wait(30)
                if error is not None:
                    raise error
            return real(store, key, pieces, **options)

        monkeypatch.setattr(LocalStore, "put", put)


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path) as run:
        run.log(epoch=0, val_loss=1.0)
        was = state_bits(model, optimizer)
        handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
        assert isinstance(handle, SaveHandle) and handle.step == 0 and not handle.skipped
        train_epoch(model, optimizer)
        run.log(epoch=1, val_loss=0.5)
        assert handle.staged and not handle.done
        with pytest.raises(TimeoutError, match="step 0 is still under way"):
            handle.result(timeout=0.01)
        slow.go.set()
        report = handle.result()
        assert handle.done and report.sequence == 1 and report.tensors_written > 10
        assert [one.metrics["val_loss"] for one in run.snapshots] == [1.0]
    assert back(tmp_path) == was != state_bits(model, optimizer)
    assert len(tk.Run(tmp_path).history) == 1, "records after the call belong to no snapshot"
    assert tk.verify(tmp_path).ok


def test_tensors_of_every_kind_are_staged_as_they_are(tmp_path: Path) -> None:
    wide = torch.randn(300, 200)
    extra = {
        "transposed": wide.t(),
        "expanded": torch.randn(3, 1).expand(3, 50),
        "part": wide[10:20, ::3],
        "conjugate": torch.randn(9, 9, dtype=torch.complex64).conj(),
        "negative": torch.randn(9, dtype=torch.complex64).conj().imag,
        "halves": wide.bfloat16(),
        "eighths": wide.to(torch.float8_e4m3fn),
        "flags": wide > 0,
        "empty": torch.empty(0, 4),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "large": torch.randn(3_000_000),
    }
    expected = {name: tensor.clone() for name, tensor in extra.items()}
    with tk.Run(tmp_path) as run:
        handle = run.save(0, model=nn.Linear(2, 2), extra=extra, blocking=False)
        for name in ("transposed", "part", "large", "halves"):
            extra[name].zero_()
        handle.result()
    with tk.Run(tmp_path) as run:
        run.resume(model=nn.Linear(2, 2))
        found = run.last_resume.extra
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].view(torch.uint8) if name == "eighths"
            else found[name], tensor.view(torch.uint8) if name == "eighths" else tensor), name  # fmt: skip


def test_ties_and_flags_are_those_of_the_live_tensors(tmp_path: Path) -> None:
    model, optimizer = make()
    model.conv.requires_grad_(False)
    with tk.Run(tmp_path) as run:
        run.save(0, model=model, optimizer=optimizer)
        run.save(1, model=model, optimizer=optimizer, blocking=False)
        assert run.digests(1) == run.digests(2)
        entries = [{entry.name: (entry.tied, entry.requires_grad, entry.device) for entry in run._archive.body(n).entries}
                   for n in (1, 2)]  # fmt: skip
        assert entries[0] == entries[1] and any(tied for tied, _, _ in entries[0].values())


class Gate(HostMover):
    """Copies only when it may."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = threading.Event()
        self.memories = 0

    def memory(self, nbytes: int) -> torch.Tensor:
        self.memories += 1
        return super().memory(nbytes)

    def copy(self, places: list[staging.Place], threads: int) -> None:
        if threads == 1:  # what was left for later
            self.asked.set()
            assert self.go.wait(30)
        super().copy(places, threads)


def guarded(folder: Path) -> tuple[tk.Run, Gate, TinyNet, torch.optim.Optimizer]:
    """A run whose guard was used, with a gate before the copies that are made later."""
    model, optimizer = make()
    run = tk.Run(folder)
    gate = Gate()
    run._staging = Staging({"cpu": gate})
    with run.guard():
        pass
    return run, gate, model, optimizer


@pytest.mark.parametrize("how", ["guard", "step"])
def test_a_step_waits_for_the_copies_that_overlap_with_forward_and_backward(tmp_path: Path, how: str) -> None:
    run, gate, model, optimizer = guarded(tmp_path)
    was = state_bits(model, optimizer)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
    assert gate.asked.wait(10) and not handle.staged
    loss = model(torch.randn(8, 1, 5, 5)).square().sum()  # moves the statistics of the normalisation
    loss.backward()
    assert not torch.equal(model.bn.running_mean, buffers["bn.running_mean"])
    assert not handle.staged
    threading.Timer(0.2, gate.go.set).start()
    started = time.monotonic()
    if how == "guard":
        with run.guard():
            assert handle.staged
            optimizer.step()
    else:  # forgotten, and a tracked optimizer waits all the same
        optimizer.step()
        assert handle.staged
    assert time.monotonic() - started > 0.1
    handle.result()
    run.close()
    assert back(tmp_path) == was != state_bits(model, optimizer)


def test_weights_that_change_outside_of_the_guard_are_noticed(tmp_path: Path) -> None:
    run, gate, model, optimizer = guarded(tmp_path)
    handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
    with torch.no_grad():
        model.head.weight.clamp_(-0.1, 0.1)
    gate.go.set()
    with pytest.raises(SaveError, match=r"model/head\.weight .*changed while it was copied; nothing was committed"):
        handle.result()
    assert run.snapshots == ()
    assert run.save(1, blocking=True, model=model, optimizer=optimizer).sequence == 1
    run.close()


def test_without_a_guard_everything_is_copied_before_the_call_returns(tmp_path: Path) -> None:
    model, optimizer = make()
    with tk.Run(tmp_path) as run:
        gate = Gate()
        run._staging = Staging({"cpu": gate})
        handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
        handle.result()
        assert not gate.asked.is_set()


def test_memory_is_made_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = torch.optim.AdamW(model.parameters())
    with tk.Run(tmp_path) as run:
        gate = Gate()
        run._staging = Staging({"cpu": gate})
        kept = run.prewarm(model=model, optimizer=optimizer)
        assert kept > 0 and gate.memories == 1
        for step in range(3):
            train_epoch(model, optimizer)  # its moments are made after the memory was
            run.save(step, blocking=False).result()
        assert gate.memories == 1 and run.prewarm() == kept
    assert back(tmp_path) == state_bits(model, optimizer)


def test_memory_grows_with_what_is_saved(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run:
        run.save(0, model=nn.Linear(4, 4), blocking=False).result()
        small = run._staging.nbytes
        run.save(1, model=nn.Linear(400, 400), blocking=False).result()
        assert run._staging.nbytes > 400 * 400 * 4 > small


def test_one_save_is_under_way_and_the_next_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path) as run:
        first = run.save(0, model=model, optimizer=optimizer, blocking=False)
        threading.Timer(0.2, slow.go.set).start()
        train_epoch(model, optimizer)
        second = run.save(1, blocking=False)
        assert first.done
        train_epoch(model, optimizer)
        assert [run.save(2).sequence, first.result().sequence, second.result().sequence] == [3, 1, 2]
        assert [one.parent for one in run.snapshots] == [0, 1, 2]


def test_the_next_one_may_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path, busy="skip") as run:
        first = run.save(0, model=model, optimizer=optimizer, blocking=False)
        second = run.save(1, blocking=False)
        assert second.skipped and second.done and second.staged and not first.skipped
        assert second.result().sequence == 0 and "skipped" in str(second.result())
        slow.go.set()
        first.result()
        third = run.save(2, blocking=False)
        assert not third.skipped and third.result().sequence == 2
    with pytest.raises(ValueError, match="busy is 'drop'"):
        tk.Run(tmp_path, busy="drop")


NEXT: dict[str, Callable[[tk.Run], object]] = {
    "save": lambda run: run.save(1),
    "save beside": lambda run: run.save(1, blocking=False),
    "log": lambda run: run.log(epoch=1),
    "snapshots": lambda run: run.snapshots,
    "best": lambda run: run.best,
    "resume": lambda run: run.resume(),
    "prune": lambda run: run.prune(tk.keep_last(1)),
    "gc": lambda run: run.gc(),
    "tag": lambda run: run.tag("x"),
    "open": lambda run: run.open(),
    "close": lambda run: run.close(),
}


@pytest.mark.parametrize("call", NEXT)
def test_an_error_of_the_background_surfaces_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    model, optimizer = make()
    run = tk.Run(tmp_path)
    run.save(0, model=model, optimizer=optimizer)
    train_epoch(model, optimizer)
    slow = Slow(monkeypatch, NoSpaceError("the disk is full"))
    slow.go.set()
    handle = run.save(1, blocking=False)
    while not handle.done:
        time.sleep(0.001)
    with pytest.raises(NoSpaceError, match="disk is full") as caught:
        NEXT[call](run)
    assert any("step 1" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    with pytest.raises(NoSpaceError):  # who asks for the result gets it again
        handle.result()
    run.log(epoch=1)  # and nobody else does
    assert run.save(1).sequence == 2
    run.close()
    assert back(tmp_path) == state_bits(model, optimizer)


def test_an_error_does_not_hide_the_one_that_ended_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(monkeypatch, NoSpaceError("the disk is full")).go.set()
    with pytest.raises(ZeroDivisionError) as caught, tk.Run(tmp_path) as run:
        run.save(0, model=nn.Linear(2, 2), blocking=False)
        _ = 1 / 0
    assert any("disk is full" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    tk.Run(tmp_path).save(1, model=nn.Linear(2, 2))  # the lock was let go of


SCRIPT = """
import os, sys, time, torch, torchkeep as tk
from torchkeep.stores.local import LocalStore
real = LocalStore.put

def put(store, key, pieces, **options):
    if key.startswith("packs/"):
        time.sleep(0.5)  # the program is at its end by now
        if "full" in sys.argv:
            raise tk.errors.NoSpaceError("the disk is full")
    return real(store, key, pieces, **options)

LocalStore.put = put
run = tk.Run(sys.argv[1])
run.save(3, model=torch.nn.Linear(700, 700), blocking=False)
if "raise" in sys.argv:
    raise ValueError("training failed")
if "exit" in sys.argv:
    sys.exit(5)
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 1), ("exit", 5)])
def test_nothing_is_lost_when_the_program_ends(tmp_path: Path, how: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == code and "Exception" not in done.stderr, done.stderr
    assert [one.step for one in tk.Run(tmp_path).snapshots] == [3] and tk.verify(tmp_path).ok


def test_an_error_that_nobody_asked_for_is_told_at_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "full"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = f"torchkeep: the save of step 3 into {tmp_path} failed, and nothing was committed: the disk is full"
    assert said in done.stderr
    assert tk.Run(tmp_path).snapshots == ()


def test_a_forked_child_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path) as run:
        run.save(0, model=nn.Linear(2, 2), blocking=False)
        assert slow.entered.wait(10)
        child = os.fork()
        if child == 0:
            run._settle()
            with run.guard():
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        slow.go.set()
        assert len(run.snapshots) == 1


def test_a_run_that_is_dropped_is_not_kept_by_its_optimizer(tmp_path: Path) -> None:
    import gc
    import weakref

    model, optimizer = make()
    run = tk.Run(tmp_path)
    run.save(0, model=model, optimizer=optimizer, blocking=False).result()
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None
    train_epoch(model, optimizer)
    with tk.Run(tmp_path) as other:  # its lock went with it
        assert other.save(1, model=model, optimizer=optimizer).sequence == 2


def test_staging_is_bounded_and_lets_go_of_the_live_tensors(tmp_path: Path) -> None:
    import gc
    import weakref

    model = nn.Linear(100, 100)
    with tk.Run(tmp_path) as run:
        handle = run.save(0, model=model, extra=torch.ones(1000), blocking=False)
        handle.result()
        run._objects = {}
        gone = weakref.ref(model.weight)
        del model
        gc.collect()
        assert gone() is None


class FakeCuda:
    """Stands in for `torch.cuda`: streams that do nothing until they are waited for, and say what they were told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._todo: list[Callable[[], None]] = []
        self.on = "main"
        self.copied = threading.Event()
        self.copied.set()

    class Stream:
        def __init__(self, cuda: FakeCuda, name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: FakeCuda.Stream) -> None:
            self.cuda.said.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: str) -> None:
            self.cuda.said.append(f"{self.name} waits for {event.name}")

        def record_event(self) -> FakeCuda.Event:
            self.cuda.said.append(f"{self.name} marks its end")
            return FakeCuda.Event(self.cuda)

    class Event:
        name = "the copies"

        def __init__(self, cuda: FakeCuda) -> None:
            self.cuda = cuda

        def synchronize(self) -> None:
            assert self.cuda.copied.wait(30)
            self.cuda.said.append("the host waits for the copies")

    def current_stream(self, device: Any) -> FakeCuda.Stream:
        return FakeCuda.Stream(self, "main")

    def stream(self, stream: FakeCuda.Stream) -> Any:
        import contextlib

        @contextlib.contextmanager
        def entered() -> Iterator[None]:
            self.on = stream.name
            yield
            self.on = "main"

        return entered()

    def __getattribute__(self, name: str) -> Any:
        if name == "Stream":
            return lambda device: type(self).__dict__["Stream"](self, "side")
        return super().__getattribute__(name)


def test_tensors_on_a_device_are_copied_on_a_stream_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what a device is told, by the same code that talks to CUDA."""
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: cuda.said.append("memory is kept"))
    cuda = FakeCuda()
    model, optimizer = make()
    run = tk.Run(tmp_path)
    run._staging = Staging({"cpu": CudaMover(cuda)})
    was = state_bits(model, optimizer)
    run.save(0, model=model, optimizer=optimizer, blocking=False).result()
    order = [said for said in cuda.said if said != "memory is kept"]
    assert order == [
        "side waits for main",
        "side marks its end",
        "main waits for the copies",
        "the host waits for the copies",
    ]
    assert cuda.said.count("memory is kept") > 10
    cuda.said.clear()
    with run.guard():
        pass
    cuda.copied.clear()
    handle = run.save(1, blocking=False)
    assert "main waits for the copies" not in cuda.said, "forward and backward go on beside the copies"
    threading.Timer(0.2, cuda.copied.set).start()
    with run.guard():
        assert "main waits for the copies" in cuda.said, "and the step comes after them"
    handle.result()
    run.close()
    assert back(tmp_path) == was


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_staged_without_waiting_for_it(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with tk.Run(tmp_path) as run:
        for step in range(3):
            model(torch.randn(64, 2048, device="cuda")).square().mean().backward()
            with run.guard():
                optimizer.step()
            optimizer.zero_grad()
            was = state_bits(model, optimizer)
            handle = run.save(step, model=model, optimizer=optimizer, blocking=False)
        model(torch.randn(64, 2048, device="cuda")).square().mean().backward()
        with run.guard():
            optimizer.step()
        handle.result()
        other = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).cuda()
        other_optimizer = torch.optim.AdamW(other.parameters(), fused=True)
        run.resume(model=other, optimizer=other_optimizer)
        assert state_bits(other, other_optimizer) == was


def test_the_buffers_of_direct_writes_are_kept(tmp_path: Path) -> None:
    direct._spare.clear()
    tk.save({"w": torch.zeros(3 << 20)}, tmp_path / "a.safetensors", engine="direct")
    (ring,) = direct._spare
    tk.save({"w": torch.ones(3 << 20)}, tmp_path / "a.safetensors", engine="direct")
    assert direct._spare == [ring]


def test_sigterm_ends_after_a_save_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    with tk.Run(tmp_path, sigterm=True) as run:
        Slow(monkeypatch, OSError(errno.EIO, "broken")).go.set()
        run.save(0, model=model, optimizer=optimizer, blocking=False)
        run._under_way._done.wait()
        monkeypatch.undo()
        with pytest.warns(tk.errors.ResumeWarning, match="background had failed"), pytest.raises(SystemExit) as left:
            for _ in run.batches([1, 2, 3]):
                os.kill(os.getpid(), signal.SIGTERM)
        assert left.value.code == 75 and len(run.snapshots) == 1


# -- what an adversarial review found ---------------------------------------------------------------------------


def test_a_save_that_is_waited_for_when_a_signal_comes_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save would else fill the memory that this one is written from."""
    model = nn.Linear(1000, 1000)
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path) as run:
        first = run.save(0, model=model, blocking=False)
        assert slow.entered.wait(10)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run.save(1, blocking=False)
        assert not first.done
        with torch.no_grad():
            model.weight.fill_(3)
        threading.Timer(0.2, slow.go.set).start()
        second = run.save(2, blocking=False)
        assert first.done and second.result().sequence == 2
    assert tk.verify(tmp_path).ok


def test_a_close_that_a_signal_ends_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    run = tk.Run(tmp_path)
    run.save(0, model=nn.Linear(2, 2), blocking=False)
    assert slow.entered.wait(10)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.close()
    with pytest.raises(RunLockedError):
        tk.Run(tmp_path).log(epoch=1)
    slow.go.set()
    run.close()


def test_a_save_within_a_guard_copies_at_once(tmp_path: Path) -> None:
    run, gate, model, optimizer = guarded(tmp_path)
    with run.guard():
        was = state_bits(model, optimizer)
        handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
        model.head.weight.data.fill_(2)
    handle.result()
    assert not gate.asked.is_set()
    run.close()
    assert back(tmp_path) == was


def test_what_another_thread_changes_while_it_is_copied_is_not_committed(tmp_path: Path) -> None:
    model, optimizer = make()

    class Meddling(HostMover):
        def copy(self, places: list[staging.Place], threads: int) -> None:
            super().copy(places, threads)
            with torch.no_grad():
                model.head.bias.add_(1)

    with tk.Run(tmp_path) as run:
        run._staging = Staging({"cpu": Meddling()})
        with pytest.raises(SaveError, match=r"model/head\.bias .*changed while it was copied"):
            run.save(0, model=model, optimizer=optimizer, blocking=False)
        assert run.snapshots == ()


def test_two_threads_that_save_do_not_share_the_copies(tmp_path: Path) -> None:
    models = [nn.Linear(700, 700) for _ in range(2)]
    failed: list[BaseException] = []
    with tk.Run(tmp_path) as run:
        run.save(0, a=models[0], b=models[1])

        def save(number: int) -> None:
            try:
                for step in range(8):
                    run.save(step, extra=torch.full((300_000,), number + step), blocking=False)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=save, args=(100 * number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(run.snapshots) == 17
    assert tk.verify(tmp_path).ok


def test_a_store_may_look_at_its_run(tmp_path: Path) -> None:
    class Curious(LocalStore):
        run: Any = None

        def put(self, key: str, pieces: Any, **options: Any) -> bool:
            assert self.run is None or isinstance(self.run.tags, dict)
            return super().put(key, pieces, **options)

    store = tk.local_store(tmp_path)
    store.__class__ = Curious
    with tk.Run(tmp_path, store=store) as run:
        store.run = run
        assert run.save(0, model=nn.Linear(2, 2), blocking=False).result(timeout=30).sequence == 1


def test_a_forked_child_asks_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path) as run:
        handle = run.save(0, model=nn.Linear(2, 2), blocking=False)
        assert slow.entered.wait(10)
        child = os.fork()
        if child == 0:
            try:
                handle.result()
            except SaveError as error:
                os._exit(7 if "another process" in str(error) and handle.done else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        slow.go.set()


def test_a_program_that_exits_is_told_of_a_save_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(monkeypatch, NoSpaceError("the disk is full")).go.set()
    with (
        pytest.warns(tk.errors.ResumeWarning, match="disk is full"),
        pytest.raises(SystemExit),
        tk.Run(tmp_path) as run,
    ):
        run.save(0, model=nn.Linear(2, 2), blocking=False)
        sys.exit(0)


def test_an_error_is_told_at_the_end_even_when_run_and_handle_are_gone(tmp_path: Path) -> None:
    script = SCRIPT.replace("run = tk.Run", "def train():\n  run = tk.Run").replace("\nrun.save", "\n  run.save")
    command = [
        sys.executable,
        "-c",
        script + "\ntrain(); import gc; time.sleep(1); gc.collect()",
        str(tmp_path),
        "full",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing was committed: the disk is full" in done.stderr


def test_a_skipped_save_remembers_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path, busy="skip") as run:
        run.save(0, model=first, blocking=False)
        assert run.save(1, model=second, blocking=False).skipped
        slow.go.set()
        run.save(2)
        assert torch.equal(run.open()["weight"].load(), second.weight)


def test_on_sigterm_no_save_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    slow = Slow(monkeypatch)
    with tk.Run(tmp_path, busy="skip", sigterm=True) as run:
        run.save(0, model=model, blocking=False)
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(0.2, slow.go.set).start()
        with pytest.raises(SystemExit) as left:
            run.save(1, blocking=False)
        assert left.value.code == 75 and [one.step for one in run.snapshots] == [0, 1]


def test_weights_that_a_forward_pass_renormalises_are_copied_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tk.Run(tmp_path) as run:
        gate = Gate()
        run._staging = Staging({"cpu": gate})
        with run.guard():
            pass
        was = model[0].weight.detach().clone()
        handle = run.save(0, model=model, optimizer=optimizer, blocking=False)
        model(torch.arange(5)).sum().backward()
        gate.go.set()
        handle.result()
        assert torch.equal(run.open()["0.weight"].load(), was) and not torch.equal(model[0].weight, was)


def test_interrupted_writes_leave_no_threads_that_keep_the_program(tmp_path: Path) -> None:
    script = (
        "import signal, sys, threading, time, torch, torchkeep as tk\n"
        "state = {f'w{n}': torch.zeros(1 << 20) for n in range(4)}\n"
        "ends = time.monotonic() + 5\n"
        "while time.monotonic() < ends:\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.004)\n"
        "    try:\n"
        "        tk.save(state, sys.argv[1] + '/a.safetensors', durable=False, engine=sys.argv[2])\n"
        "    except (KeyboardInterrupt, RuntimeError):  # threading loses count of its locks\n"
        "        pass\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(threading.active_count())\n"
    )
    head = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    for engine in ("direct", "buffered"):
        command = [sys.executable, "-c", head + script, str(tmp_path), engine]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "a.safetensors"] == []
