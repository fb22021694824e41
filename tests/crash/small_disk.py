"""Saves on a small file system that is nearly full: run by a test, in a mount namespace of its own.

python tests/crash/small_disk.py <mounted folder> <folder elsewhere>
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torchkeep as tk
from crash.states import parts, resumed
from crash.test_full import check_untouched, saves, sizes, train
from models import state_bits
from torchkeep.errors import NoSpaceError


def room(disk: Path, what: str) -> int:
    """Free blocks, or files that can still be made."""
    status = os.statvfs(disk)
    return status.f_bfree if what == "bytes" else status.f_ffree


def fill(disk: Path, what: str, left: int) -> None:
    """Take all room but so much."""
    (disk / "ballast").mkdir()
    count = room(disk, what) - left
    if what == "bytes":
        with (disk / "ballast" / "blocks").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, count * os.statvfs(disk).f_bsize)
    else:
        for number in range(count):
            (disk / "ballast" / str(number)).touch()
    assert room(disk, what) == left


def attempt(disk: Path, old: list[tuple[str, bytes]], what: str, left: int) -> bool:
    """Resume and save with so much room; whether it was refused, in which case all is as it was."""
    folder = disk / "run"
    fill(disk, what, left)
    before, free = sizes(folder), room(disk, what)
    with resumed(folder) as (run, model, optimizer, step):  # reading works on a full disk
        train(model, optimizer)
        try:
            saves(run, model, optimizer, step)
            refused = False
        except NoSpaceError as error:
            refused = True
            assert error.needed > 0 and error.free >= 0, error
            assert room(disk, what) in {free, free - 1}, "the space was not given back"  # a block more of history
        shutil.rmtree(disk / "ballast")
        if refused:
            check_untouched(folder, old, before)
            assert run.save(step, model=model, optimizer=optimizer).sequence == 2
        now = state_bits(model, optimizer)
    with resumed(folder) as (run, model, optimizer, step):
        assert run.last_resume.sequence == 2 and step == 2 and state_bits(model, optimizer) == now
    assert tk.verify(folder).ok
    return refused


def refusals(disk: Path, base: Path, what: str) -> int:
    """Of ten saves, with one more block or file free each time, how many were refused."""
    model, optimizer = parts()
    with tk.Run(base / "run") as run:
        saves(run, model, optimizer, 0)
    old = state_bits(model, optimizer)
    refused = []
    for left in range(10):
        shutil.copytree(base / "run", disk / "run")
        refused.append(attempt(disk, old, what, left))
        shutil.rmtree(disk / "run")
    assert refused == sorted(refused, reverse=True), "what has less room is not refused before what has more"
    return sum(refused)


if __name__ == "__main__":
    places = Path(sys.argv[1]), Path(sys.argv[2])
    print(*(refusals(places[0], places[1] / what, what) for what in ("bytes", "names")))
