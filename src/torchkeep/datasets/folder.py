"""A folder of images in which every class has a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..core.drawing import in_shares
from ..core.table import shorten
from ..core.transfer import Examples
from ..errors import DataError
from ._arrays import Size, drawn
from ._images import Pictures, pillow

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_HOW = "give a folder with one folder a class, and the images of the class in it"


class ImageFolder:
    """The folders in a folder are the classes, in the order of their names; images may lie deeper."""

    name = "folder"
    wants = "a folder with one folder of images a class"

    def reads(self, source: Any) -> bool:
        """Any folder."""
        return isinstance(source, (str, os.PathLike)) and source != "" and Path(source).expanduser().is_dir()

    def read(self, source: Any, *, size: Size | None, limit: int | None) -> Examples:
        """Images as float32, 0 to 1: [n, 1, h, w] where all are grey, else [n, 3, h, w]."""
        place = Path(source).expanduser()
        folders = sorted(child for child in place.iterdir() if child.is_dir() and not child.name.startswith("."))
        _check(source, place, folders)
        notes: list[str] = []
        found = {folder.name: sorted(_files(folder)) for folder in folders}
        images = {name: [path for path in paths if path.suffix.lower() in _SUFFIXES] for name, paths in found.items()}
        empty = [name for name, paths in images.items() if not paths]
        other = [path for paths in found.values() for path in paths if path.suffix.lower() not in _SUFFIXES]
        classes = [name for name in images if name not in empty]
        if not classes:
            raise DataError(f"{source} has {len(folders)} folders, and no image in any of them", hint=_HOW)
        if empty:
            notes.append(f"{len(empty)} folders have no image and are no class: {shorten(empty, 5)}")
        if other:
            notes.append(f"{len(other)} files are no images by their names and are left out, e.g. {other[0].name}")
        labels = torch.tensor([number for number, name in enumerate(classes) for _ in images[name]])
        paths = [path for name in classes for path in images[name]]
        if limit is not None and limit < len(paths):
            notes.append(drawn(limit, len(paths)))
            kept = in_shares(labels, 0, least=2)[:limit].sort().values
            paths, labels = [paths[one] for one in kept.tolist()], labels[kept]
            used, labels = labels.unique(return_inverse=True)
            classes = [classes[number] for number in used.tolist()]
        library = pillow()
        reading = Pictures([str(path) for path in paths], lambda place: library.Image.open(paths[place]), size, notes)
        inputs = reading.read()
        return Examples(inputs, labels, tuple(classes), str(source), tuple(notes))


def _check(source: Any, place: Path, folders: list[Path]) -> None:
    if not folders:
        count = sum(child.suffix.lower() in _SUFFIXES for child in place.iterdir())
        held = f"{count:,} images and no folders" if count else "no folders"
        raise DataError(f"{source} has no classes: it has {held}", hint=_HOW)
    if {folder.name.lower() for folder in folders} <= _PARTS and any(
        child.is_dir() for folder in folders for child in folder.iterdir()
    ):
        raise DataError(
            f"{source} is divided into {shorten(folder.name for folder in folders)}, which are parts and no classes",
            hint=f"give one of them, e.g. {folders[0]}",
        )


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it that are not hidden."""
    for above, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(above) / name for name in names if not name.startswith("."))
