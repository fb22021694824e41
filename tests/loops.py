"""Training loops that `prove_resume` is tried on: one that is right, and one for each way to get it wrong."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import torchkeep as tk


class Noisy(Dataset[Tensor]):
    """Rows with noise from a generator that may be the dataset's own."""

    def __init__(self, own: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(3) if own else None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(4, generator=self.generator) + index


def seed(value: int = 0) -> None:
    torch.manual_seed(value), random.seed(value), np.random.seed(value)


def parts() -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


def step(model: nn.Module, optimizer: Any, batch: Tensor) -> float:
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def right(folder: str) -> None:
    loop(folder)


def right_and_seeds_only_what_it_uses(folder: str) -> None:
    torch.manual_seed(0)
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        run.resume(model=model, optimizer=optimizer)
        for epoch in range(run.epoch, 3):
            for batch in run.batches(DataLoader(Noisy(), 2, shuffle=True)):
                step(model, optimizer, batch)
                run.save(run.position().steps)
            run.log(epoch=epoch)


def right_in_the_middle(folder: str) -> None:
    loop(folder, every=3)


def workers(folder: str) -> None:
    loop(folder, every=3, workers=2)


def loop(folder: str, *, every: int = 0, workers: int = 0, own: bool = False, restored: bool = True) -> None:
    seed()
    model, optimizer, scheduler = parts()
    dataset = Noisy(own)
    loader = DataLoader(dataset, 2, shuffle=True, num_workers=workers)
    more = {"noise": dataset.generator} if own and restored else {}
    with tk.Run(folder) as run:
        run.resume(model=model, optimizer=optimizer, scheduler=scheduler, **more)
        for epoch in range(run.epoch, 4):
            for batch in run.batches(loader):
                loss = step(model, optimizer, batch)
                if every and run.position().steps % every == 0:
                    run.save(run.position().steps)
            scheduler.step()
            run.log(epoch=epoch, loss=loss, seconds=time.time())
            run.save(1000 + epoch)


def own_generator_restored(folder: str) -> None:
    loop(folder, own=True)


def own_generator_forgotten(folder: str) -> None:
    loop(folder, own=True, restored=False)


def unseeded(folder: str) -> None:
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        for epoch in range(run.resume(model=model, optimizer=optimizer), 4):
            step(model, optimizer, torch.randn(4, 4))
            run.save(epoch)


def without_batches(folder: str) -> None:
    seed()
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        done = run.resume(model=model, optimizer=optimizer)
        for number, batch in enumerate(DataLoader(Noisy(), 1, shuffle=True, num_workers=1)):
            if number >= done:
                step(model, optimizer, batch.expand(2, 4))
                run.save(number)


def optimizer_forgotten(folder: str) -> None:
    seed()
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        for epoch in range(run.resume(model=model), 4):
            for batch in run.batches(DataLoader(Noisy(), 2)):
                step(model, optimizer, batch)
            run.save(epoch)


def scheduler_forgotten(folder: str) -> None:
    seed()
    model, optimizer, scheduler = parts()
    with tk.Run(folder) as run:
        for epoch in range(run.resume(model=model, optimizer=optimizer), 5):
            for batch in run.batches(DataLoader(Noisy(), 2)):
                step(model, optimizer, batch)
            optimizer.param_groups[0]["lr"] = 0.1 * 0.5**scheduler.last_epoch
            scheduler.last_epoch += 1
            run.save(epoch)


def starts_again(folder: str) -> None:
    seed()
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        run.resume(model=model, optimizer=optimizer)
        run._readers.clear()  # as a loop does that reads its data without the run
        for epoch in range(4):
            for batch in run.batches(DataLoader(Noisy(), 2)):
                step(model, optimizer, batch)
            run.save(epoch)


def draws_after_resuming(folder: str) -> None:
    seed()
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        start = run.resume(model=model, optimizer=optimizer)
        torch.rand(start)  # as a newly made layer or sampler does
        for epoch in range(start, 4):
            for batch in run.batches(DataLoader(Noisy(), 2)):
                step(model, optimizer, batch)
            run.save(epoch)


def fails_when_resumed(folder: str) -> None:
    seed()
    model, optimizer, _ = parts()
    with tk.Run(folder) as run:
        start = run.resume(model=model, optimizer=optimizer)
        if start:
            raise ValueError("no such config")
        for epoch in range(start, 4):
            step(model, optimizer, torch.randn(4, 4))
            run.log(epoch=epoch)
            run.save(epoch)


def fails(folder: str) -> None:
    raise ValueError("not even once")


def no_run(folder: str) -> None:
    pass


def sleeps(folder: str) -> None:
    time.sleep(60)
