"""Running a training loop in processes of its own, with a log of what its runs do."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import SaveError
from ..running import Run, is_run
from ..running.probe import VARIABLE, Event, Order


@dataclass(frozen=True)
class Stage:
    """Where processes run, and what they leave."""

    train: Callable[[str], Any] | Sequence[str]
    folder: Path
    timeout: float | None

    def play(self, name: str, part: int = 0, kill: list[Any] | None = None) -> tuple[int, list[Event]]:
        """Run the loop once; returns its exit code, negative for a signal, and what it did."""
        events, order, out = (self.folder / f"{name}-{part}.{kind}" for kind in ("events", "order", "out"))
        command = not callable(self.train)
        root = str(self.folder / name) if command else ""
        order.write_bytes(msgspec.json.encode(Order(str(events), kill, root)))
        code = self._command(order, out) if command else self._function(order, out, self.folder / name / "run")
        lines = events.read_bytes().splitlines() if events.exists() else []
        return code, [msgspec.json.decode(line, type=Event) for line in lines]

    def _command(self, order: Path, out: Path) -> int:
        environment = {**os.environ, VARIABLE: str(order)}
        with out.open("wb") as file:
            try:
                done = subprocess.run(
                    [*self.train],  # type: ignore[misc]
                    env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=self.timeout, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SaveError(f"the command cannot be run: {error}") from error
        return done.returncode

    def _function(self, order: Path, out: Path, run: Path) -> int:
        process = _context().Process(target=_call, args=(self.train, str(run), str(order), str(out)))
        process.start()
        process.join(self.timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise SaveError(f"the loop did not end within {self.timeout} seconds")
        return process.exitcode or 0

    def said(self, name: str, part: int = 0) -> str:
        """The end of what a process wrote."""
        text = (self.folder / f"{name}-{part}.out").read_text(errors="replace")
        return text[-2000:].strip()

    def runs(self, name: str) -> dict[str, Run]:
        """The runs that the loop made, by their name."""
        folders = sorted((self.folder / name).iterdir()) if (self.folder / name).is_dir() else []
        return {path.name: Run(path) for path in folders if is_run(path)}


def _context() -> Any:
    """How processes are made: clean ones, and fast where the system can fork them off one that has torch imported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchkeep", "torch._dynamo"])  # the first step of an optimizer imports the latter
    return context


def _call(train: Callable[[str], Any], run: str, order: str, out: str) -> None:
    """In the other process: everything the loop writes goes to a file."""
    os.environ[VARIABLE] = order
    multiprocessing.set_start_method(None, force=True)  # loaders start their workers as they would in the script itself
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        train(run)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
