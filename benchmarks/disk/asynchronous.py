"""How each library saves while training goes on, and a loop that trains meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn

import torchkeep as tk

from .probe import Memory, sync, timed
from .savers import arrays, torch_checkpointing
from .shapes import State, flat, leaves

Found = dict[str, list[float]]

SETTLING = 5.0  # seconds of training before the first save: what a library makes ahead in the background is ready then


class Peer:
    """A library that saves in the background; what it allocates ahead, it allocates when it is made."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, folder
        self.pool = ThreadPoolExecutor(1)
        self.prepare()

    def prepare(self) -> None:
        """Make what lives as long as the training."""

    def state(self) -> State:
        """What is saved."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def start(self, step: int, folder: Path) -> Future[Any]:
        """Begin a save, into a folder of its own where the library asks for one; training may go on when it returns."""
        raise NotImplementedError

    def guard(self) -> AbstractContextManager[Any]:
        """Around what changes the state."""
        return nullcontext()

    def close(self) -> None:
        """End what was begun."""
        self.pool.shutdown()


class Torchkeep(Peer):
    """`Run.save(blocking=False)`: staged when it returns."""

    def prepare(self) -> None:
        self.run = cast(Any, tk.Run(self.folder / "run"))
        self.run.prewarm(model=self.model, optimizer=self.optimizer)

    def start(self, step: int, folder: Path) -> Future[Any]:
        return self.pool.submit(self.run.save(step, model=self.model, optimizer=self.optimizer, blocking=False).result)

    def close(self) -> None:
        self.run.close()
        super().close()


class TorchkeepGuarded(Torchkeep):
    """The same, staged while the model computes: `Run.guard` around the step of the optimizer."""

    def guard(self) -> AbstractContextManager[Any]:
        guard: AbstractContextManager[Any] = self.run.guard()
        return guard


class Dcp(Peer):
    """`async_save`, which makes its buffers anew in every save."""

    stager: Any = None

    def start(self, step: int, folder: Path) -> Future[Any]:
        from torch.distributed.checkpoint.state_dict_saver import async_save

        future = async_save(self.state(), checkpoint_id=folder, async_stager=self.stager, no_dist=True)
        assert isinstance(future, Future)
        return future


class DcpStager(Dcp):
    """`async_save` with a stager that lives on and keeps its buffers, as far as a CPU allows."""

    def prepare(self) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.stager = DefaultStager(StagingOptions(False, False, False, False))


class TorchCheckpointing(Peer):
    """Staged by a thread into shared memory, written by a process; `lock` around the step of the optimizer."""

    def prepare(self) -> None:
        self.manager = torch_checkpointing(waiting=False)
        self.manager.prewarm_staging(self.state())

    def start(self, step: int, folder: Path) -> Future[Any]:
        future: Future[Any] = self.manager.save(str(folder / "saved"), self.state())
        return future

    def guard(self) -> AbstractContextManager[Any]:
        lock: AbstractContextManager[Any] = self.manager.lock()
        return lock

    def close(self) -> None:
        self.manager.close()
        super().close()


class Moonclip(Peer):
    """Its own thread; level 0 stores without compressing."""

    level = 3

    def prepare(self) -> None:
        from moonclip import CheckpointManager

        self.manager = CheckpointManager(str(self.folder / "store"), compression_level=self.level)

    def start(self, step: int, folder: Path) -> Future[Any]:
        self.manager.save(step=step, model=self.model, optimizer=self.optimizer)
        return self.pool.submit(self.manager.flush)


class MoonclipStored(Moonclip):
    """Level 0."""

    level = 0


class Orbax(Peer):
    """`AsyncCheckpointer`."""

    def prepare(self) -> None:
        from orbax.checkpoint import AsyncCheckpointer, PyTreeCheckpointHandler

        self.checkpointer = AsyncCheckpointer(PyTreeCheckpointHandler())

    def start(self, step: int, folder: Path) -> Future[Any]:
        self.checkpointer.save(folder.resolve() / "saved", arrays(flat(self.state())))
        return self.pool.submit(self.checkpointer.wait_until_finished)

    def close(self) -> None:
        self.checkpointer.close()
        super().close()


class Torchsnapshot(Peer):
    """`Snapshot.async_take`."""

    def start(self, step: int, folder: Path) -> Future[Any]:
        from torchsnapshot import Snapshot, StateDict

        asyncio.set_event_loop(asyncio.new_event_loop())
        pending = Snapshot.async_take(str(folder / "saved"), {"state": StateDict(**flat(self.state()))})
        return self.pool.submit(pending.wait)


PEERS: dict[str, type[Peer]] = {
    "torchkeep": Torchkeep,
    "torchkeep, guarded": TorchkeepGuarded,
    "DCP": Dcp,
    "DCP, DefaultStager kept": DcpStager,
    "torch-checkpointing": TorchCheckpointing,
    "moonclip": Moonclip,
    "moonclip, level 0": MoonclipStored,
    "orbax": Orbax,
    "torchsnapshot": Torchsnapshot,
}


def steps_of(tensors: list[torch.Tensor], guard: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    """One step of a training loop on one thread: it computes as long as it then takes to change every tensor."""
    factor = torch.randn(512, 512)

    def change() -> None:
        with guard():
            for tensor in tensors:
                tensor.add_(1e-6)

    def compute(products: int) -> None:
        for _ in range(products):
            torch.mm(factor, factor)

    for job in (change, partial(compute, 20)):
        job()
    products = max(1, round(20 * timed(change) / timed(partial(compute, 20))))

    def step() -> None:
        compute(products)
        change()

    return step


def measure(make: type[Peer], model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, saves: int) -> Found:
    """Begin saves one after the other, each when the one before is done, and train meanwhile."""
    found: Found = {}
    threads = torch.get_num_threads()
    peer = make(model, optimizer, folder)
    tensors = [tensor for _, tensor in leaves(peer.state()) if tensor.ndim]
    torch.set_num_threads(1)
    step = steps_of(tensors, peer.guard)
    began = time.perf_counter()
    while time.perf_counter() - began < SETTLING:
        step()
    ended: list[float] = []
    before: Path | None = None
    for number in range(saves):
        if before is not None:
            shutil.rmtree(before)
        before = folder / str(number)
        before.mkdir()
        base = [timed(step) for _ in range(3)]
        with Memory() as memory:
            torch.set_num_threads(threads)
            started = time.perf_counter()
            future = peer.start(number, before)
            stall = time.perf_counter() - started
            future.add_done_callback(lambda _: ended.append(time.perf_counter()))
            torch.set_num_threads(1)
            taken = 0
            training = time.perf_counter()
            while len(ended) <= number or not taken:
                step()
                taken += 1
            slowed = time.perf_counter() - training
            future.result()
        durable = ended[number] - started + timed(lambda: sync(folder))
        base += [timed(step) for _ in range(3)]
        which = "later" if number else "first"
        slowdown = max(0.0, slowed - taken * median(base))
        for name, value in {"stall": stall, "memory": memory.rise}.items():
            found.setdefault(f"{name}, {which}", []).append(value)
        if number:
            for name, value in {
                "slowdown": slowdown,
                "lost": stall + slowdown,
                "durable": durable,
                "step": median(base),
            }.items():
                found.setdefault(name, []).append(value)
    peer.close()
    return found
