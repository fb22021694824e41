"""Fine-tune EfficientNet-Lite0 on handwritten digits, as an ordinary training script that can be stopped at any time.

    python train.py --run runs/digits --epochs 7 --unfreeze-at 4

ImageNet weights are loaded by name, the head is resized to 10 classes and the stem adapted to one channel. A freeze
spec says that the backbone stands still until `--unfreeze-at`, and that from then on all of it but the norm layers
trains at a thirtieth of the rate. Start it again after a crash and it goes on with the next batch and the same numbers,
bit for bit. `--scratch` trains the same network from fresh weights.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from network import PIXEL_MEAN, PIXEL_SCALE, EfficientNetLite0, imagenet_weights
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import torchkeep as tk

BATCH = 64
RATE, SCRATCH_RATE = 3e-3, 1e-3


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
    """The network with ImageNet weights, a fresh head for 10 classes and a stem for one channel."""
    model = EfficientNetLite0()
    report = tk.load_into(model, imagenet_weights())
    print(f"loaded {len(report.loaded)} tensors, {report.coverage:.0%} of the model's elements", flush=True)
    print(tk.surgery.resize_head(model, classes=10), flush=True)
    print(tk.surgery.adapt_input(model, channels=1), flush=True)
    return model


def phases(unfreeze_at: int) -> tk.FreezeSpec:
    """The head alone, then everything at a thirtieth of the rate.

    Some hundred steps are too few for the running averages of batch norm to follow, so the norms keep ImageNet's.
    """
    return tk.FreezeSpec([tk.Phase("_fc", epochs=unfreeze_at), tk.Phase("* but *_bn?", rates={"*": "lr/30"})])


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


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """One pass; returns the mean training loss in nats of the batches that were seen."""
    model.train()
    total = count = 0.0
    for images, classes in batches:
        loss = functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(classes)
        count += len(classes)
    return total / max(count, 1)


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
    if not options.scratch:
        print(tk.freeze(model, phases(options.unfreeze_at)), flush=True)
    optimizer = torch.optim.AdamW(tk.param_groups(model, lr=SCRATCH_RATE if options.scratch else RATE))
    loader = DataLoader(TensorDataset(data.train_images, data.train_classes), BATCH, shuffle=True)
    run.resume(model=model, optimizer=optimizer)
    print(run.last_resume, flush=True)
    accuracy = 0.0
    for epoch in range(run.epoch, options.epochs):
        if not options.scratch:
            report = tk.enter_phase(model, epoch, optimizer)
            print(report or "", end="\n" if report else "", flush=True)
        train_loss = train_epoch(model, optimizer, run.batches(loader))
        val_loss, accuracy = evaluate(model, data)
        run.log(epoch=epoch, train_loss=train_loss, val_loss=val_loss, val_accuracy=accuracy)
        print(f"epoch {epoch}: train loss {train_loss:.3f}, held-out accuracy {accuracy:.1%}", flush=True)
        print(run.save(epoch), flush=True)
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
