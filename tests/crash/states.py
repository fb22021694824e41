"""Runs that lose power, or are killed, or both one after another, and what has to be true of them afterwards."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchkeep as tk
from models import state_bits

from .calls import Op, Watch
from .disk import Disk

PLACE = "deep/er/run"  # folders above the run have to be durable too


@dataclass(frozen=True)
class Saved:
    """What one `save` was given."""

    step: int
    bits: list[tuple[str, bytes]]
    history: list[dict[str, Any]]


@dataclass
class Story:
    """A training in a folder, watched: what it saved, and the calls it made.

    Attributes:
        saved: by sequence number.
        calls: all changes in order, with a mark where a `save` had returned.
    """

    saved: dict[int, Saved] = field(default_factory=dict)
    calls: list[Op] = field(default_factory=list)

    def watch(self, world: Path) -> Watch:
        """Note the calls of what is done inside."""
        self.calls = []
        return Watch(world, after=self.calls.append)

    def train(self, run: tk.Run, model: nn.Module, optimizer: Any, step: int, logs: int = 2) -> None:
        """One epoch; what comes out follows from what was resumed alone, so that a second try gives the same bytes."""
        for number in range(logs):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 32)).square().mean()
            loss.backward()
            optimizer.step()
            run.log(epoch=step, number=number, val_loss=loss, note="x" * 150)
        self.save(run, model, optimizer, step)

    def save(self, run: tk.Run, model: nn.Module, optimizer: Any, step: int) -> None:
        """Save, and remember what a resume has to give back; the mark stands after the save has returned."""
        bits, history = state_bits(model, optimizer), list(run.history)
        report = run.save(step, model=model, optimizer=optimizer)
        self.saved[report.sequence] = Saved(step, bits, history)
        self.calls.append(Op("mark", size=report.sequence))

    def first(self, folder: Path) -> None:
        """Three processes: a new run, one that goes on, and one that goes back."""
        model, optimizer = parts()
        with tk.Run(folder) as run:
            assert run.resume(model=model, optimizer=optimizer) == 0
            for step in range(2):
                self.train(run, model, optimizer, step)
            self.save(run, model, optimizer, 2)  # nothing changed: a manifest alone
        with resumed(folder) as (run, model, optimizer, step):
            self.train(run, model, optimizer, step)
        with resumed(folder, snapshot=2) as (run, model, optimizer, step):
            for number in range(2):
                self.train(run, model, optimizer, step + number)

    def next(self, folder: Path, floor: int, generator: random.Random) -> None:
        """What a process does in a run that it finds: it gets back what was saved, and goes on.

        Raises:
            AssertionError: it did not get what it was promised.
        """
        reader = tk.Run(folder)
        assert len(reader.history) <= len(reader.history.records)
        model, optimizer = parts()
        with tk.Run(folder) as run:
            start = run.resume(model=model, optimizer=optimizer)
            report = run.last_resume
            assert report is not None and report.sequence >= floor, f"{report.sequence} was resumed, {floor} was saved"
            assert not report.skipped and not report.notes, (report.skipped, report.notes)
            if report.sequence:
                was = self.saved[report.sequence]
                assert start == was.step + 1
                assert state_bits(model, optimizer) == was.bits, "other weights than were saved"
            assert list(run.history) == (was.history if report.sequence else [])
            assert not list(folder.rglob(".tmp-*")), "leftovers stay"
            self.train(run, model, optimizer, start, logs=generator.choice((0, 1, 3)))
            newest = max(self.saved) if generator.random() < 0.5 else 0
        if newest:
            with resumed(folder) as (run, model, optimizer, step):
                assert state_bits(model, optimizer) == self.saved[run.last_resume.sequence].bits
                self.train(run, model, optimizer, step)


def parts() -> tuple[nn.Module, Any]:
    """A small model with a frozen part, untrained."""
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 2))
    tk.freeze(model, "0")
    return model, torch.optim.Adam(model[2].parameters())


@contextlib.contextmanager
def resumed(folder: Path, **options: Any) -> Iterator[tuple[tk.Run, nn.Module, Any, int]]:
    """A run that a new process takes up."""
    model, optimizer = parts()
    with tk.Run(folder) as run:
        yield run, model, optimizer, run.resume(model=model, optimizer=optimizer, **options)


@dataclass
class Summary:
    """What was tried; that it is there says that every state kept the promise."""

    count: int
    seed: int
    calls: int
    seen: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        seen = ", ".join(f"{number} {what}" for what, number in sorted(self.seen.items()))
        return f"{self.count} states after {self.calls} calls: {seen}; each resumed what was saved last, whole"


def run_states(count: int, seed: int = 0, *, first: int = 0) -> Summary:
    """Build states of a run after crashes, and let a new process go on from each.

    Args:
        count: how many states.
        seed: of the choices; a state is the same for the same seed and number.
        first: number of the first state, to see a single one again.

    Raises:
        AssertionError: a promise was broken; it names the state.
    """
    with tempfile.TemporaryDirectory() as name:
        world = Path(name, "first")
        world.mkdir()
        story = Story()
        torch.manual_seed(seed)
        with story.watch(world):
            story.first(world / PLACE)
        summary = Summary(count, seed, len(story.calls))
        for number in range(first, first + count):
            generator = random.Random(f"{seed}/{number}")
            try:
                _state(Path(name, "world"), story, generator, summary)
            except Exception as error:
                raise AssertionError(f"run_states(1, {seed}, first={number}): {error}") from error
    return summary


def moment(calls: list[Op], generator: random.Random) -> int:
    """How many calls were made: any number; or up to a name that is not safe yet, or to the end of a save."""
    names = [place for place, op in enumerate(calls, 1) if op.makes or op.kind in {"link", "rename", "mkdir"}]
    saves = [place for place, op in enumerate(calls, 1) if op.kind == "mark"]
    found = generator.choice((list(range(len(calls) + 1)), names, saves))
    return generator.choice(found) if found else len(calls)


def _state(world: Path, first: Story, generator: random.Random, summary: Summary) -> None:
    """Crash, go on, crash again, up to three times; at the end power is lost, before it a process may just be killed."""
    story, disk, floor = Story(dict(first.saved), first.calls), Disk(), 0
    crashes = generator.choice((1, 1, 2, 3))
    for crash in range(crashes):
        reached = moment(story.calls, generator)
        for op in story.calls[:reached]:
            disk.apply(op)
            floor = max(floor, op.size) if op.kind == "mark" else floor
        if crash < crashes - 1 and generator.random() < 0.5:
            disk.killed()
            summary.seen["kills"] += 1
        else:
            before = disk.tree()
            disk = disk.lose_power(generator)
            summary.seen["losses of power"] += 1
            summary.seen["losses with consequences"] += disk.tree() != before
        try:
            disk.make(world)
            with story.watch(world):
                story.next(world / PLACE, floor, generator)
            report = tk.verify(world / PLACE)
            assert report.ok, report
        finally:
            shutil.rmtree(world, ignore_errors=True)
