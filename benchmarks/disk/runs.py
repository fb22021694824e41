"""Snapshot after snapshot of one training: the first, one with nothing changed, and those after a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchkeep as tk

from .probe import size, timed
from .shapes import leaves, module_of, state_of, take_step, training

Optimizer = torch.optim.Optimizer | None
Keeper = Callable[[nn.Module, Optimizer, Path], Callable[[int], object]]


def with_torchkeep(model: nn.Module, optimizer: Optimizer, folder: Path, **options: Any) -> Callable[[int], object]:
    """A run; what it holds already is not written again."""
    if not all(parameter.requires_grad for parameter in model.parameters()):
        tk.freeze(model, "* but fc")
    run = tk.Run(folder, **options)
    return partial(run.save, model=model, optimizer=optimizer)


def with_moonclip(model: nn.Module, optimizer: Optimizer, folder: Path) -> Callable[[int], object]:
    """One manager; it leaves out what did not change, and writes the rest as differences."""
    from moonclip import CheckpointManager

    manager = CheckpointManager(str(folder), async_save=False)
    return partial(manager.save, model=model, optimizer=optimizer)


KEEPERS: dict[str, Keeper] = {
    "torchkeep": with_torchkeep,
    "torchkeep, trust_frozen": partial(with_torchkeep, trust_frozen=True),
    "moonclip": with_moonclip,
}


def trained_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The bytes of the parameters that train and of their state in the optimizer."""
    parameters = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return parameters + sum(tensor.nbytes for _, tensor in leaves(optimizer.state_dict()))


def measure(keeper: Keeper, shape: str, scale: float, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds and bytes of each kind of snapshot; bytes are what the folder grew by."""
    found: dict[str, list[float]] = {}
    optimizer: Optimizer = None
    if shape in {"train", "head"}:
        model, optimizer = training(shape, scale)
        found["trained bytes"] = [trained_bytes(model, optimizer)]
    else:
        model = module_of(state_of(shape, scale))
    inside = folder / "run"
    save = keeper(model, optimizer, inside)
    kinds = ["first", *["unchanged"] * repeats, *["changed"] * (repeats if optimizer is not None else 0)]
    for step, kind in enumerate(kinds):
        if kind == "changed" and optimizer is not None:
            take_step(model, optimizer)
        before = size(inside)
        found.setdefault(kind, []).append(timed(partial(save, step)))
        found.setdefault(f"{kind} bytes", []).append(size(inside) - before)
    manifests = sorted((inside / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    if manifests:
        found["manifest bytes"] = [manifests[-1].stat().st_size]
    return found
