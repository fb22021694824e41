"""Small nets, trained: what the one who trains sees, and what only the truth is measured from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from .cases import Case
from .data import Split, split

Floats = NDArray[np.float64]
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@dataclass(frozen=True)
class Record:
    """One run, epoch by epoch.

    Attributes:
        rows: what is logged: the columns of the CSV.
        train_loss, train_accuracy: of the training set after each epoch, in evaluation mode.
        losses, hits: [epochs, examples] of the large set: the loss of each example, and whether its class was found.
        own_hits: the same on the large set as the training set is drawn.
        trainable, parameters: the share of elements that is trained, and how many there are.
    """

    rows: tuple[dict[str, float], ...]
    train_loss: Floats
    train_accuracy: Floats
    losses: Floats
    hits: Floats
    own_hits: Floats
    trainable: float
    parameters: int


def build(case: Case, inputs: int, outputs: int) -> nn.Sequential:
    """The net of a case: fully connected, or two convolutions before that."""
    layers: list[nn.Module] = []
    width = inputs
    if case.convolutions:
        side, channels = round(inputs**0.5), case.convolutions
        layers += [nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        width = 2 * channels * (side // 4) ** 2
    for hidden in case.hidden:
        layers += [nn.Linear(width, hidden), ACTIVATIONS[case.activation]()]
        if case.dropout:
            layers.append(nn.Dropout(case.dropout))
        width = hidden
    layers.append(nn.Linear(width, outputs))
    return nn.Sequential(*layers).double()


def _freeze(net: nn.Sequential, trained: str) -> None:
    last = f"{len(net) - 1}."
    for name, parameter in net.named_parameters():
        head = name.startswith(last)
        parameter.requires_grad_(trained == "all" or head or (trained == "biases" and name.endswith("bias")))


def _pretrain(net: nn.Sequential, case: Case) -> None:
    """Learn something else first: whether a digit is odd. The head is made anew after that."""
    other = split(
        replace(
            case,
            data=case.pretrained,
            seed=case.seed + 77,
            n_train=600,
            n_val=20,
            shuffled=False,
            shift="",
            label_noise=0,
        )
    )
    inputs, labels = other.train
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(25):
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs[batch])[:, :2], labels[batch] % 2).backward()
            optimizer.step()
    head = net[-1]
    assert isinstance(head, nn.Linear)
    head.reset_parameters()


def _each(net: nn.Module, piece: tuple[torch.Tensor, torch.Tensor], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each example and whether it was got right, in evaluation mode."""
    net.eval()
    with torch.no_grad():
        out = net(piece[0])
    return _losses(out, piece[1], classes), out.argmax(1).eq(piece[1]).double()


def _losses(out: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
    if classes:
        return functional.cross_entropy(out, target, reduction="none")
    return (out[:, 0] - target).square()


def _rate(case: Case, epoch: int) -> float:
    done = epoch / case.epochs
    if case.schedule == "step":
        return case.rate * (0.05 if done >= 0.6 else 1)
    if case.schedule == "cosine":
        return float(case.rate * 0.5 * (1 + np.cos(np.pi * done)))
    return case.rate


def train(case: Case, pieces: Split | None = None) -> Record:
    """Train the net of a case on one thread; the same on every call."""
    torch.set_num_threads(1)
    pieces = pieces or split(case)
    with torch.random.fork_rng():
        torch.manual_seed(1000 * case.seed + case.init)
        net = build(case, pieces.train[0].shape[1], max(pieces.classes, 1))
        if case.pretrained:
            _pretrain(net, case)
        _freeze(net, case.trained)
        return _trained(net, case, pieces)


def _trained(net: nn.Sequential, case: Case, pieces: Split) -> Record:
    inputs, target = pieces.train
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if case.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            trained, case.rate, momentum=case.momentum, weight_decay=case.weight_decay, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(trained, case.rate, weight_decay=case.weight_decay, fused=True)
    rows, seen, large, own = [], [], [], []
    for epoch in range(case.epochs):
        optimizer.param_groups[0]["lr"] = rate = _rate(case, epoch)
        net.train()
        total = hits = 0.0
        for batch in torch.randperm(len(inputs)).split(case.batch):
            optimizer.zero_grad()
            out = net(inputs[batch])
            losses = _losses(out, target[batch], pieces.classes)
            losses.mean().backward()
            optimizer.step()
            total += float(losses.detach().sum())
            hits += float(out.argmax(1).eq(target[batch]).sum())
        fit, found = _each(net, pieces.train, pieces.classes)
        seen.append((float(fit.mean()), float(found.mean())))
        val_losses, val_hits = _each(net, pieces.val, pieces.classes)
        large.append(_each(net, pieces.test, pieces.classes))
        own.append(_each(net, pieces.own, pieces.classes)[1] if case.shift else large[-1][1])
        row = {"epoch": float(epoch + 1), "train_loss": total / len(inputs), "val_loss": float(val_losses.mean())}
        if case.log_train_in_eval:
            row["train_loss"] = seen[-1][0]
        if pieces.classes:
            row["val_accuracy"] = float(val_hits.mean())
            if case.log_more:
                row |= {"train_accuracy": hits / len(inputs), "lr": rate}
        rows.append(row)
    sizes = [parameter.numel() for parameter in net.parameters()]
    return Record(
        rows=tuple(rows),
        train_loss=np.array([loss for loss, _ in seen]),
        train_accuracy=np.array([accuracy for _, accuracy in seen]),
        losses=torch.stack([losses for losses, _ in large]).numpy(),
        hits=torch.stack([found for _, found in large]).numpy(),
        own_hits=torch.stack(own).numpy(),
        trainable=sum(parameter.numel() for parameter in trained) / sum(sizes),
        parameters=sum(sizes),
    )
