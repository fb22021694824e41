"""The tasks: a pretrained network, a pool to learn from, and a test set that no choice ever sees.

Sizes and likenesses say what a task was built for; `grid` measures what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn
from torch.nn import functional

from torchkeep.core.transfer import Examples, Recipe

from . import data, nets

FEW = Recipe(epochs=40, batch=16, lr=2e-3)
MANY = Recipe(epochs=15, batch=32, lr=2e-3)
PHOTOS = Recipe(epochs=8, batch=16, lr=2e-3)
FACES = Recipe(epochs=12, batch=8, lr=2e-3)
TEXTS = Recipe(epochs=6, batch=16, lr=1e-3)


@dataclass(frozen=True)
class Task:
    """A transfer task.

    Attributes:
        name: unique among the tasks.
        make: the pretrained network, with its old head.
        examples: the whole data set, as the network takes it.
        count: how many of them are the pool that is learned from.
        test: how many others the result is measured on.
        recipe: how training goes.
        size: `small` or `large`, as built.
        built: `similar` or `different` from what the network was trained on, as built.
        old_labels: names of what the old head tells apart, where they are known.
    """

    name: str
    make: Callable[[], nn.Module]
    examples: Callable[[], Examples]
    count: int
    test: int
    recipe: Recipe
    size: Literal["small", "large"]
    built: Literal["similar", "different"]
    old_labels: tuple[str, ...] | None = None

    @cached_property
    def _halves(self) -> tuple[Examples, Examples]:
        return data.halves(self.examples(), self.count, self.test)

    @property
    def pool(self) -> Examples:
        """What is learned from, and what every choice is made on."""
        return self._halves[0]

    @property
    def held(self) -> Examples:
        """The test set."""
        return self._halves[1]


def _mnist_like_digits() -> Examples:
    """Digits at the size of MNIST's, in the frame that MNIST has around them."""
    images, labels = data.digits()
    framed = functional.pad(data.resized(images, 20), (4,) * 4)
    return data.written(framed, labels, nets.MNIST_PIXELS, "digits")


def _turned_digits() -> Examples:
    images, labels = data.digits()
    framed = functional.pad(data.resized(images, 20), (4,) * 4)
    return data.written(data.turned(framed), labels, nets.MNIST_PIXELS, "digits, turned and inverted")


def _mnist() -> Examples:
    images, labels = data.mnist()
    return data.written(images, labels, nets.MNIST_PIXELS, "MNIST")


def _scrambled_mnist() -> Examples:
    images, labels = data.mnist()
    return data.written(data.scrambled(images), labels, nets.MNIST_PIXELS, "MNIST, pixels in another order")


def _usps_like_mnist() -> Examples:
    images, labels = data.mnist()
    return data.written(data.resized(images[..., 4:24, 4:24], 16), labels, nets.USPS_PIXELS, "MNIST, 16 x 16")


def _usps_like_digits() -> Examples:
    images, labels = data.digits()
    return data.written(data.resized(images, 16), labels, nets.USPS_PIXELS, "digits, 16 x 16")


def _house_digits() -> Examples:
    images, labels = data.digits()
    return data.written(data.resized(images, 32), labels, nets.SVHN_PIXELS, "digits, 32 x 32")


def _house_mnist() -> Examples:
    images, labels = data.mnist()
    return data.written(data.resized(images, 32), labels, nets.SVHN_PIXELS, "MNIST, 32 x 32")


def _large_digits() -> Examples:
    images, labels = data.digits()
    return data.written(data.resized(images, 48), labels, nets.IMAGENET_PIXELS, "digits, 48 x 48")


TASKS = (
    Task("mnist-digits-50", nets.mnist_net, _mnist_like_digits, 50, 1000, FEW, "small", "similar", data.TEN),
    Task("mnist-digits-500", nets.mnist_net, _mnist_like_digits, 500, 1000, MANY, "large", "similar", data.TEN),
    Task("mnist-turned-50", nets.mnist_net, _turned_digits, 50, 1000, FEW, "small", "different", data.TEN),
    Task("mnist-turned-500", nets.mnist_net, _turned_digits, 500, 1000, MANY, "large", "different", data.TEN),
    Task("mnist-mnist-300", nets.mnist_net, _mnist, 300, 1000, MANY, "large", "similar", data.TEN),
    Task("mnist-scrambled-500", nets.mnist_net, _scrambled_mnist, 500, 1000, MANY, "large", "different", data.TEN),
    Task(
        "mnist-textures-60", nets.mnist_net, lambda: data.textures(28, 28, nets.MNIST_PIXELS),
        60, 800, FEW, "small", "different", data.TEN,
    ),
    Task("usps-mnist-100", nets.usps_net, _usps_like_mnist, 100, 1000, FEW, "small", "similar", data.TEN),
    Task("usps-digits-500", nets.usps_net, _usps_like_digits, 500, 1000, MANY, "large", "similar", data.TEN),
    Task("svhn-digits-50", nets.svhn_net, _house_digits, 50, 600, FEW, "small", "similar", data.TEN),
    Task("svhn-mnist-200", nets.svhn_net, _house_mnist, 200, 600, MANY, "large", "similar", data.TEN),
    Task(
        "lite0-scenes-100", nets.lite0, lambda: data.scenes(48, 48, nets.LITE0_PIXELS),
        100, 350, PHOTOS, "small", "similar",
    ),
    Task(
        "lite0-heights-120", nets.lite0, lambda: data.heights(48, 48, nets.LITE0_PIXELS),
        120, 320, PHOTOS, "large", "similar",
    ),
    Task(
        "mobilenet-faces-60", nets.mobilenet, lambda: data.faces(48, nets.IMAGENET_PIXELS),
        60, 140, FACES, "small", "different",
    ),
    Task("mobilenet-digits-200", nets.mobilenet, _large_digits, 200, 500, PHOTOS, "large", "different"),
    Task(
        "minilm-docstrings-80", nets.minilm, lambda: data.docstrings(60, 16),
        80, 400, TEXTS, "small", "similar",
    ),
    Task(
        "minilm-enciphered-120", nets.minilm, lambda: data.docstrings(60, 16, enciphered=True),
        120, 360, TEXTS, "large", "different",
    ),
)  # fmt: skip


def named(names: list[str] | None) -> tuple[Task, ...]:
    """The tasks of these names; all of them without.

    Raises:
        SystemExit: there is no such task.
    """
    known = {task.name: task for task in TASKS}
    if unknown := sorted(set(names or ()) - known.keys()):
        raise SystemExit(f"there is no task {', '.join(unknown)}; tasks are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else TASKS
