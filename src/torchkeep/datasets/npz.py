"""An .npz file with inputs and labels."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.transfer import Examples
from ..errors import DataError
from ._arrays import Size, check_memory, from_names

_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class ArrayFile:
    """Arrays by name, as `np.savez` writes them."""

    name = "npz"
    wants = "an .npz file with x and y, or images and labels"

    def reads(self, source: Any) -> bool:
        """A file of this name."""
        return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".npz"

    def read(self, source: Any, *, size: Size | None, limit: int | None) -> Examples:
        """What `from_names` makes of the arrays. Python objects in the file are refused, for they would be run."""
        place = Path(source).expanduser()
        if not place.is_file():
            raise DataError(f"{source}: there is no such file", hint="check the path")
        with _named(source), zipfile.ZipFile(place) as archive:
            check_memory(sum(entry.file_size for entry in archive.infolist()), str(source))
        with _named(source), np.load(place, allow_pickle=False) as arrays:
            held = {name: _member(arrays, name) for name in arrays.files}
        return from_names(held, title=str(source), size=size, limit=limit)


def _member(arrays: Mapping[str, Any], name: str) -> Any:
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"the array {name!r} holds Python objects, which would be run to be read",
            hint="save numbers, and names as an array of strings: np.array([...], dtype=str)",
        ) from error


@contextmanager
def _named(source: Any) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error.message}", hint=error.hint) from error
    except _BROKEN as error:
        raise DataError(f"{source} cannot be read as .npz: {error}", hint="write it again with np.savez") from error
