"""How commands answer: a table for people, or one JSON object with `--json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import torchkeep as tk

_OTHER = re.compile(r"[^\n\x20-\x7e]")  # some of these move the cursor or the reading direction of a terminal

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def answer(noun: Any, as_json: bool) -> None:
    """Print the result of a command."""
    if as_json:
        print(_json(noun))
    else:
        tk.show(noun)


def fail(error: tk.errors.TorchkeepError, as_json: bool) -> int:
    """Print an error and return its exit code."""
    if as_json:
        print(_json(error))
    else:
        print(_OTHER.sub(_python_escape, f"torchkeep: {type(error).__name__}: {error}"), file=sys.stderr)
    return error.exit_code


def _json(noun: Any) -> str:
    return _OTHER.sub(_json_escape, json.dumps(tk.to_json(noun), indent=2, ensure_ascii=False))


def _json_escape(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def _python_escape(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else repr(found[0])[1:-1]


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
