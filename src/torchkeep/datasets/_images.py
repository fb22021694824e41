"""Pictures of pillow as float32 from 0 to 1: grey ones with one channel, others with three."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.table import shorten
from ..errors import DataError, MissingDependencyError
from ._arrays import Size, check_memory

_GREY = {"1", "L", "LA", "La", "I", "F"}
_TURNED = range(5, 9)  # orientations of EXIF that exchange width and height
_ORIENTATION = 0x0112


def pillow() -> Any:
    """The module `PIL`, with what is used of it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise MissingDependencyError(
            "reading images needs pillow, which is not installed", hint="pip install 'torchkeep[trials]'"
        ) from error
    return PIL


@dataclass(frozen=True)
class Looked:
    """What the head of an image says of it: height and width as it is shown, channels 1 or 3."""

    height: int
    width: int
    channels: int
    transparent: bool = False
    moving: bool = False


@dataclass
class Pictures:
    """Images that are read one after another into one tensor.

    Attributes:
        names: of each, for errors.
        opened: gives the image of a place, in a context that closes it.
        size: height and width that they are brought to.
        notes: what was changed.
    """

    names: list[str]
    opened: Callable[[int], AbstractContextManager[Any]]
    size: Size | None
    notes: list[str] = field(default_factory=list)

    def read(self) -> torch.Tensor:
        """All of them: float32 [n, channels, h, w].

        Raises:
            DataError: one cannot be read, or they are of several sizes and no size is given.
        """
        looked = [self._with(place, look) for place in range(len(self.names))]
        height, width = self._common(looked)
        channels = max(one.channels for one in looked)
        grey = sum(one.channels == 1 for one in looked)
        if channels == 3 and grey:
            self.notes.append(f"{grey:,} of {len(looked):,} images are grey and were given three equal channels")
        for count, what in (
            (sum(one.transparent for one in looked), "have transparency, which is left out"),
            (sum(one.moving for one in looked), "have several frames, of which the first is taken"),
        ):
            if count:
                self.notes.append(f"{count:,} of {len(looked):,} images {what}")
        check_memory(4.0 * len(looked) * channels * height * width, f"{len(looked):,} images of {height} x {width}")
        out = torch.empty(len(looked), channels, height, width)
        for place in range(len(looked)):
            out[place] = torch.from_numpy(self._with(place, lambda image: pixels(image, self.size)))
        return out

    def _with(self, place: int, work: Callable[[Any], Any]) -> Any:
        with _loud(self.names[place]), self.opened(place) as image:
            return work(image)

    def _common(self, looked: list[Looked]) -> Size:
        sizes = Counter((one.height, one.width) for one in looked)
        if self.size is not None:
            if set(sizes) != {self.size}:
                self.notes.append(
                    f"images of {len(sizes)} sizes were brought to {self.size[0]} x {self.size[1]}: "
                    "scaled to cover it, the middle kept"
                )
            return self.size
        if len(sizes) > 1:
            seen = shorten((f"{high} x {wide} ({count})" for (high, wide), count in sizes.most_common()), 5)
            common = sizes.most_common(1)[0][0]
            odd = next(name for name, one in zip(self.names, looked, strict=True) if (one.height, one.width) != common)
            raise DataError(
                f"the images have {len(sizes)} sizes, height x width: {seen}; {odd} is one of the rarer",
                hint=f"bring them to one size, e.g. size={min(min(one) for one in sizes)}",
            )
        return next(iter(sizes))


@contextmanager
def _loud(name: str) -> Iterator[None]:
    """Whatever goes wrong with an image is an error with its name; what pillow merely mumbles is not heard."""
    bomb = pillow().Image.DecompressionBombWarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", bomb)
            yield
    except DataError:
        raise
    except Exception as error:  # pillow has many ways of not reading a file
        said = f"{type(error).__name__}: {error}".replace(str(name), "it")
        raise DataError(f"{name} cannot be read as an image: {said}", hint="mend it or take it away") from error


def look(image: Any) -> Looked:
    """What an image is, before its pixels are read."""
    width, height = image.size
    if image.getexif().get(_ORIENTATION) in _TURNED:
        width, height = height, width
    transparent = image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info
    moving = getattr(image, "n_frames", 1) > 1
    return Looked(height, width, 1 if _is_grey(image.mode) else 3, transparent, moving)


def _is_grey(mode: str) -> bool:
    return mode in _GREY or mode.startswith("I;16")


def pixels(image: Any, size: Size | None) -> NDArray[np.float32]:
    """The pixels of an image: float32 [channels, h, w], 0 to 1.

    Raises:
        DataError: they have no known range.
    """
    library = pillow()
    image = library.ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _ranged(library, np.asarray(image) / 65535)
    elif image.mode == "F":
        image = _ranged(library, np.asarray(image))
    elif _is_grey(image.mode):
        image = image.convert("L")
    else:
        image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = library.ImageOps.fit(image, (size[1], size[0]), library.Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.float32)
    array = array.clip(0, 1) if image.mode == "F" else array / np.float32(255)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _ranged(library: Any, array: NDArray[Any]) -> Any:
    if not bool(((array >= 0) & (array <= 1)).all()):
        low, high = float(array.min()), float(array.max())
        raise DataError(
            f"an image has pixels from {low:.4g} to {high:.4g} times white, whose range nothing says",
            hint="bring them to 0 to 1, or store 8 or 16 bits a pixel",
        )
    return library.Image.fromarray(array.astype(np.float32))


def is_picture(value: Any) -> bool:
    """Whether this is an image of pillow, told without importing it."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(value).__mro__)


def pictures(images: Iterable[Any], size: Size | None, notes: list[str]) -> torch.Tensor:
    """Images of pillow that are in memory already, as one tensor."""
    listed = list(images)
    names = [f"the image of example {place}" for place in range(len(listed))]
    return Pictures(names, lambda place: nullcontext(listed[place]), size, notes).read()
