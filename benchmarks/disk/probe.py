"""What is measured around a call: its time, the memory it adds, and what it left on the disk."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

# A process of its own, so that a peer which holds the interpreter lock is watched as well. Memory is RssAnon and
# RssShmem: what the kernel cannot give up. Pages of mapped files are left out. Of children only RssAnon counts, since
# what they share is counted once already.
SAMPLER = """
import os, select, sys
def status(pid):
    try:
        with open(f'/proc/{pid}/status') as file:
            pairs = dict(line.split(':', 1) for line in file)
    except OSError:
        return {}
    return {key: int(pairs[key].split()[0]) for key in ('RssAnon', 'RssShmem') if key in pairs}
def below(pid):
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            found = [int(one) for one in file.read().split() if int(one) != os.getpid()]
    except OSError:
        return []
    return found + [one for child in found for one in below(child)]
def level(pid):
    return sum(status(pid).values()) + sum(status(child).get('RssAnon', 0) for child in below(pid))
pid = int(sys.argv[1])
most = level(pid)
print(most, flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    most = max(most, level(pid))
print(max(most, level(pid)), flush=True)
"""


class Memory:
    """Memory of this process that is no page cache, and of its children, every 5 ms; `rise` is the most, in MB."""

    rise = 0.0

    def __enter__(self) -> Memory:
        command = [sys.executable, "-I", "-S", "-c", SAMPLER, str(os.getpid())]
        self._sampler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._sampler.stdout is not None
        self._before = int(self._sampler.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said, _ = self._sampler.communicate("\n")
        self.rise = (int(said) - self._before) / 1e3


def timed(job: Callable[[], object]) -> float:
    """Seconds that a call takes; what it returned is dropped afterwards."""
    gc.collect()
    started = time.perf_counter()
    kept = job()
    seconds = time.perf_counter() - started
    del kept
    return seconds


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def size(folder: Path) -> int:
    """The bytes of every file below a folder."""
    return sum(path.stat().st_size for path in files(folder))


def sync(folder: Path) -> None:
    """Make what a save left durable: every file, every folder, and the name of the folder."""
    for path in [*files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def warm(folder: Path) -> None:
    """Bring every file into the page cache."""
    piece = bytearray(1 << 20)
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass
