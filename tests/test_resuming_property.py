"""Random networks, frozen sets, phases, optimizers, loaders, orders and kill points: resumed equals uninterrupted."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import torchkeep as tk
from models import state_bits

BATCH, BATCHES = 2, 5


class Rows(Dataset[Tensor]):
    """Rows with noise from every global generator, as augmentations make it."""

    def __len__(self) -> int:
        return BATCH * BATCHES

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index)) / 10 + torch.rand(4) + np.random.rand() + random.random()


class Net(nn.Module):
    """Layers of several kinds; the last one may share its weight with the first."""

    def __init__(self, kinds: list[str], tied: bool) -> None:
        super().__init__()
        made = {
            "linear": lambda: nn.Linear(4, 4),
            "norm": lambda: nn.BatchNorm1d(4),
            "layernorm": lambda: nn.LayerNorm(4),
            "dropout": lambda: nn.Dropout(0.3),
            "block": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2)),
        }
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList(made[kind]() for kind in kinds)
        self.head = nn.Linear(4, 4)
        if tied:
            self.head.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass(frozen=True)
class Setup:
    """Everything that is drawn."""

    kinds: list[str]
    tied: bool
    trains: list[str]
    lengths: list[int]
    rates: list[float]
    optimizer: str
    scheduler: str
    accumulate: int
    workers: int
    reverse: bool
    groups: bool
    wrap: str
    kills: list[int]

    @property
    def spec(self) -> tk.FreezeSpec:
        phases = [
            tk.Phase(train, epochs=length, rates={"head": rate})
            for train, length, rate in zip(self.trains, self.lengths, self.rates, strict=False)
        ]
        return tk.FreezeSpec([*phases, tk.Phase("*")])


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw-foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adam-fused": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "sgd-fused": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, fused=True),
}
SCHEDULERS: dict[str, Any] = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
}

SETUPS = st.builds(
    Setup,
    kinds=st.lists(st.sampled_from(["linear", "norm", "layernorm", "dropout", "block"]), min_size=1, max_size=4),
    tied=st.booleans(),
    trains=st.lists(st.sampled_from(["head", "head, layers", "* but stem", "re:bias", "layers"]), max_size=2),
    lengths=st.just([1, 1]),
    rates=st.lists(st.sampled_from([1.0, 0.5, 1 / 2.6]), min_size=2, max_size=2),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    accumulate=st.integers(1, 3),
    workers=st.just(0),
    reverse=st.booleans(),
    groups=st.booleans(),
    wrap=st.sampled_from(["", "parallel"]),
    kills=st.lists(st.integers(1, 3 * BATCHES - 1), min_size=1, max_size=3, unique=True).map(sorted),
)


class Killed(Exception):
    """Stands for the end of a process: whatever was in memory is not used again."""


def play(setup: Setup, folder: Path, kill: int | None, *, again: bool = False) -> list[Any]:
    """Train from wherever the run stands to the end, or until it is killed after so many steps in all."""
    start = 1 if again else 0
    torch.manual_seed(start), random.seed(start), np.random.seed(start)
    model: nn.Module = Net(setup.kinds, setup.tied)
    tk.freeze(model, setup.spec)
    if setup.groups:
        optimizer = OPTIMIZERS[setup.optimizer](tk.param_groups(model, lr=0.02, weight_decay=0.01))
    else:
        everything = list(model.parameters())
        optimizer = OPTIMIZERS[setup.optimizer](everything[::-1] if setup.reverse and again else everything)
    scheduler = SCHEDULERS[setup.scheduler](optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    wrapped = nn.DataParallel(model) if setup.wrap and again else model
    loader = DataLoader(Rows(), BATCH, shuffle=True, num_workers=setup.workers)
    with tk.Run(folder) as run:
        tracked = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema}
        run.resume(model=wrapped, **tracked)
        for _ in epochs(run, wrapped, optimizer, scheduler, loader, ema, scaler, setup, kill):
            pass
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["members"] = sorted(group.get("members", ()))  # in whatever order the parameters were given
    moments = {names[id(parameter)]: bits(state) for parameter, state in optimizer.state.items()}
    rates = [
        {key: bits(group[key]) for key in group if key not in {"params", "param_names"}}
        for group in optimizer.param_groups
    ]
    left = [scaler.state_dict(), scheduler.state_dict(), torch.rand(3).tolist()]
    return [state_bits(model), state_bits(ema), moments, rates, left]


def bits(value: Any) -> Any:
    """A value that can be compared bit for bit."""
    if isinstance(value, Tensor):
        return value.dtype, value.contiguous().reshape(-1).numpy().tobytes()
    return {key: bits(child) for key, child in value.items()} if isinstance(value, dict) else repr(value)


def epochs(
    run: tk.Run,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    loader: Any,
    ema: Any,
    scaler: Any,
    setup: Setup,
    kill: int | None,
) -> Iterator[None]:
    for epoch in range(run.epoch, 3):
        if not run.position().taken:
            tk.enter_phase(model, epoch, optimizer, scheduler if setup.groups else None)
        model.train()
        for batch in run.batches(loader):
            loss = model(batch).square().mean()
            if loss.requires_grad:
                scaler.scale(loss / setup.accumulate).backward()
            steps = run.position().steps
            if steps % setup.accumulate == 0 and loss.requires_grad:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                ema.update_parameters(model)
            if steps % 2 == 1:
                run.save(steps)
            if steps == kill:
                raise Killed
            yield
        measured = sum(parameter.detach().square().sum() for parameter in model.parameters())
        scheduler.step(measured) if setup.scheduler == "plateau" else scheduler.step()
        run.log(epoch=epoch, measured=measured)
        run.save(1000 + epoch)


def check(setup: Setup) -> None:
    assume("layers" not in setup.trains or set(setup.kinds) != {"dropout"})  # a phase that trains nothing
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of schedulers, when no step was made before theirs
        whole = play(setup, Path(temporary, "whole"), None)
        for number, kill in enumerate([*setup.kills, None]):
            try:
                resumed = play(setup, Path(temporary, "killed"), kill, again=number > 0)
            except Killed:
                continue
        assert resumed == whole
        assert [*map(dict, tk.Run(Path(temporary, "killed")).history)] == [
            *map(dict, tk.Run(Path(temporary, "whole")).history)
        ]


OPTIONS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],  # making a failing case smaller takes minutes
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def random_runs(count: int, number: int, workers: int = 0) -> None:
    """Draw so many training runs and check each; `number` is a seed."""

    @seed(number)
    @settings(max_examples=count, **OPTIONS)
    @given(setup=SETUPS)
    def checked(setup: Setup) -> None:
        check(replace(setup, workers=workers))

    checked()


def test_resumed_equals_uninterrupted() -> None:
    random_runs(25, 0)


def test_resumed_equals_uninterrupted_with_two_workers() -> None:
    random_runs(2, 0, workers=2)
