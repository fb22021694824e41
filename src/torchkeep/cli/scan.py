"""`torchkeep scan`: is there anything dangerous, damaged or odd in these files?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress

_CODES = {"info": 72, "warning": 73, "danger": 74}


class Threshold(StrEnum):
    """The severity from which on the exit code is not 0."""

    INFO = "info"
    WARNING = "warning"
    DANGER = "danger"


def scan(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders; folders with all that is below them.")],
    fail_on: Annotated[
        Threshold, typer.Option(help="Exit with 0 where all findings are below this.")
    ] = Threshold.DANGER,
    everything: Annotated[bool, typer.Option("--all", help="List the files without findings too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is dangerous, damaged or odd in files, without running anything in them.

    Exits 0 if no finding is as severe as --fail-on, else by the worst finding: 72 info, 73 warning, 74 danger.
    """
    with progress("scanning") as step:
        report = tk.scan(*paths, progress=step)
    if everything and not as_json:
        tk.show(report.table(everything=True))
    else:
        answer(report, as_json)
    if report.reaches(fail_on.value):
        raise typer.Exit(_CODES[report.severity])
