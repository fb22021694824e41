"""Small models and a training step that the tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """A network with everything that a snapshot has to keep: norm statistics, dropout, a tied weight, a buffer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.fc.weight
        self.head = nn.Linear(4, classes)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(images))).mean((2, 3)) * self.scale
        return self.head(self.tied(self.drop(self.fc(x))))


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adamw-foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, centered=True),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2, history_size=3),
}

SCHEDULERS: dict[str, Any] = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "multistep": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 3]),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "onecycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40),
    "sequential": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)],
        milestones=[2],
    ),
}


def train_epoch(model: nn.Module, optimizer: Any, scheduler: Any = None, batches: int = 3) -> float:
    """A few steps on random data; uses the global generator, as dropout does."""
    model.train()
    last = 0.0
    for _ in range(batches):
        images, classes = torch.randn(8, 1, 5, 5), torch.randint(0, 3, (8,))

        def closure(images: Tensor = images, classes: Tensor = classes) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), classes)
            loss.backward()
            return loss

        last = float(optimizer.step(closure).detach())
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(last)
    elif scheduler is not None:
        scheduler.step()
    return last


def state_bits(*objects: Any) -> list[tuple[str, bytes]]:
    """Every tensor and number in the state dicts of some objects, as bytes, to compare runs bit for bit."""
    out: list[tuple[str, bytes]] = []

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            out.append((path, value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()))
        elif isinstance(value, dict):
            for key, child in value.items():
                walk(f"{path}.{key}", child)
        elif isinstance(value, (list, tuple)):
            for position, child in enumerate(value):
                walk(f"{path}.{position}", child)
        elif not callable(value):
            out.append((path, repr(value).encode()))

    for number, item in enumerate(objects):
        if item is not None:
            walk(str(number), dict(item.state_dict()))
    return sorted(out)
