"""The proof: run whole, kill, resume, compare, and if something differs, run whole once more."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.proof import Divergence, ProofReport
from ..errors import SaveError
from ..running.probe import Event
from .comparing import compare, told
from .stage import Stage


def prove_resume(
    train: Callable[[str], Any] | Sequence[str],
    *,
    kills: int = 3,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> ProofReport:
    """Run a training loop whole, and again killed at random moments and resumed, and compare the two bit for bit.

    >>> def train(folder):                                                       # doctest: +SKIP
    ...     with tk.Run(folder) as run: ...
    >>> print(tk.prove_resume(train))                                            # doctest: +SKIP

    Weights, optimizer and all else in the snapshots, metrics, and the batches of `run.batches` are compared; the first
    thing that differs is reported with its likely cause. If the loop differs from itself when nothing is killed, that
    is said instead.

    Args:
        train: a function of a module that is called with the folder of its run, in processes of their own; or a command
            such as `["python", "train.py"]`, whose runs are put elsewhere. It must end by itself, and soon.
        kills: how often it is killed (SIGKILL): before a batch, a record or a save.
        seed: of the choice of moments.
        folder: where to work, and what to leave there; a temporary folder that is removed if None.
        timeout: seconds that one process may take; None for any.

    Raises:
        SaveError: the loop fails when it is run whole, or uses no `tk.Run`; the message has the end of what it wrote.
    """
    if callable(train):
        _check_importable(train)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return _prove(Stage(train, Path(folder).absolute(), timeout), kills, seed)
    with tempfile.TemporaryDirectory(prefix="torchkeep-proof-") as temporary:
        return _prove(Stage(train, Path(temporary), timeout), kills, seed)


def _check_importable(train: Callable[[str], Any]) -> None:
    name = getattr(train, "__qualname__", "")
    if "<" in name or (
        getattr(train, "__module__", "") == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    ):
        raise SaveError(
            f"{name or train!r} cannot be called from another process",
            hint="define it at the top of a module, not inside a function or in an interactive session",
        )


def _prove(stage: Stage, kills: int, seed: int) -> ProofReport:
    whole = _whole(stage, "whole")
    if not stage.runs("whole"):
        raise SaveError("the loop ended without a run", hint="it has to use tk.Run, and save at least once")
    points = _points(whole, kills, seed)
    if kills and not points:
        raise SaveError(
            "nothing happens after the first save, so there is no moment to be killed at",
            hint="train for longer, or save more often",
        )
    parts: list[list[Event]] = []
    for part, point in enumerate([*points, None]):
        code, events = stage.play("killed", part, None if point is None else point.key)
        parts.append(events)
        if code == -signal.SIGKILL and point is not None:
            continue
        if code:
            return _report(
                points,
                Divergence(
                    "the resumed process",
                    f"it failed: {stage.said('killed', part).rpartition(chr(10))[2]}",
                    "the loop does not survive being resumed",
                ),
            )
        break
    found, counts = compare(stage, "killed", whole, parts)
    if found is not None:
        shutil.rmtree(stage.folder / "again", ignore_errors=True)
        again = _whole(stage, "again")
        itself, _ = compare(stage, "again", whole, [again])
        if itself is not None:
            cause = "the loop differs from itself when nothing is killed: something is not seeded, or not deterministic"
            found = Divergence(
                itself.where, itself.what, cause, "seed torch, NumPy and Python, and torch.use_deterministic_algorithms"
            )
    return _report(points, found, **counts)


def _report(points: list[Event], found: Divergence | None, **counts: Any) -> ProofReport:
    return ProofReport(tuple(told(point.key) for point in points), divergence=found, **counts)


def _whole(stage: Stage, name: str) -> list[Event]:
    code, events = stage.play(name)
    if code:
        raise SaveError(f"the loop fails when nothing is killed (exit code {code}): {stage.said(name)}")
    return events


def _points(whole: list[Event], kills: int, seed: int) -> list[Event]:
    """Moments to be killed before, one in each stretch of the loop, after its first save."""
    first = next((place for place, event in enumerate(whole) if event.key[1] == "save"), 0)
    places = [place for place, event in enumerate(whole) if place > first and event.key[1] in {"batch", "log", "save"}]
    generator = random.Random(seed)
    count = min(kills, len(places))
    bounds = [len(places) * number // count for number in range(count + 1)] if count else []
    return [whole[places[generator.randrange(low, high)]] for low, high in pairwise(bounds)]
