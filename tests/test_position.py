"""Position in the data: what comes after a resumption is what would have come without it, and in no other order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

import torchkeep as tk
from torchkeep.errors import IncompatibleCheckpointError, ResumeWarning


class Noisy(Dataset[Tensor]):
    """Rows with noise from every generator that augmentations use."""

    def __init__(self, length: int = 13) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, torch.rand(()).item(), np.random.rand(), random.random()])


class Calm(Noisy):
    """Rows without noise."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])


class Stream(IterableDataset[Tensor]):
    """A stream that is split among workers."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        step, start = (info.num_workers, info.id) if info else (1, 0)
        for number in range(start, 12, step):
            yield torch.tensor([float(number), torch.rand(()).item() if info else 0.0])


LOADERS: dict[str, Any] = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=2),
    "own generator": lambda: DataLoader(Noisy(), 2, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "own generator, workers": lambda: DataLoader(
        Noisy(), 2, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(5)
    ),
    "generator of the sampler": lambda: DataLoader(
        Noisy(), 2, sampler=RandomSampler(Noisy(), replacement=True, generator=torch.Generator().manual_seed(5))
    ),
    "dropped last": lambda: DataLoader(Noisy(), 2, shuffle=True, drop_last=True),
    "no batches": lambda: DataLoader(Noisy(5), batch_size=None, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "stream, workers": lambda: DataLoader(Stream(), batch_size=2, num_workers=2),
    "list": lambda: [torch.tensor([float(number)]) for number in range(7)],
    "stateful": lambda: StatefulDataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=0),
    "stateful, workers": lambda: StatefulDataLoader(Calm(), batch_size=2, shuffle=True, num_workers=2),
    "persistent": lambda: DataLoader(Calm(), 2, shuffle=True, num_workers=2, persistent_workers=True),
    "persistent, own generator": lambda: DataLoader(
        Calm(), 2, shuffle=True, num_workers=1, persistent_workers=True, generator=torch.Generator().manual_seed(5)
    ),
}


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def step_of(batch: Tensor, model: nn.Module) -> tuple[Any, ...]:
    """What a training step would depend on: the batch, and random numbers that are drawn between batches."""
    with torch.no_grad():
        model.weight.add_(torch.rand(()))
    return batch.tolist(), torch.rand(()).item(), np.random.rand(), random.random(), model.weight.item()


@pytest.mark.filterwarnings("ignore:the loader has persistent_workers", "ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("stop", [(0, 1), (0, 4), (1, 3), (1, "end"), (2, 1)], ids=str)
@pytest.mark.parametrize("kind", LOADERS)
def test_what_comes_after_resuming_is_what_would_have_come(tmp_path: Path, kind: str, stop: tuple[int, Any]) -> None:
    def train(run: tk.Run, model: nn.Module, loader: Any, stop: Any = None) -> list[Any]:
        seen: list[Any] = []
        for epoch in range(run.epoch, 3):
            for batch in run.batches(loader):
                seen.append(step_of(batch, model))
                if stop == (epoch, run.position().taken):
                    run.save(run.position().steps, model=model)
                    return seen
            if stop == (epoch, "end"):
                run.save(run.position().steps, model=model)
                return seen
        return seen

    seed(0)
    whole = train(tk.Run(tmp_path / "whole"), nn.Linear(1, 1), LOADERS[kind]())
    seed(0)
    with tk.Run(tmp_path / "run") as run:
        before = train(run, nn.Linear(1, 1), LOADERS[kind](), stop)
    seed(99)
    with tk.Run(tmp_path / "run") as run:
        model, loader = nn.Linear(1, 1), LOADERS[kind]()
        run.resume(model=model)
        after = train(run, model, loader)
        assert run.epoch == 3 and run.position().steps == len(whole)
    assert before == whole[: len(before)]
    assert after == whole[len(before) :]


def test_a_position_that_was_not_read_on_is_saved_again(tmp_path: Path) -> None:
    model, loader = nn.Linear(1, 1), DataLoader(Calm(), 2, shuffle=True)
    with tk.Run(tmp_path) as run:
        batches = run.batches(loader)
        seen = [next(batches).tolist() for _ in range(3)]
        run.save(0, model=model)
        rest = [batch.tolist() for batch in batches]
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        run.save(1)
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        assert (run.epoch, run.position().taken) == (0, 3)
        assert [batch.tolist() for batch in run.batches(loader)] == rest
        assert sorted(row for batch in seen + rest for row in batch) == [[float(number)] for number in range(13)]


def test_every_loader_has_its_position(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        labelled, unlabelled = run.batches([1, 2, 3]), run.batches([4, 5, 6], name="unlabelled")
        assert (next(labelled), next(labelled), next(unlabelled)) == (1, 2, 4)
        run.save(0, model=model)
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        assert list(run.batches([4, 5, 6], name="unlabelled")) == [5, 6]
        assert list(run.batches([1, 2, 3])) == [3]
        assert list(run.batches([1, 2, 3])) == [1, 2, 3]


def test_leaving_the_loop_ends_the_epoch(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run:
        for number in run.batches([1, 2, 3]):
            if number == 2:
                break
        assert (run.epoch, run.position().taken, run.position().steps) == (1, 0, 2)
        assert list(run.batches([1, 2, 3])) == [1, 2, 3]
        again = run.batches([1, 2, 3])
        next(again)
        with pytest.raises(RuntimeError, match="another name"):
            next(run.batches([1, 2, 3]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: DataLoader(Calm(20), 2), "batches is 10, and was 7"),
        (lambda: DataLoader(Calm(14), 2, num_workers=1), "workers is 1, and was 0"),
        (lambda: DataLoader(Calm(21), 3), "batch_size is 3, and was 2"),
        (lambda: iter([1, 2]), "ended after 2 batches; 3 were taken|batches is None"),
    ],
)
def test_another_loader_in_the_middle_of_an_epoch_is_refused(tmp_path: Path, other: Any, message: str) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        batches = run.batches(DataLoader(Calm(), 2))
        for _ in range(3):
            next(batches)
        run.save(0, model=model)
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        with pytest.raises(IncompatibleCheckpointError, match=message):
            list(run.batches(other()))


def test_data_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path) as run:
        batches = run.batches(number for number in range(5))
        for _ in range(3):
            next(batches)
        run.save(0, model=model)
    with tk.Run(tmp_path) as run:
        run.resume(model=model)
        with pytest.raises(IncompatibleCheckpointError, match="ended after 2 batches; 3 were taken"):
            list(run.batches(iter([1, 2])))


def test_persistent_workers_are_named(tmp_path: Path) -> None:
    with tk.Run(tmp_path) as run, pytest.warns(ResumeWarning, match="persistent_workers"):
        list(run.batches(DataLoader(Calm(), 2, num_workers=1, persistent_workers=True)))
