"""What the machine can do, measured in the same run: flat writes, copies, reads and hashes of the same bytes."""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from .probe import timed, warm
from .shapes import State, noise

CHUNK = 64 << 20
PAGE = 4096
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def flat_state(nbytes: int) -> State:
    """One tensor with as many bytes as a state."""
    return {"flat": noise((-(-nbytes // 4),), 0)}


def _bytes(state: State) -> memoryview:
    return memoryview(state["flat"].numpy()).cast("B")


@functools.cache
def _aligned() -> memoryview:
    """One buffer that O_DIRECT can write from, filled and used again and again."""
    buffer = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    buffer.madvise(mmap.MADV_HUGEPAGE)
    np.random.default_rng(0).random(out=np.frombuffer(buffer, np.float64))
    return memoryview(buffer)


def page_cache(state: State, folder: Path) -> None:
    """One file, written to the page cache in chunks of 64 MiB."""
    view = _bytes(state)
    with (folder / "flat").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(view))
        for start in range(0, len(view), CHUNK):
            file.write(view[start : start + CHUNK])


def direct(state: State, folder: Path) -> None:
    """As many bytes with O_DIRECT in chunks of 64 MiB from one aligned buffer, and an fsync of file and folder."""
    total = len(_bytes(state))
    fd = os.open(folder / "flat", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        os.posix_fallocate(fd, 0, -(-total // PAGE) * PAGE)
        for start in range(0, total, CHUNK):
            os.write(fd, _aligned()[: min(CHUNK, -(-(total - start) // PAGE) * PAGE)])
        os.ftruncate(fd, total)
        os.fsync(fd)
    finally:
        os.close(fd)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def two(job: Callable[[int, int], object], total: int) -> None:
    """Do one half on each of two threads."""
    middle = total // 2 // PAGE * PAGE
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job, 0, middle), pool.submit(job, middle, total)]:
            done.result()


def _touch(path: Path) -> None:
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    mapped[: len(mapped) // 8 * 8].view(np.int64).sum()


def _read(path: Path, target: Bytes, start: int, stop: int) -> None:
    with path.open("rb", buffering=0) as file:
        for place in range(start, stop, CHUNK):
            os.preadv(file.fileno(), [target[place : min(stop, place + CHUNK)].data], place)


def measure(nbytes: int, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds for as many bytes: copying, hashing, and reading a file that is in the page cache."""
    state = flat_state(nbytes)
    source: Bytes = np.frombuffer(_bytes(state), np.uint8)
    target = source.copy()
    direct(state, folder)
    warm(folder)
    path = folder / "flat"

    def copy(start: int, stop: int) -> None:
        np.copyto(target[start:stop], source[start:stop])

    def digest(start: int, stop: int) -> None:
        blake3.blake3(source[start:stop].data).digest()

    jobs: dict[str, Callable[[], object]] = {
        "memcpy, 1 thread": partial(copy, 0, len(source)),
        "memcpy, 2 threads": partial(two, copy, len(source)),
        "BLAKE3, 1 thread": partial(digest, 0, len(source)),
        "BLAKE3, 2 threads": partial(two, digest, len(source)),
        "page cache, mmap and touch all": partial(_touch, path),
        "page cache, 2 threads of preadv into warm memory": partial(two, partial(_read, path, target), len(source)),
    }
    for job in jobs.values():
        job()
    return {name: [timed(job) for _ in range(repeats)] for name, job in jobs.items()}
