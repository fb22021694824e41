"""Seeds that torch can no longer write, or that mean harm: the small files of the corpus and of the hostile set."""

from __future__ import annotations

import re
import tarfile
import tempfile
from pathlib import Path

from fuzz.targets import LIMITS, as_input, quietly
from torchkeep.formats._dispatch import recognise
from torchkeep.opening import as_source

DATA = Path(__file__).parents[1] / "data"
MOST = 4096
MOST_OF_A_FOLDER = 1 << 15
_VERSION = re.compile(r"torch([\d.]+)-")


def kept() -> dict[str, dict[str, bytes]]:
    """Target -> name -> bytes: of each kind of file in the corpus the oldest small one, and every small hostile file."""
    found: dict[str, dict[str, bytes]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for archive in ("checkpoints", "evil"):
            with tarfile.open(DATA / f"{archive}.tar.xz") as packed:
                packed.extractall(folder, filter="data")
        for path in sorted((folder / "evil").iterdir()):
            _add(found, f"evil-{path.stem}", path)
        for path in sorted((folder / "checkpoints").glob("*/*"), key=lambda path: (_age(path.parent.name), path.name)):
            _add(found, f"old-{path.name.replace('.', '-')}", path)
    return found


def _age(version: str) -> tuple[int, ...]:
    """Numbers to sort versions of torch by; what was made by hand stands last."""
    known = _VERSION.match(version)
    return tuple(map(int, known[1].split("."))) if known and not version.endswith("extras") else (99,)


def _add(found: dict[str, dict[str, bytes]], name: str, path: Path) -> None:
    data = _bytes(path)
    if data is None or path.suffix == ".json":
        return
    part = quietly(lambda: recognise(as_source(path), LIMITS))
    if part is not None:
        found.setdefault(part.name, {}).setdefault(name, data)
        if part.name == "folder":
            found.setdefault("hf_index", {}).setdefault(name, data)


def _bytes(path: Path) -> bytes | None:
    """A file, or a folder as one input; None where it is too large for a seed."""
    if path.is_dir():
        files = sorted(path.iterdir(), key=lambda one: (not one.name.endswith(".index.json"), one.name))
        data = as_input({one.name: one.read_bytes() for one in files if one.is_file()})
        return data if len(data) <= MOST_OF_A_FOLDER else None
    return path.read_bytes() if path.stat().st_size <= MOST else None
