"""Fine-tune EfficientNet-Lite0 on handwritten digits, as an ordinary training script that can be stopped at any time.

    python train.py --run runs/digits --epochs 7 --unfreeze-at 4

ImageNet weights are loaded by name, the head is resized to 10 classes and the stem adapted to one channel. The backbone
is frozen until `--unfreeze-at`; from then on all of it but the norm layers trains at a lower rate. Start it again after
a crash and it goes on with the same numbers, bit for bit. `--scratch` trains the same network from fresh weights.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from network import PIXEL_MEAN, PIXEL_SCALE, EfficientNetLite0, imagenet_weights
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

import torchkeep as tk

BATCH = 64
HEAD_RATE, ALL_RATE = 3e-3, 3e-4

# Sixty steps are too few for the running averages of batch norm to follow, so the norms keep ImageNet's.
ALL_BUT_NORMS = "* but *_bn?"


@dataclass(frozen=True)
class Data:
    """Images of shape (n, 1, size, size), normalised as the network expects, and their classes."""

    train_images: Tensor
    train_classes: Tensor
    test_images: Tensor
    test_classes: Tensor


def digits(size: int) -> Data:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged; 500 of them are held out."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = (images - PIXEL_MEAN) / PIXEL_SCALE
    classes = torch.tensor(bunch.target)
    train, test = train_test_split(range(len(classes)), test_size=500, stratify=bunch.target, random_state=0)
    return Data(images[train], classes[train], images[test], classes[test])


def pretrained() -> nn.Module:
    """The network with ImageNet weights, a fresh head for 10 classes, a stem for one channel, its backbone frozen."""
    model = EfficientNetLite0()
    report = tk.load_into(model, imagenet_weights())
    print(f"loaded {len(report.loaded)} tensors, {report.coverage:.0%} of the model's elements", flush=True)
    print(tk.surgery.resize_head(model, classes=10), flush=True)
    print(tk.surgery.adapt_input(model, channels=1), flush=True)
    print(tk.freeze(model, "* but _fc"), flush=True)
    return model


def from_scratch() -> nn.Module:
    """The same network with fresh weights; its running averages must follow a few hundred steps, so they are faster."""
    model = EfficientNetLite0(classes=10, channels=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def seed_everything(seed: int) -> None:
    """All three generators: a run restores them, but the first run of a script starts with what it is given."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW over what is trainable."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=rate)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data) -> float:
    """One pass in random order; returns the mean training loss in nats."""
    model.train()
    total = 0.0
    for batch in torch.randperm(len(data.train_classes)).split(BATCH):
        loss = functional.cross_entropy(model(data.train_images[batch]), data.train_classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(data.train_classes)


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss in nats and accuracy on the held-out digits."""
    model.eval()
    logits = torch.cat([model(images) for images in data.test_images.split(250)])
    loss = functional.cross_entropy(logits, data.test_classes).item()
    return loss, (logits.argmax(1) == data.test_classes).double().mean().item()


def train(options: argparse.Namespace, run: tk.Run) -> float:
    """The whole training; returns the last held-out accuracy."""
    seed_everything(options.seed)
    data = digits(options.size)
    model = from_scratch() if options.scratch else pretrained()
    optimizer = make_optimizer(model, 1e-3 if options.scratch else HEAD_RATE)
    unfreeze_at = options.epochs if options.scratch else options.unfreeze_at
    last = run.snapshots[-1].step if run.snapshots else -1
    if (
        last >= unfreeze_at
    ):  # the newest snapshot was saved with nearly everything trainable, so make the same optimizer
        tk.unfreeze(model, ALL_BUT_NORMS)
        optimizer = make_optimizer(model, ALL_RATE)
    start = run.resume(model=model, optimizer=optimizer)
    print(run.last_resume, flush=True)
    accuracy = 0.0
    for epoch in range(start, options.epochs):
        if epoch == unfreeze_at:
            print(tk.unfreeze(model, ALL_BUT_NORMS), flush=True)
            optimizer = make_optimizer(model, ALL_RATE)
        train_loss = train_epoch(model, optimizer, data)
        val_loss, accuracy = evaluate(model, data)
        run.log(epoch=epoch, train_loss=train_loss, val_loss=val_loss, val_accuracy=accuracy)
        print(f"epoch {epoch}: train loss {train_loss:.3f}, held-out accuracy {accuracy:.1%}", flush=True)
        print(run.save(epoch, model=model, optimizer=optimizer), flush=True)
    return accuracy


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--unfreeze-at", type=int, default=4, help="epoch from which more than the head trains")
    parser.add_argument("--size", type=int, default=48, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", action="store_true", help="fresh weights, nothing frozen")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    settings = parse()
    with tk.Run(settings.run, monitor="val_accuracy") as the_run:
        train(settings, the_run)
