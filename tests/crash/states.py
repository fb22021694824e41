"""Runs that lose power, or are killed, or both one after another, and what has to be true of them afterwards."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
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
class Mode:
    """How a run saves.

    Attributes:
        engine: what writes.
        blocking: wait for each save; or go on, and see what came of it before the next one.
        durable: wait for the disk; without, only a kill is survived and not a loss of power.
    """

    engine: str = "auto"
    blocking: bool = True
    durable: bool = True

    def run(self, folder: Path) -> tk.Run:
        """A run that saves so; with direct I/O its packs are streamed, small as they are."""
        run = tk.Run(folder, engine=self.engine, durable=self.durable)
        if self.engine == "direct":
            run._archive.stream_from = 0
        return run


MODES = [Mode(engine, blocking) for engine in ("direct", "buffered") for blocking in (True, False)]


@dataclass(frozen=True)
class Saved:
    """What one `save` was given."""

    step: int
    bits: list[tuple[str, bytes]]
    history: list[dict[str, Any]]


@dataclass
class Promised:
    """What had returned before a crash: the number of the last `save`, and the tags that were given."""

    sequence: int = 0
    tags: dict[str, int] = field(default_factory=dict)

    def note(self, op: Op) -> None:
        """Look at a call that was made."""
        if op.kind == "mark" and op.path:
            self.tags[op.path] = op.size
        elif op.kind == "mark":
            self.sequence = max(self.sequence, op.size)


@dataclass
class Story:
    """A training in a folder, watched: what it saved, and the calls it made.

    Attributes:
        saved: by sequence number.
        calls: all changes in order, with a mark where a `save` had returned.
        missed: of a call, whether to do as if it was never made.
        mode: how it saves.
    """

    saved: dict[int, Saved] = field(default_factory=dict)
    calls: list[Op] = field(default_factory=list)
    missed: Callable[[Op], bool] = lambda op: False
    mode: Mode = Mode()

    def watch(self, world: Path) -> Watch:
        """Note the calls of what is done inside, but those that are to be missed."""
        self.calls = []
        return Watch(world, after=lambda op: None if self.missed(op) else self.calls.append(op))

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
        if self.mode.blocking:
            report = run.save(step, model=model, optimizer=optimizer)
            self.saved[report.sequence] = Saved(step, bits, history)
            self.calls.append(Op("mark", size=report.sequence))
            return
        sequence = run.snapshots[-1].sequence + 1 if run.snapshots else 1
        self.saved[sequence] = Saved(step, bits, history)
        run.save(step, model=model, optimizer=optimizer, blocking=False)
        weight = model[2].weight.detach().clone()
        with torch.no_grad(), run.guard():
            model[2].weight.add_(1)  # what is done after the call is in no snapshot
        run.log(val_loss=0.5, note="beside the save")
        assert run.snapshots[-1].sequence == sequence
        with torch.no_grad():
            model[2].weight.copy_(weight)
        self.calls.append(Op("mark", size=sequence))

    def first(self, folder: Path) -> None:
        """Three processes: a new run, one that goes on, and one that goes back."""
        model, optimizer = parts()
        with self.mode.run(folder) as run:
            assert run.resume(model=model, optimizer=optimizer) == 0
            for step in range(2):
                self.train(run, model, optimizer, step)
            self.save(run, model, optimizer, 2)  # nothing changed: a manifest alone
        with self.resumed(folder) as (run, model, optimizer, step):
            self.train(run, model, optimizer, step)
        with self.resumed(folder, snapshot=2) as (run, model, optimizer, step):
            for number in range(2):
                self.train(run, model, optimizer, step + number)
            run.tag("early", 1)
            self.calls.append(Op("mark", "early", size=1))
            run.prune(tk.keep_last(2) | tk.keep_tagged())
            run.gc(grace=0)
            self.train(run, model, optimizer, step + 2)

    def next(self, folder: Path, promised: Promised, generator: random.Random) -> None:
        """What a process does in a run that it finds: it gets back what was saved, goes on, and may prune.

        Raises:
            AssertionError: it did not get what it was promised.
        """
        tk.Run(folder).history.table()  # reading needs no repair
        model, optimizer = parts()
        with self.mode.run(folder) as run:
            start = run.resume(model=model, optimizer=optimizer)
            report = run.last_resume
            assert report.sequence >= promised.sequence, f"{report.sequence} resumed, {promised.sequence} was saved"
            assert not report.skipped and not report.notes and not report.lost, report
            was = self.saved[report.sequence] if report.sequence else Saved(-1, state_bits(model, optimizer), [])
            assert start == was.step + 1
            assert state_bits(model, optimizer) == was.bits, "other weights than were saved"
            assert list(run.history) == was.history, "another history than was saved"
            assert promised.tags.items() <= run.tags.items(), f"tags are {run.tags}, {promised.tags} were given"
            assert not list(folder.rglob(".tmp-*")), "unfinished files stay"
            self.train(run, model, optimizer, start, logs=generator.choice((0, 2, 3)))
            if generator.random() < 0.3:
                run.prune(tk.keep_last(2) | tk.keep_tagged())
                run.gc(grace=0)
        if generator.random() < 0.5:
            with self.resumed(folder) as (run, model, optimizer, step):
                assert state_bits(model, optimizer) == self.saved[run.last_resume.sequence].bits, "what was saved last"
                self.train(run, model, optimizer, step)

    @contextlib.contextmanager
    def resumed(self, folder: Path, **options: Any) -> Iterator[tuple[tk.Run, nn.Module, Any, int]]:
        """A run that a new process takes up."""
        model, optimizer = parts()
        with self.mode.run(folder) as run:
            yield run, model, optimizer, run.resume(model=model, optimizer=optimizer, **options)


resumed = Story().resumed


class Sparing(random.Random):
    """Chooses that a process does little: it trains for so many batches, saves and ends."""

    def __init__(self, logs: int) -> None:
        super().__init__()
        self._logs = logs

    def choice(self, options: Any) -> Any:
        return self._logs

    def random(self) -> float:
        return 1.0


def parts() -> tuple[nn.Module, Any]:
    """A small model with a frozen part, untrained."""
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 2))
    tk.freeze(model, "0")
    return model, torch.optim.Adam(model[2].parameters())


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


def run_states(
    count: int,
    seed: int = 0,
    *,
    first: int = 0,
    missed: Callable[[Op], bool] = lambda op: False,
    mode: Mode = Mode(),
) -> Summary:
    """Build states of a run after crashes, and let a new process go on from each.

    Args:
        count: how many states.
        seed: of the choices; a state is the same for the same seed and number.
        first: number of the first state, to see a single one again.
        missed: calls to do without, to see what they are good for.
        mode: how the run saves.

    Raises:
        AssertionError: a promise was broken; it names the state.
    """
    with _folder() as folder:
        story = told(folder, missed, seed, mode)
        summary = Summary(count, seed, len(story.calls))
        for number in range(first, first + count):
            try:
                _state(folder / "world", story, random.Random(f"{seed}/{number}"), summary)
            except Exception as error:
                raise AssertionError(f"run_states(1, {seed}, first={number}): {error}") from error
    return summary


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def told(
    folder: Path,
    missed: Callable[[Op], bool] = lambda op: False,
    seed: int = 0,
    mode: Mode = Mode(),
) -> Story:
    """The first story, in a new folder."""
    (folder / "first").mkdir()
    torch.manual_seed(seed)
    story = Story(missed=missed, mode=mode)
    with story.watch(folder / "first"):
        story.first(folder / "first" / PLACE)
    return story


def names_given(calls: list[Op]) -> list[int]:
    """How many calls were made whenever a name was given or changed."""
    return [place for place, op in enumerate(calls, 1) if op.makes or op.kind in {"link", "rename", "mkdir"}]


def moment(calls: list[Op], generator: random.Random) -> int:
    """How many calls were made: any number; or up to a name that is not safe yet, or to the end of a save."""
    saves = [place for place, op in enumerate(calls, 1) if op.kind == "mark"]
    found = generator.choice((list(range(len(calls) + 1)), names_given(calls), saves))
    return generator.choice(found) if found else len(calls)


def _state(world: Path, first: Story, generator: random.Random, summary: Summary) -> None:
    """Crash, go on, crash again, up to three times; at the end power is lost, before it a process may just be killed."""
    story = Story(dict(first.saved), first.calls, first.missed, first.mode)
    disk, promised = Disk(), Promised()
    crashes = generator.choice((1, 1, 2, 3))
    for crash in range(crashes):
        for op in story.calls[: moment(story.calls, generator)]:
            disk.apply(op)
            promised.note(op)
        if not first.mode.durable or (crash < crashes - 1 and generator.random() < 0.5):
            disk.killed()
            summary.seen["kills"] += 1
        else:
            before = disk.tree()
            disk = disk.lose_power(generator)
            summary.seen["losses of power"] += 1
            summary.seen["of them with consequences"] += disk.tree() != before
        go_on(world, disk, story, promised, generator)


def go_on(world: Path, disk: Disk, story: Story, promised: Promised, generator: random.Random) -> None:
    """Let a process find what is on a disk.

    Raises:
        AssertionError: it did not get what it was promised, or the run is not sound afterwards.
    """
    try:
        disk.make(world)
        with story.watch(world):
            story.next(world / PLACE, promised, generator)
        report = tk.verify(world / PLACE)
        assert report.ok, report
    finally:
        shutil.rmtree(world, ignore_errors=True)


def kill_states(mode: Mode = Mode()) -> int:
    """Kill a new run whenever it has given a name; another process saves, and then all that is not synced is lost.

    Args:
        mode: how they save.

    Returns:
        The number of states.

    Raises:
        AssertionError: a promise was broken; it names the call after which the process was killed.
    """
    with _folder() as folder:
        first = told(folder, mode=mode)
        second = [place for place, op in enumerate(first.calls) if op.kind == "mark"][1]
        moments = [(reached, logs) for reached in names_given(first.calls[:second]) for logs in (0, 2)]
        for reached, logs in moments:
            story, disk, promised = Story(dict(first.saved), mode=mode), Disk(), Promised()
            try:
                for op in first.calls[:reached]:
                    disk.apply(op)
                    promised.note(op)
                disk.killed()
                go_on(folder / "world", disk, story, promised, Sparing(logs))
                for op in story.calls:
                    disk.apply(op)
                    promised.note(op)
                go_on(folder / "world", disk.lose_power(), story, promised, Sparing(0))
            except Exception as error:
                call = first.calls[reached - 1]
                raise AssertionError(f"killed after {call.kind} of {call.path}, {logs} batches: {error}") from error
    return len(moments)
