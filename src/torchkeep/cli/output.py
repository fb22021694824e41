"""How commands answer: a table for people, or one JSON object with `--json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import torchkeep as tk

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def answer(noun: Any, as_json: bool) -> None:
    """Print the result of a command."""
    if as_json:
        print(json.dumps(tk.to_json(noun), indent=2, ensure_ascii=False))
    else:
        tk.show(noun)


def fail(error: tk.errors.TorchkeepError, as_json: bool) -> int:
    """Print an error and return its exit code."""
    if as_json:
        print(json.dumps(tk.to_json(error), indent=2, ensure_ascii=False))
    else:
        print(f"torchkeep: {type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_code


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while work goes on; nothing where standard error is no terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
