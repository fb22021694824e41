"""Fixtures that every room's tests may use: the corpus of real and of hostile files, and a way to open them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from torchkeep.core.checkpoint import Checkpoint
from torchkeep.core.limits import Limits
from torchkeep.core.registry import make_part
from torchkeep.core.source import PROBE_BYTES, Probe
from torchkeep.engines.mapped import MappedSource
from torchkeep.formats import FORMATS
from torchkeep.formats.foreign import explain

DATA = Path(__file__).parent / "data"


def open_file(path: str | Path) -> Checkpoint:
    """Open a checkpoint of any format, as the public function does."""
    source = MappedSource(path)
    probe = Probe(bytes(source.read(0, min(source.size, PROBE_BYTES))), source.size)
    for name in FORMATS:
        reader = make_part(FORMATS, name, "format")
        if reader.sniff(probe):
            return reader.open(source, Limits())
    raise explain(probe, source.name)


def _unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that real versions of torch wrote, each with a sidecar that says what is in it."""
    return _unpacked("checkpoints", tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that mean harm, with a manifest that says what a good reader does."""
    return _unpacked("evil", tmp_path_factory.mktemp("corpus"))
