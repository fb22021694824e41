"""Fixtures that every room's tests may use: the corpus of real and of hostile files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

DATA = Path(__file__).parent / "data"
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # others may be running
settings.load_profile("busy")


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small models are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
