"""How bytes get to and from a disk. One file per way; all of them move the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.registry import part_named
from ..core.source import Source
from .mounts import is_networked

READERS: dict[str, str] = {
    "mapped": "engines.mapped:MappedSource",
    "parallel": "engines.parallel:ParallelSource",
}


def reader_for(path: str | os.PathLike[str], engine: str | None = None) -> Callable[[str | os.PathLike[str]], Source]:
    """What makes a Source of a local file: the engine of this name, else the one that suits where the path lies.

    Raises:
        ValueError: there is no engine of this name.
    """
    reader: Any = part_named(READERS, engine or ("parallel" if is_networked(Path(path)) else "mapped"), "engine")
    return reader  # type: ignore[no-any-return]
